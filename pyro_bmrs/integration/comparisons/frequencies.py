# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Which of several models the studies of a group follow, from the log evidence of each model in each study.

With fixed effects all studies follow the same model, and log evidences add up. With random effects each study has a
model of its own, drawn with unknown frequencies r ~ Dirichlet(a, ..., a) (Stephan, Penny, Daunizeau, Moran and Friston
2009, https://doi.org/10.1016/j.neuroimage.2009.03.025). Given how many studies follow each model, the posterior of r is
a Dirichlet, and the weights of these counts are the coefficients of

.. math:: \prod_n \sum_k e^{F_{nk}} z_k, \qquad\text{times}\qquad
    \frac{\Gamma(Ka)}{\Gamma(Ka + N)} \prod_k \frac{\Gamma(a + c_k)}{\Gamma(a)},

so that it is known exactly, as a mixture over all counts, as long as these are not too many. Beyond, it is approximated
by one Dirichlet, as in the paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionError, check_number
from pyro_bmrs.evidence.quadrature.panels import nodes
from pyro_bmrs.tables import numbers

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("auto", "exact", "variational")
# Ways to divide the studies between the models, for which all are counted.
_MOST_COUNTS = 25_000
_MOST_STEPS = 10_000


@dataclass(frozen=True, eq=False)
class GroupStudy:
    """
    The models that the studies of a group follow. Made by :func:`group_study`.

    :param models: names of the models.
    :param studies: names of the studies.
    :param fixed_log_evidence: log evidence of each model for all studies together, in nats, shape ``(num_models,)``, as
        are the next three.
    :param frequency: of each model among such studies, its posterior mean.
    :param frequency_sd: its posterior standard deviation.
    :param exceedance: the probability that each model is the most frequent.
    :param omnibus_risk: the probability that all models are equally frequent, against frequencies that differ, at even
        odds.
    :param assignment: the probability of each model in each study, shape ``(num_studies, num_models)``.
    :param log_evidence: of random effects, in nats; a lower bound where ``method`` is ``"variational"``.
    :param method: ``"exact"`` or ``"variational"``.

    Example::

        >>> from pyro_bmrs import group_study
        >>> study = group_study({"plain": [0.0, 0.0, 0.0, 0.0], "bent": [2.0, 3.0, 1.0, 4.0]})
        >>> study.models, study.assignment.shape
        (('plain', 'bent'), torch.Size([4, 2]))
        >>> [round(probability, 2) for probability in study.exceedance.tolist()]
        [0.06, 0.94]
    """

    models: tuple[str, ...]
    studies: tuple[str, ...]
    fixed_log_evidence: Tensor
    frequency: Tensor
    frequency_sd: Tensor
    exceedance: Tensor
    omnibus_risk: float
    assignment: Tensor
    log_evidence: float
    method: str

    @property
    def fixed_probability(self) -> Tensor:
        """Posterior probability of each model, where all studies follow the same."""
        return torch.softmax(self.fixed_log_evidence, 0)

    @property
    def protected_exceedance(self) -> Tensor:
        """
        The probability that each model is the most frequent, allowing for none being so.

        (Rigoux, Stephan, Friston and Daunizeau 2014, https://doi.org/10.1016/j.neuroimage.2013.08.065)
        """
        return (1 - self.omnibus_risk) * self.exceedance + self.omnibus_risk / len(self.models)

    def table(self) -> pd.DataFrame:
        """A table of the models, one row each, the most frequent first."""
        import pandas as pd

        columns = {
            "frequency": self.frequency,
            "frequency_sd": self.frequency_sd,
            "exceedance": self.exceedance,
            "protected_exceedance": self.protected_exceedance,
            "fixed_log_evidence": self.fixed_log_evidence,
            "fixed_probability": self.fixed_probability,
        }
        table = pd.DataFrame({name: values.numpy() for name, values in columns.items()}, index=list(self.models))
        return table.sort_values("frequency", ascending=False, kind="stable")

    def assignments(self) -> pd.DataFrame:
        """A table of the probability of each model (columns) in each study (rows)."""
        import pandas as pd

        return pd.DataFrame(self.assignment.numpy(), index=list(self.studies), columns=list(self.models))

    def __repr__(self) -> str:
        best = int(self.frequency.argmax())
        return (
            f"GroupStudy({len(self.studies)} studies, {len(self.models)} models, {self.method}): {self.models[best]} "
            f"in {float(self.frequency[best]):.0%} ± {float(self.frequency_sd[best]):.0%}, exceedance "
            f"{float(self.exceedance[best]):.3f}, protected {float(self.protected_exceedance[best]):.3f}"
        )


def group_study(
    log_evidences: pd.DataFrame | Mapping[str, Sequence[float]] | Any, *, prior: float = 1.0, method: str = "auto"
) -> GroupStudy:
    """
    Which of several models the studies of a group (subjects, sites, species) follow.

    Each study follows one of the models, with frequencies that are unknown (K. E. Stephan et al. (2009), *Bayesian
    model selection for group studies*, https://doi.org/10.1016/j.neuroimage.2009.03.025).

    :param log_evidences: the log evidence of each model (columns) in each study (rows), in nats: a data frame, a
        mapping from model to a number for each study, or a tensor or an array. What all models of a study have in
        common does not matter.
    :param prior: concentration a of the Dirichlet prior of the frequencies; 1 takes all frequencies for equally
        probable.
    :param method: ``"exact"`` counts all ways to divide the studies between the models; ``"variational"`` is the
        approximation of that paper, by a single Dirichlet; ``"auto"`` takes the first where the ways are no
        more than 25,000.
    :return: the :class:`GroupStudy`.
    :raises ReductionError: for log evidences that make no table, are NaN or infinite, or are of fewer than two models,
        for a concentration that is not positive, and for too many ways to be counted.

    Example::

        >>> from pyro_bmrs import group_study
        >>> study = group_study({"linear": [-10.0, -12.0, -9.0, -11.0], "bent": [-12.0, -14.5, -8.0, -14.0]})
        >>> study
        GroupStudy(4 studies, 2 models, exact): linear in 74% ± 19%, exceedance 0.869, protected 0.706
    """
    if method not in METHODS:
        raise ReductionError(f"method must be one of {', '.join(map(repr, METHODS))}, not {method!r}")
    check_number(prior, "the concentration of the prior", above=0)
    table, models, studies = _read(log_evidences)
    num_studies, num_models = table.shape
    ways = math.comb(num_studies + num_models - 1, num_models - 1)
    if method == "exact" and ways > _MOST_COUNTS:
        raise ReductionError(
            f"there are {ways:,} ways to divide {num_studies} studies between {num_models} models, more than can be "
            "counted; take method='variational'"
        )
    exact = method == "exact" or (method == "auto" and ways <= _MOST_COUNTS)
    highest = table.amax(-1, keepdim=True)
    found = (_count if exact else _approximate)(table - highest, float(prior))
    null = (table - highest).logsumexp(-1).sum() - num_studies * math.log(num_models)
    risk = float(torch.sigmoid(null - found.log_evidence))
    return GroupStudy(
        models,
        studies,
        table.sum(0),
        found.frequency,
        found.variance.sqrt(),
        found.exceedance,
        risk,
        found.assignment,
        float(found.log_evidence + highest.sum()),
        "exact" if exact else "variational",
    )


def _read(given: Any) -> tuple[Tensor, tuple[str, ...], tuple[str, ...]]:
    if isinstance(given, Mapping):
        import pandas as pd

        try:
            given = pd.DataFrame({model: _column(of_studies) for model, of_studies in given.items()})
        except ValueError as error:
            raise ReductionError(
                f"log_evidences has models with other numbers of studies ({error}); give each all of them"
            ) from error
    models, studies = getattr(given, "columns", None), getattr(given, "index", None)
    table = numbers(given, "log_evidences")
    if table.dim() != 2 or table.shape[0] < 1 or table.shape[1] < 2:
        raise ReductionError(
            f"log_evidences has the shape {tuple(table.shape)}; give a table with a row for each study and a column "
            "for each of at least two models"
        )
    wrong = ~table.isfinite()
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ReductionError(
            f"log_evidences is NaN or infinite at {int(wrong.sum())} of {wrong.numel()} places, first in study {row}, "
            f"model {column}; leave out what has no evidence"
        )
    names = [str(name) for name in (models if models is not None else range(table.shape[1]))]
    rows = [str(name) for name in (studies if studies is not None and not callable(studies) else range(len(table)))]
    return table, tuple(names), tuple(rows)


def _column(of_studies: Any) -> Any:
    """What a model has in each study, with the names of studies, if there are any."""
    if isinstance(of_studies, Tensor):
        return of_studies.detach().cpu().numpy()
    if isinstance(of_studies, Mapping):
        import pandas as pd

        return pd.Series(of_studies)
    return of_studies


@dataclass(frozen=True, eq=False)
class _Posterior:
    """Of the frequencies: mean, variance, exceedance; of the models of the studies; and the log evidence."""

    frequency: Tensor
    variance: Tensor
    exceedance: Tensor
    assignment: Tensor
    log_evidence: Tensor


def _count(table: Tensor, prior: float) -> _Posterior:
    """All counts of studies that follow each model, each with its weight."""
    num_studies, num_models = table.shape
    counts, below = _all_counts(num_studies, num_models)
    # Of counts of the first n studies: those of fewer studies are less by one somewhere.
    log_ways = [torch.zeros(1, dtype=table.dtype)]
    for number, row in enumerate(table):
        padded = torch.cat([log_ways[-1], log_ways[-1].new_full((1,), -torch.inf)])
        log_ways.append((padded[below[number]] + row).logsumexp(-1))
    alpha, total = prior + counts.double(), num_models * prior + num_studies
    log_dirichlet = (torch.lgamma(alpha) - math.lgamma(prior)).sum(-1) + math.lgamma(num_models * prior)
    log_weights = log_ways[-1] + log_dirichlet - math.lgamma(total)
    log_evidence = log_weights.logsumexp(0)
    weights = (log_weights - log_evidence).exp()
    frequency = weights @ alpha / total
    second = weights @ (alpha * (alpha + 1)) / (total * (total + 1))
    exceedance = weights @ _exceedance_of_counts(counts, prior)
    return _Posterior(
        frequency,
        second - frequency.square(),
        exceedance,
        _assign(table, weights, below, log_ways),
        log_evidence,
    )


def _assign(table: Tensor, weights: Tensor, below: list[Tensor], log_ways: list[Tensor]) -> Tensor:
    """The probability of each model in each study: the counts are walked back, study by study."""
    found = []
    for number in range(len(table) - 1, -1, -1):
        padded = torch.cat([log_ways[number], log_ways[number].new_full((1,), -torch.inf)])
        share = torch.softmax(padded[below[number]] + table[number], -1).nan_to_num(0.0) * weights.unsqueeze(-1)
        found.append(share.sum(0))
        weights = torch.zeros(len(padded), dtype=table.dtype).index_add_(0, below[number].flatten(), share.flatten())
        weights = weights[:-1]
    return torch.stack(found[::-1])


def _all_counts(num_studies: int, num_models: int) -> tuple[Tensor, list[Tensor]]:
    """
    The ways to divide all studies between the models, shape ``(ways, num_models)``, and where each comes from.

    The latter for each number of studies, each of its ways and each model: the place among the ways of one study less,
    of that in which the model has one less.
    """
    below: list[Tensor] = []
    before = {(0,) * num_models: 0}
    ways = list(before)
    for number in range(1, num_studies + 1):
        ways = _divisions(number, num_models)
        rows = [
            [before.get((*way[:k], way[k] - 1, *way[k + 1 :]), len(before)) for k in range(num_models)] for way in ways
        ]
        below.append(torch.tensor(rows))
        before = {way: place for place, way in enumerate(ways)}
    return torch.tensor(ways), below


def _divisions(count: int, parts: int) -> list[tuple[int, ...]]:
    bars = itertools.combinations(range(count + parts - 1), parts - 1)
    edges = ((-1, *bar, count + parts - 1) for bar in bars)
    return [tuple(high - low - 1 for low, high in itertools.pairwise(edge)) for edge in edges]


def _exceedance_of_counts(counts: Tensor, prior: float) -> Tensor:
    """For Dirichlets of concentrations ``prior + counts``, of shape ``(ways, num_models)``, as :func:`exceedance`."""
    table = _gamma_table(prior + torch.arange(int(counts.max()) + 1, dtype=torch.double))
    parts = [_most_frequent(part, *table) for part in counts.split(500)]
    return torch.cat(parts)


def exceedance(alpha: Tensor) -> Tensor:
    """
    The probability that each component of a Dirichlet is the largest.

    Components are gammas over their sum, so that it is the integral of the density of one gamma times the distribution
    functions of the others, taken by quadrature.

    :param alpha: the concentrations, shape ``(num_models,)``.

    Example::

        >>> exceedance(torch.tensor([2.0, 1.0], dtype=torch.double))
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    values, which = alpha.unique(return_inverse=True)
    return _most_frequent(which.unsqueeze(0), *_gamma_table(values))[0]


def _gamma_table(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Log mass at nodes, and log distribution function there, of gammas, shape ``(len(alpha), num_nodes)``."""
    # In the logarithm of the gamma, whose density falls off as its exponential below, and faster above: even panels as
    # wide as the narrowest peak, and below all peaks such as grow.
    least, most = float(alpha.min()), float(alpha.max())
    high, low = math.log(most + 10 * math.sqrt(most) + 40), min(math.log(least), 0.0) - 4
    even = torch.linspace(low, high, 2 + math.ceil((high - low) * max(math.sqrt(most), 2.0) / 2), dtype=alpha.dtype)
    growing = (even[1] - even[0]) * 1.3 ** torch.arange(1, 200, dtype=alpha.dtype)
    below = low - growing.cumsum(0)
    below = below[: int((below > low - 40 / least).sum()) + 1]
    edges = torch.cat([below.flip(0), even])
    at, weights = nodes(edges[:-1], edges[1:])
    t, weights = at.flatten(), weights.flatten()
    alpha = alpha.unsqueeze(-1)
    log_mass = alpha * t - t.exp() - torch.lgamma(alpha) + weights.log()
    # Far below, where the function underflows, it is the first terms of its series.
    cdf = torch.special.gammainc(alpha, t.exp())
    series = alpha * t - t.exp() - torch.lgamma(alpha + 1) - torch.log1p(-(t.exp() / (alpha + 1)).clamp(max=0.9))
    log_cdf = torch.where(cdf > 1e-200, cdf.log(), series)
    return log_mass, log_cdf


def _most_frequent(which: Tensor, log_mass: Tensor, log_cdf: Tensor) -> Tensor:
    """By rows of the table for each component, shape ``(ways, num_models)``."""
    cdfs = log_cdf[which]
    others = cdfs.sum(-2, keepdim=True) - cdfs
    found = (log_mass[which] + others).logsumexp(-1).exp()
    return found / found.sum(-1, keepdim=True)


def _approximate(table: Tensor, prior: float) -> _Posterior:
    """One Dirichlet, by the fixed point of Stephan et al. (2009)."""
    num_studies, num_models = table.shape
    alpha = torch.full((num_models,), prior + num_studies / num_models, dtype=table.dtype)
    for _ in range(_MOST_STEPS):
        log_frequency = torch.special.digamma(alpha) - torch.special.digamma(alpha.sum())
        assignment = torch.softmax(table + log_frequency, -1)
        before, alpha = alpha, prior + assignment.sum(0)
        if (alpha - before).abs().max() < 1e-10 * num_studies:
            break
    log_frequency = torch.special.digamma(alpha) - torch.special.digamma(alpha.sum())
    total = alpha.sum()
    frequency = alpha / total
    joint = math.lgamma(num_models * prior) - num_models * math.lgamma(prior) + (prior - 1) * log_frequency.sum()
    entropy = torch.lgamma(alpha).sum() - torch.lgamma(total) - ((alpha - 1) * log_frequency).sum()
    expected = (assignment * (table + log_frequency)).sum() - torch.special.xlogy(assignment, assignment).sum()
    variance = frequency * (1 - frequency) / (total + 1)
    return _Posterior(frequency, variance, exceedance(alpha), assignment, joint + entropy + expected)
