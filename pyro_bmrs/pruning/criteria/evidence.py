# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Criteria of Bayesian model reduction: the change in log evidence when a unit's noise is given a prior near 0.

They are those of D. Wright, C. Igel and R. Selvan (2024), *BMRS: Bayesian model reduction for structured pruning*,
https://arxiv.org/abs/2406.01345. The evidence is that of :func:`pyro_bmrs.evidence.log_evidence_change`; what the user
prefers, ``prior_log_odds``, is added apart from it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributions import Distribution

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence import log_evidence_change
from pyro_bmrs.pruning.criteria.criterion import Criterion, Scores
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal


class EvidenceCriterion(Criterion):
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
class BMRS_N(EvidenceCriterion):
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
class BMRS_U(EvidenceCriterion):
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
