# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The signal-to-noise ratio of the noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pyro_bmrs.errors import check_number
from pyro_bmrs.pruning.criteria.criterion import Criterion, Scores
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal


@dataclass(frozen=True)
class SNR(Criterion):
    """
    The signal-to-noise ratio of the noise, its mean over its standard deviation.

    The criterion of K. Neklyudov et al. (2017), *Structured Bayesian pruning via log-normal multiplicative noise*,
    https://arxiv.org/abs/1705.07283.

    :param threshold: units up to it go.
    :raises ReductionError: for a threshold that is no finite number.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, SNR, attach_noise, prune
        >>> _ = torch.manual_seed(0)
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> with torch.no_grad():  # in place of fitting
        ...     guide.noise_locs[:3], guide.noise_log_scales[:3] = -20.0, 2.0
        >>> prune(net, guide, SNR()).num_kept
        1
    """

    threshold: float = 1.0
    decides = True

    def __post_init__(self) -> None:
        check_number(self.threshold, "the threshold of a signal-to-noise ratio")

    def scores(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
        """Mean over standard deviation; 0 for units that are gone."""
        scores = {}
        with torch.no_grad():
            for name, noise in guide.noise.items():
                posterior = guide.noise_posterior(name)
                scores[name] = torch.where(noise.kept, posterior.mean / posterior.stddev, 0.0)
        return scores

    def margins(self, scores: Scores) -> Scores:
        """How far the ratio is below the threshold."""
        return {name: self.threshold - score for name, score in scores.items()}
