# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A reduction held against the model: both ends of the change in log evidence, integrated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pyro_bmrs.evidence.importance import LARGEST_K
from pyro_bmrs.integration.ends import LogEvidence
from pyro_bmrs.integration.fits import Shift

# How far the answer read off the posterior may be from the model's, in nats and as a share, and still agree with it.
TOLERANCE, RELATIVE_TOLERANCE = 0.1, 0.05
# The same for a warning that nobody asked for: what is off by less decides nothing.
WORTH_A_WARNING = 0.2


@dataclass(frozen=True)
class Check:
    """
    What the model says of a change in log evidence. Made by :meth:`pyro_bmrs.Reduction.check`.

    :param full: log evidence of the model that was fitted.
    :param reduced: log evidence of the reduced model.
    :param read_off: the change in log evidence that was read off the fitted posterior, in nats.
    :param read_off_error: its standard error; 0 where it is no estimate.
    :param guide_pareto_k: shape of the tail of the fitted guide's own weights p(data, x) / q(x); above 0.7 the guide is
        far from the posterior. None where there is no guide, or one of the two has no density at its draws.
    :param elementwise: for each reduced site, the change in log evidence (nats) of reducing each of its elements alone,
        integrated, of the shape of ``Reduction.elementwise``; None where this was not asked for.
    :param elementwise_error: their standard errors, in nats, of the same shapes.
    :param shift: how far the mean of draws is from the model's; None of a guide, which tells it by its weights.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs import reduce_model
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> def exact(y):
        ...     pyro.sample("mean", dist.Normal(0.5, 0.5))
        >>> y = torch.tensor([0.4, 0.7, 0.9])
        >>> check = reduce_model(exact, {"mean": dist.Normal(0.0, 0.5)}, model=model, args=(y,), check=True).checked
        >>> check.agrees, check.trusted
        (True, True)
    """

    full: LogEvidence
    reduced: LogEvidence
    read_off: float
    read_off_error: float = 0.0
    guide_pareto_k: float | None = None
    elementwise: Mapping[str, Tensor] | None = None
    elementwise_error: Mapping[str, Tensor] | None = None
    shift: Shift | None = None

    @property
    def delta_evidence(self) -> float:
        """Log evidence of the reduced model less that of the full one, in nats, both integrated."""
        return self.reduced.value - self.full.value

    @property
    def standard_error(self) -> float:
        """Of :attr:`delta_evidence`, in nats."""
        if self.reduced is self.full:
            return 0.0
        return math.hypot(self.full.standard_error, self.reduced.standard_error)

    @property
    def pareto_k(self) -> float:
        """The larger of both ends; above 0.7 the integral is not to be trusted."""
        return max(self.full.pareto_k, self.reduced.pareto_k)

    @property
    def trusted(self) -> bool:
        """Whether both integrals are to be trusted."""
        return self.full.trusted and self.reduced.trusted

    @property
    def agrees(self) -> bool:
        """Whether what was read off is what the model says: to 0.1 nats and 5 %, or two standard errors."""
        return self._is_within(TOLERANCE)

    @property
    def misleads(self) -> bool:
        """Whether what was read off is off by more than 0.2 nats and 5 %, not known to be right, or of other data."""
        return not (self.trusted and self._is_within(WORTH_A_WARNING)) or self._is_of_others

    def _is_within(self, tolerance: float) -> bool:
        error = math.hypot(self.standard_error, self.read_off_error)
        allowed = max(tolerance + RELATIVE_TOLERANCE * abs(self.delta_evidence), 2 * error)
        return abs(self.delta_evidence - self.read_off) <= allowed

    @property
    def _is_of_others(self) -> bool:
        return self.shift is not None and self.shift.is_far

    @property
    def is_far(self) -> bool:
        """Whether the fitted guide is far from the posterior, by its own weights."""
        return self.guide_pareto_k is not None and self.guide_pareto_k > LARGEST_K

    @property
    def probability(self) -> float:
        """Posterior probability of the reduced model, against the model fitted, at even prior odds."""
        return 1 / (1 + math.exp(-self.delta_evidence)) if self.delta_evidence > -700 else 0.0

    def words(self) -> str:
        """What was found, in a sentence."""
        if self.shift is not None and self.shift.is_far:
            return f"{self._words()}; {self.shift.words('the set of draws')}"
        if self.guide_pareto_k is None or not self.is_far:
            return self._words()
        tail = f"Pareto k {self.guide_pareto_k:.2f} of its own weights"
        return f"{self._words()}; the guide is far from the posterior ({tail})"

    @property
    def advice(self) -> str | None:
        """What to do about it; None where what was read off is right, and the guide near the posterior."""
        mend = "more draws" if self.guide_pareto_k is None else "more steps of SVI, or a richer guide"
        if not self.trusted:
            return f"Take {mend}; or fit the reduced model as well, and compare"
        if self._is_of_others:
            return "See that model=, args= and kwargs= are those that were sampled with"
        if not self.agrees:
            return f"Go by the model's value, checked.delta_evidence; the posterior is mended by {mend}"
        return f"Of the posterior itself do not make much: it is mended by {mend}" if self.is_far else None

    def _words(self) -> str:
        numbers = f"ΔF = {self.delta_evidence:.2f} ± {self.standard_error:.2g} nats by the model"
        if not self.trusted:
            ends = [name for name, end in (("full", self.full), ("reduced", self.reduced)) if not end.trusted]
            which = " and of the ".join(ends)
            return f"{numbers}, not to be trusted: the integral of the {which} model has not converged"
        verdict = "agrees with" if self.agrees else "the posterior is off: not"
        probability = f"probability {self.probability:.3f}"
        return f"{numbers}, {probability}; {verdict} the {self.read_off:.2f} read off the posterior"

    def __repr__(self) -> str:
        return f"Check({self.words()})"
