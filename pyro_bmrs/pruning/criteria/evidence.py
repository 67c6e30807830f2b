# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Criteria of Bayesian model reduction: the change in log evidence when a unit's noise is given a prior near 0.

They are those of D. Wright, C. Igel and R. Selvan (2024), *BMRS: Bayesian model reduction for structured pruning*,
https://arxiv.org/abs/2406.01345. The evidence is that of :func:`pyro_bmrs.evidence.log_evidence_change`; what the user
prefers, ``prior_log_odds``, is added apart from it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributions import Distribution

from pyro_bmrs.distributions import LogUniform
from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence import log_evidence_change
from pyro_bmrs.pruning.criteria.criterion import Criterion, Scores
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal


class EvidenceCriterion(Criterion):
    """
    The change in log evidence under a reduced prior, which a derived class names.

    ``prior_log_odds`` are those for removal, in nats: a number, or one for each site; 1 unless a derived class says
    otherwise.

    Example::

        >>> from pyro_bmrs.distributions import LogUniform
        >>> from pyro_bmrs.pruning import EvidenceCriterion
        >>> class LowestTenth(EvidenceCriterion):
        ...     def reduced_prior(self, prior):
        ...         return LogUniform(prior.low, prior.low**0.9 * prior.high**0.1)
        >>> LowestTenth().name
        'LowestTenth'
    """

    decides = True
    adds = True
    prior_log_odds: float | Mapping[str, float] = 1.0

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
