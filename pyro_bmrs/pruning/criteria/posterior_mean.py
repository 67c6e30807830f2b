# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The posterior mean of the noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pyro_bmrs.pruning.criteria.criterion import Criterion, Scores
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal


@dataclass(frozen=True)
class PosteriorMean(Criterion):
    """The posterior mean of the noise: the smallest go first, as many as ``fraction`` says."""

    def scores(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
        """The mean; 0 for units that are gone."""
        return guide.mean_noise()
