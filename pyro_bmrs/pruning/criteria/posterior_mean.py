# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The posterior mean of the noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pyro_bmrs.errors import check_number
from pyro_bmrs.pruning.criteria.criterion import Criterion, Scores
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal


@dataclass(frozen=True)
class PosteriorMean(Criterion):
    """
    The posterior mean of the noise: the smallest go first.

    :param threshold: units up to it go, 0.1 in D. Wright, C. Igel and R. Selvan (2024), *BMRS: Bayesian model reduction
        for structured pruning*, https://arxiv.org/abs/2406.01345; by default there is none, and ``fraction`` says how
        many go.
    :raises ReductionError: for a threshold that is no finite number.

    Example::

        >>> from pyro_bmrs.pruning import PosteriorMean
        >>> PosteriorMean().decides, PosteriorMean(0.1).decides
        (False, True)
    """

    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_number(self.threshold, "the threshold of a posterior mean")

    @property
    def decides(self) -> bool:  # type: ignore[override]
        """Whether there is a threshold."""
        return self.threshold is not None

    def scores(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
        """The mean; 0 for units that are gone."""
        return guide.mean_noise()

    def margins(self, scores: Scores) -> Scores:
        """How far the mean is below the threshold, or below 0 where there is none."""
        return {name: (self.threshold or 0.0) - score for name, score in scores.items()}
