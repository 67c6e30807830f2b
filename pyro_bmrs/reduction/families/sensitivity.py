# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What becomes of a site, and of a decision, under each prior of a grid."""

from __future__ import annotations

import html
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.integration.fits import Shift
from pyro_bmrs.plotting import plot_sensitivity
from pyro_bmrs.reduction.check import RELATIVE_TOLERANCE, WORTH_A_WARNING
from pyro_bmrs.reduction.families.curves import Curve, CurveOf
from pyro_bmrs.reduction.families.decisions import Stretch, stretches
from pyro_bmrs.reduction.families.grid import Grid
from pyro_bmrs.reduction.reduction import Reduction
from pyro_bmrs.structure.layers import as_point, peel
from pyro_bmrs.structure.vectorised import own_random_numbers, set_seed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MOST_COLUMNS = 20  # elements of which a table shows the moments
_BARE_MENTION = 1.0  # nats, "not worth more than a bare mention" (Kass and Raftery 1995)


class PriorSensitivity:
    """
    What becomes of a site, and of a decision, under each prior of a grid. Made by :func:`pyro_bmrs.prior_sensitivity`.

    :param site: the site.
    :param grid: the priors.
    :param curve: what the posterior says of each.
    :param against: what each is compared with; None for the model's own prior.
    :param threshold: nats within which nothing is decided.
    :param labels: names of the elements whose prior changes.
    :param other: what ``against`` is called in a sentence.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs import prior_sensitivity
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> def exact(y):
        ...     pyro.sample("mean", dist.Normal(0.5, 0.5))
        >>> y = torch.tensor([0.4, 0.7, 0.9])
        >>> null = dist.Delta(torch.tensor(0.0))
        >>> found = prior_sensitivity(exact, "mean", against=null, model=model, args=(y,), check=False)
        >>> found.log_bayes_factor.shape
        torch.Size([100])
    """

    def __init__(
        self,
        site: str,
        grid: Grid,
        curve: Curve,
        curve_of: CurveOf,
        against: Reduction | None,
        threshold: float,
        labels: list[str],
        other: str = "",
    ) -> None:
        self.site, self.grid, self.curve, self.against, self.threshold = site, grid, curve, against, threshold
        self.labels = labels
        """Names of the elements whose prior changes."""
        self.checked: Curve | None = None
        """What the model says of each prior; None where it was not asked."""
        self.unchecked: str | None = None
        """Why the model was not asked, in words; None where it was."""
        self.shift: Shift | None = None
        """How far the mean of draws is from the model's; None where it was not asked, and of a guide."""
        self._curve_of, self._other = curve_of, other

    @property
    def label(self) -> str:
        """What varies."""
        return self.grid.label

    @property
    def places(self) -> list[Any]:
        """What each prior is told by: a number, or a name."""
        return self.grid.places

    @property
    def delta_evidence(self) -> Tensor:
        """Log evidence with each prior, less that of the model fitted, in nats, shape ``(num_priors,)``."""
        return self.curve.delta_evidence

    @property
    def log_bayes_factor(self) -> Tensor:
        """Log evidence with each prior, less that with ``against``, in nats: positive favours the prior of the grid."""
        return self.delta_evidence - self.of_against

    @property
    def of_against(self) -> float:
        """Log evidence with ``against``, less that of the model fitted, in nats; 0 without one."""
        return 0.0 if self.against is None else float(self.against.delta_evidence)

    @property
    def checked_log_bayes_factor(self) -> Tensor | None:
        """What the model says of :attr:`log_bayes_factor`; NaN where its draws say nothing, None if not asked."""
        if self.checked is None or self.checked.trusted is None:
            return None
        if self.against is not None and self.against.checked is None:
            return None
        own = 0.0 if self.against is None or self.against.checked is None else self.against.checked.delta_evidence
        return torch.where(self.checked.trusted, self.checked.delta_evidence - own, math.nan)

    @property
    def mean(self) -> Tensor:
        """Posterior means under each prior, the priors along the first dimension."""
        return self.curve.mean

    @property
    def sd(self) -> Tensor:
        """Posterior standard deviations, of the shape of the means."""
        return self.curve.sd

    @property
    def standard_error(self) -> Tensor | None:
        """Of the changes in log evidence, in nats; None where they are no estimates."""
        return self.curve.standard_error

    @property
    def pareto_k(self) -> Tensor | None:
        """Of the importance weights under each prior; above 0.7 they are not to be trusted. None without sampling."""
        return self.curve.pareto_k

    @property
    def method(self) -> str:
        """How it was computed: ``"exact"``, ``"quadrature"`` or ``"importance"``."""
        return self.curve.method

    @property
    def best(self) -> Any:
        """The number or the name of the prior under which the data are most probable, of those on the grid."""
        return self.places[int(self.delta_evidence.nan_to_num(-math.inf).argmax())]

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """
        For which numbers the decision is the same, to the last digits; empty for priors by name.

        With ``against``, where the data favour the prior of the grid (1), neither (0) or the other (-1). Without, where
        the evidence is within a nat of the best on the grid (1), and where it is not (-1).
        """
        numbers = self.grid.values
        if numbers is None:
            return ()
        level = self.of_against if self.against is not None else float(_largest(self.delta_evidence)) - _BARE_MENTION
        threshold = self.threshold if self.against is not None else 0.0

        def function(number: float) -> float:
            with own_random_numbers():
                set_seed(0)
                curve = self._curve_of(self.grid, torch.tensor([number], dtype=torch.double))
            return float(curve.delta_evidence) - level

        values = (self.delta_evidence.double() - level).tolist()
        return stretches(function, numbers.tolist(), values, threshold)

    @property
    def decision(self) -> str:
        """In a sentence, for which priors the decision holds."""
        site = self.labels[0] if len(self.labels) == 1 else self.site
        if self.grid.values is None:
            return f"{self._of_names(site)}{self._source()}"
        along = f"{self.label} of the prior of {site}"
        if self.against is None:
            within = " and ".join(_range(s) for s in self.stretches if s.sign == 1)
            return (
                f"the data are most probable with {self.best:.3g} for the {along}, and within a nat of that {within}"
                + (self._source())
            )
        if len(self.stretches) == 1:
            (only,) = self.stretches
            words = f"the data favour {self.verdict(only.sign)} over the whole grid, {_range(only)} for the {along}"
            return words + self._source()
        own = self.grid.fitted_value
        here = [s for s in self.stretches if own is not None and own in s]
        parts = [f"{self.verdict(s.sign)} {_range(s)}" for s in self.stretches]
        if not here:
            return f"with the {along}, the data favour {'; '.join(parts)}{self._source()}"
        rest = [f"{self.verdict(s.sign)} {_range(s)}" for s in self.stretches if s is not here[0]]
        return (
            f"the decision for {self.verdict(here[0].sign)} holds {_range(here[0])} for the {along}; the data favour "
            f"{'; '.join(rest)}{self._source()}"
        )

    def verdict(self, sign: int | None) -> str:
        """What the data favour where the log Bayes factor has this sign, in words."""
        return {1: "the prior", -1: self._other, 0: "neither", None: "what is not known"}[sign]

    def _of_names(self, site: str) -> str:
        factors = self.log_bayes_factor.tolist()
        if self.against is None:
            spread = max(factors) - min(factors)
            return f"of the priors of {site} the data favour {self.best}; between the priors lie {spread:.2g} nats"
        over = [str(name) for name, value in zip(self.places, factors) if value > self.threshold]
        under = [str(name) for name, value in zip(self.places, factors) if value < -self.threshold]
        other = self._other
        if not under or not over:
            same = len(over) == len(factors) or len(under) == len(factors)
            which = "the prior" if over else other if under else "neither"
            return f"the data favour {which} with {'all' if same else 'some'} of the priors of {site}"
        return f"the data favour the prior of {site} if it is {', '.join(over)}; {other} if it is {', '.join(under)}"

    def _source(self) -> str:
        """By what the sentence is said."""
        if self.checked is None:
            why = f": {self.unchecked}" if self.unchecked else ""
            return f" (of the posterior, not checked against the model{why})"
        off = self.off()
        if off is not None:
            return f" (of the posterior; the model is up to {float(off.max()):.2g} nats from it)"
        return " (the model agrees)" if bool(self.checked.trusted.all()) else " (the model agrees where it can tell)"  # type: ignore[union-attr]

    def off(self) -> Tensor | None:
        """How far the answer is from the model's, in nats, where that is too far; None where it is nowhere."""
        found, factor = self.checked_log_bayes_factor, self.log_bayes_factor
        if found is None or self.checked is None:
            return None
        errors = [e for e in (self.standard_error, self.checked.standard_error) if e is not None]
        error = torch.stack([e.double() for e in errors]).square().sum(0).sqrt()
        distance = (found - factor).abs().double()
        allowed = torch.maximum(WORTH_A_WARNING + RELATIVE_TOLERANCE * found.abs().double(), 2 * error)
        wrong = distance > allowed  # never where the model says nothing: NaN
        return torch.where(wrong, distance, 0.0) if bool(wrong.any()) else None

    def summary(self) -> pd.DataFrame:
        """
        A table of the priors, a row each, by their number or name.

        ``log_bayes_factor`` and ``delta_evidence`` in nats; ``standard_error`` and ``pareto_k`` where they are
        estimates; ``checked_log_bayes_factor`` where the model was asked; posterior ``mean`` and ``sd``, of each
        element where there are no more than twenty.
        """
        import pandas as pd

        columns = {"log_bayes_factor": self.log_bayes_factor, "delta_evidence": self.delta_evidence}
        optional = {"standard_error": self.standard_error, "pareto_k": self.pareto_k}
        optional["checked_log_bayes_factor"] = self.checked_log_bayes_factor
        columns |= {name: column for name, column in optional.items() if column is not None}
        mean, sd = (moment.reshape(len(moment), -1) for moment in (self.mean, self.sd))
        if len(self.labels) == 1:
            columns |= {"mean": mean[:, 0], "sd": sd[:, 0]}
        elif len(self.labels) <= _MOST_COLUMNS:
            for place, label in enumerate(self.labels):
                columns |= {f"mean {label}": mean[:, place], f"sd {label}": sd[:, place]}
        table = {name: column.detach().cpu().numpy() for name, column in columns.items()}
        return pd.DataFrame(table, index=pd.Index(self.places, name=self.label))

    def plot(self, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
        """The log Bayes factor and the posterior along the grid; see :func:`pyro_bmrs.plotting.plot_sensitivity`."""
        return plot_sensitivity(self, axes)

    def __getstate__(self) -> dict[str, Any]:
        """With the decision made, and without what would make another one."""
        _ = self.stretches
        return {name: value for name, value in vars(self).items() if name not in ("_curve_of", "grid")} | {
            "grid": self.grid.frozen()
        }

    def __repr__(self) -> str:
        return f"PriorSensitivity({self.site}, {self._count()}, {self.method}): {self.decision}"

    def _count(self) -> str:
        return "1 prior" if len(self.places) == 1 else f"{len(self.places)} priors"

    def _repr_html_(self) -> str:
        return (
            f"<p><b>PriorSensitivity</b> of <code>{html.escape(self.site)}</code>, {self._count()}, "
            f"{self.method}: {html.escape(self.decision)}</p>{self.summary().to_html(max_rows=10)}"
        )


def _largest(values: Tensor) -> Tensor:
    return values.nan_to_num(-math.inf).max()


def _range(stretch: Stretch) -> str:
    return f"from {stretch.low:.3g} to {stretch.high:.3g}"


def words(against: Distribution) -> str:
    """What a prior is called in a sentence."""
    point = as_point(against)
    if point is not None:
        values = point.v.unique()
        return f"the point {float(values):.3g}" if len(values) == 1 else "the point"
    core = peel(against).core
    parameters = {name: vars(core)[name].unique() for name in core.arg_constraints if name in vars(core)}
    if not parameters or any(len(values) > 1 for values in parameters.values()):
        return type(core).__name__
    return f"{type(core).__name__}({', '.join(f'{name}: {float(v):.3g}' for name, v in parameters.items())})"
