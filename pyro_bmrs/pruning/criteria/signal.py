# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Criteria that read the moments of the noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_bmrs.distributions import TruncatedLogNormal
from pyro_bmrs.pruning.criteria.criterion import Criterion, Scores
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal


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
