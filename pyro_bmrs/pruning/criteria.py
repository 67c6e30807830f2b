# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Criteria of pruning that read the posterior of the noise: a score for each unit, and a decision where there is one.

Those of Bayesian model reduction (D. Wright, C. Igel and R. Selvan (2024), *BMRS: Bayesian model reduction for
structured pruning*, https://arxiv.org/abs/2406.01345) score a unit by the change in log evidence when its noise is
given a prior near 0. The evidence is that of :func:`pyro_bmrs.evidence.log_evidence_change`; what the user prefers,
``prior_log_odds``, is added apart from it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence import log_evidence_change
from pyro_bmrs.pruning.attachment import noise_sites
from pyro_bmrs.pruning.guide import AutoTruncatedLogNormal

Scores: TypeAlias = dict[str, Tensor]


class Criterion(ABC):
    """
    What decides which units go.

    ``decides`` says whether the criterion has a threshold of its own; else :func:`~pyro_bmrs.pruning.prune` has to be
    told how many units to remove.
    """

    decides: bool = False

    @abstractmethod
    def scores(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
        """
        A score for each unit, by site; of shape ``(num_units,)`` each, without gradients.

        :param net: a network with noise.
        :param guide: the fitted guide of its noise.
        """

    @abstractmethod
    def margins(self, scores: Scores) -> Scores:
        """
        How much speaks for the removal of each unit: the larger, the sooner it goes.

        Those of units that go together are added. Where the criterion ``decides``, a unit goes from 0 on.

        :param scores: what :meth:`scores` returned.
        """

    @property
    def name(self) -> str:
        """What tables call it."""
        return type(self).__name__


def score_units(criterion: Criterion, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
    """
    A criterion's scores, checked.

    :raises ReductionError: for a guide of another network, one that is not fitted, or parameters that are not finite.
    """
    check_guide(net, guide)
    scores = criterion.scores(net, guide)
    for name, score in scores.items():
        if score.isnan().any():
            raise ReductionError(
                f"{criterion.name} gives {int(score.isnan().sum())} of {len(score)} units at site {name!r} a score "
                "that is NaN: the weights, or the noise, are not finite"
            )
    return scores


def check_guide(net: nn.Module, guide: AutoTruncatedLogNormal) -> None:
    """
    Sees that a guide belongs to a network, and has been fitted.

    :raises ReductionError: if not.
    """
    if not isinstance(guide, AutoTruncatedLogNormal):
        raise ReductionError(f"the guide of the noise is an AutoTruncatedLogNormal, not a {type(guide).__name__}")
    sites = noise_sites(net)
    if not sites:
        raise ReductionError("the network has no noise; attach_noise(net) puts it there, and training fits it")
    if sites.keys() != guide.noise.keys() or any(sites[name].noise is not guide.noise[name] for name in sites):
        raise ReductionError(
            f"the guide belongs to another network: its noise sites are {sorted(guide.noise)}, the network's "
            f"{sorted(sites)}; give the network that it was made for (and no copy of it)"
        )
    bad = int((~guide.noise_parameters.isfinite()).sum())
    if bad:
        raise ReductionError(f"{bad} of the guide's {guide.noise_parameters.numel()} noise parameters are not finite")
    if not guide.is_fitted:
        raise ReductionError("the guide is not fitted: its noise is where it began; train before pruning")


class _Evidence(Criterion):
    """The change in log evidence under a reduced prior."""

    decides = True
    prior_log_odds: float | Mapping[str, float]

    @abstractmethod
    def reduced_prior(self, prior: LogUniform) -> Distribution:
        """
        The prior of the noise of a unit that is as good as gone.

        :param prior: the log-uniform prior of the units of a site.
        """

    def scores(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
        """The change in log evidence in nats, positive where the unit is better gone; 0 for units that are gone."""
        scores = {}
        with torch.no_grad():
            for name, noise in guide.noise.items():
                prior = noise.unit_prior
                change = log_evidence_change(guide.noise_posterior(name), prior, self.reduced_prior(prior))
                scores[name] = torch.where(noise.kept, change, 0.0)
        return scores

    def margins(self, scores: Scores) -> Scores:
        """The posterior log odds for removal: the change in log evidence plus the prior log odds."""
        return {name: score + self._odds(name, scores) for name, score in scores.items()}

    def _odds(self, name: str, scores: Scores) -> float:
        if not isinstance(self.prior_log_odds, Mapping):
            return self.prior_log_odds
        if name not in self.prior_log_odds:
            raise ReductionError(
                f"prior_log_odds has no entry for noise site {name!r}; it has {sorted(self.prior_log_odds)}, and the "
                f"sites are {sorted(scores)}"
            )
        return self.prior_log_odds[name]


@dataclass(frozen=True)
class BMRS_N(_Evidence):
    r"""
    The change in log evidence when the noise is all but 0: a log-normal prior at the low end of its interval.

    As ``scale`` goes to 0 it becomes the Savage-Dickey ratio there, the posterior's log density less the prior's.

    :param prior_log_odds: for removal, in nats; a number, or one for each site, as :func:`in_proportion_to_cost` gives
        in proportion to what a unit costs. A unit of which the data say nothing has a change in log evidence near 0,
        for every reduced prior: this is what decides about it. By default 1, the limit of what Jeffreys calls evidence
        not worth more than a bare mention.
    :param scale: scale of the logarithm under the reduced prior.
    """

    prior_log_odds: float | Mapping[str, float] = 1.0
    scale: float = 1e-6

    @classmethod
    def paper(cls) -> BMRS_N:
        r"""The rule of the paper's code, whose evidence lacks a factor of :math:`1/\sqrt{2\pi}`, as odds."""
        return cls(prior_log_odds=0.5 * math.log(2 * math.pi))

    def reduced_prior(self, prior: LogUniform) -> Distribution:
        """A truncated log-normal on the prior's interval, at its low end."""
        return TruncatedLogNormal(prior.low.log(), self.scale, prior.low, prior.high)


@dataclass(frozen=True)
class BMRS_U(_Evidence):
    r"""
    The change in log evidence when the noise is confined to values that fewer bits round to 0.

    The reduced prior is log-uniform up to :math:`2^{-p_1}`. The change cannot exceed the log of the ratio of the widths
    of both intervals, 0.32 nats for the default interval and 8 bits, and comes near it for units that collapsed.

    :param p1: the number of bits, 8 or 4 in the paper.
    :param prior_log_odds: see :class:`BMRS_N`.
    :param low: lower end of the reduced prior; by default that of the prior.
    """

    p1: float = 8
    prior_log_odds: float | Mapping[str, float] = 1.0
    low: float | None = None

    @classmethod
    def paper(cls, p1: float = 8) -> BMRS_U:
        """The rule of the paper's code: from 2^-23 on, at even odds."""
        return cls(p1, prior_log_odds=0.0, low=2.0**-23)

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"BMRS_U-{self.p1:g}"

    def reduced_prior(self, prior: LogUniform) -> Distribution:
        """A log-uniform from the low end to ``2^-p1``."""
        low = prior.low if self.low is None else torch.full_like(prior.low, self.low)
        return LogUniform(low, torch.full_like(low, 2.0**-self.p1))


@dataclass(frozen=True)
class SNR(Criterion):
    """
    The signal-to-noise ratio of the noise, its mean over its standard deviation.

    The criterion of K. Neklyudov et al. (2017), *Structured Bayesian pruning via log-normal multiplicative noise*,
    https://arxiv.org/abs/1705.07283.

    :param threshold: units up to it go.
    """

    threshold: float = 1.0
    decides = True

    def scores(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
        """Mean over standard deviation; 0 for units that are gone."""
        with torch.no_grad():
            return {name: _where_kept(guide, name, noise.mean / noise.stddev) for name, noise in _posteriors(guide)}

    def margins(self, scores: Scores) -> Scores:
        """How far the ratio is below the threshold."""
        return {name: self.threshold - score for name, score in scores.items()}


@dataclass(frozen=True)
class PosteriorMean(Criterion):
    """The posterior mean of the noise; without a threshold of its own."""

    def scores(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
        """The mean; 0 for units that are gone."""
        return guide.mean_noise()

    def margins(self, scores: Scores) -> Scores:
        """The smallest go first."""
        return {name: -score for name, score in scores.items()}


def _posteriors(guide: AutoTruncatedLogNormal) -> list[tuple[str, TruncatedLogNormal]]:
    return [(name, guide.noise_posterior(name)) for name in guide.noise]


def _where_kept(guide: AutoTruncatedLogNormal, name: str, score: Tensor) -> Tensor:
    return torch.where(guide.noise[name].kept, score, 0.0)
