# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A reduction held against the model: both ends of the change in log evidence, integrated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pyro_bmrs.integration.ends import LogEvidence, Values, conditioned, integrate_model
from pyro_bmrs.integration.log_evidence import NUM_STARTS, integrate
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.posteriors.reading import read_guide
from pyro_bmrs.posteriors.reduced_guide import DrawsGuide

# How far the answer read off the posterior may be from the model's, in nats and as a share, and still agree with it.
TOLERANCE, RELATIVE_TOLERANCE = 0.1, 0.05


@dataclass(frozen=True)
class Check:
    """
    What the model says of a change in log evidence. Made by :meth:`pyro_bmrs.Reduction.check`.

    :param full: log evidence of the model that was fitted.
    :param reduced: log evidence of the reduced model.
    :param read_off: the change in log evidence that was read off the fitted posterior, in nats.
    """

    full: LogEvidence
    reduced: LogEvidence
    read_off: float

    @property
    def delta_evidence(self) -> float:
        """Log evidence of the reduced model less that of the full one, in nats, both integrated."""
        return self.reduced.value - self.full.value

    @property
    def standard_error(self) -> float:
        """Of :attr:`delta_evidence`, in nats."""
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
        allowed = max(TOLERANCE + RELATIVE_TOLERANCE * abs(self.delta_evidence), 2 * self.standard_error)
        return abs(self.delta_evidence - self.read_off) <= allowed

    @property
    def probability(self) -> float:
        """Posterior probability of the reduced model, against the model fitted, at even prior odds."""
        return 1 / (1 + math.exp(-self.delta_evidence)) if self.delta_evidence > -700 else 0.0

    def __repr__(self) -> str:
        numbers = f"ΔF = {self.delta_evidence:.2f} ± {self.standard_error:.2g} nats by the model"
        if not self.trusted:
            ends = [name for name, end in (("full", self.full), ("reduced", self.reduced)) if not end.trusted]
            return (
                f"Check({numbers}, not to be trusted: the {' and the '.join(ends)} model's integral has not converged)"
            )
        verdict = "agrees with" if self.agrees else "the posterior is off: not"
        return (
            f"Check({numbers}, Pareto k {self.pareto_k:.2f}; {verdict} the {self.read_off:.2f} read off the posterior)"
        )


def check_reduction(reduction: Any, *, num_draws: int | None = None, progress: bool = False) -> Check:
    """What :meth:`pyro_bmrs.Reduction.check` does."""
    fitted: Posterior = reduction.fitted
    full = integrate(fitted, num_draws=num_draws, progress=progress)
    starts = [
        conditioned(full, reduction.model, fitted.args, fitted.kwargs, NUM_STARTS),
        _draws_of(reduction, progress),
    ]
    known = [start for start in starts if start is not None]
    reduced = integrate_model(reduction.model, fitted.args, fitted.kwargs, known, num_draws=num_draws)
    return Check(full, reduced, float(reduction.delta_evidence.detach()))


def _draws_of(reduction: Any, progress: bool) -> Values:
    guide, fitted = reduction.guide, reduction.fitted
    if isinstance(guide, DrawsGuide):
        return guide.resample(NUM_STARTS)
    return read_guide(guide, reduction.model, fitted.args, fitted.kwargs).draw((), NUM_STARTS, progress).values
