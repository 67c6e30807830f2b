# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The posterior averaged over a space of models: a distribution for each site, and joint draws."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.errors import ReductionWarning
from pyro_bmrs.search.averaging.averages import NormalAverage, SwitchingAverage, SwitchingMixture
from pyro_bmrs.search.averaging.conditioning import reduced_normals
from pyro_bmrs.search.groups import Groups
from pyro_bmrs.search.observations import NormalSpace
from pyro_bmrs.search.probabilities.models import IndependentModels, ModelPosterior
from pyro_bmrs.structure.coordinates import Block

# Numbers in the covariances of the models that are averaged, unless a number of models is asked for.
_BUDGET = 2**24
_ENOUGH = 0.99


class ModelAverage(Protocol):
    """The posterior averaged over models."""

    def sites(self) -> dict[str, Distribution]:
        """The averaged posterior of each site."""

    def draw(self, num_samples: int) -> dict[str, Tensor]:
        """Joint draws of the sites, along the first dimension."""


class AveragedPosterior(Protocol):
    """A posterior that can be averaged over models."""

    def average(self, models: Any, num_models: int | None) -> ModelAverage:
        """The average over the most probable models, or over all where that costs no more."""


@dataclass(frozen=True)
class SwitchingPosterior:
    """
    The average for a posterior that is independent between groups, which is exact.

    :param switched: for each site, its posterior and its reduced posterior, element by element.
    :param groups: which elements switch together.
    """

    switched: Mapping[str, tuple[Distribution, Distribution]]
    groups: Groups

    def average(self, models: ModelPosterior, num_models: int | None) -> ModelAverage:
        """
        All models are in it, whatever ``num_models``, where the models' groups are independent.

        :warns ReductionWarning: where they are not, and the models averaged hold less than 99 % of the probability.
        """
        sites = self.switched.items()
        if isinstance(models, IndependentModels):
            inclusion = models.inclusion_probability
            independent = {n: SwitchingAverage(*sides, self.groups.labels[n], inclusion) for n, sides in sites}
            return _SwitchingModelAverage(independent, models)
        numbers = sum(label.numel() for label in self.groups.labels.values())
        kept, probability = _averaged(models, num_models or max(1, _BUDGET // numbers))
        mixtures = {n: SwitchingMixture(*sides, self.groups.labels[n], ~kept, probability) for n, sides in sites}
        return _SwitchingModelAverage(mixtures, models)


def _averaged(models: ModelPosterior, num_models: int) -> tuple[Tensor, Tensor]:
    """Which groups are reduced in the models that an average is made of, and their weights, which sum to 1."""
    main = models.for_average(num_models)
    share = float(main.probability.sum())
    if share < _ENOUGH:
        warnings.warn(
            f"the {len(main.probability):,} models averaged hold {share:.1%} of the probability of "
            f"{models.num_models:,}; ask for more with num_models=",
            ReductionWarning,
            stacklevel=4,
        )
    return main.reduced, main.probability / share


@dataclass(frozen=True)
class _SwitchingModelAverage:
    averages: Mapping[str, SwitchingAverage]
    models: ModelPosterior

    def sites(self) -> dict[str, Distribution]:
        return dict(self.averages)

    def draw(self, num_samples: int) -> dict[str, Tensor]:
        kept = ~self.models.sample(num_samples)
        return {name: average.sample_given(kept, kept.shape[:1]) for name, average in self.averages.items()}


@dataclass(frozen=True)
class NormalPosterior:
    """
    The average for a joint normal posterior: a mixture of normals, one for each of the most probable models.

    :param space: the posterior and the reductions of its elements.
    :param dtype: of the posterior that was fitted.
    """

    space: NormalSpace
    dtype: torch.dtype

    def average(self, models: ModelPosterior, num_models: int | None) -> ModelAverage:
        """
        The average over the most probable models, as many as asked for.

        :warns ReductionWarning: where these hold less than 99 % of the probability.
        """
        reduced, probability = _averaged(models, num_models or max(1, _BUDGET // len(self.space.loc) ** 2))
        normals = reduced_normals(self.space, reduced)
        loc, scale_tril = normals.loc.to(self.dtype), normals.scale_tril.to(self.dtype)
        joint = NormalAverage(probability.to(self.dtype), loc, scale_tril, normals.fixed)
        return _NormalModelAverage(joint, self.space.blocks)


@dataclass(frozen=True)
class _NormalModelAverage:
    joint: NormalAverage
    blocks: tuple[Block, ...]

    def sites(self) -> dict[str, Distribution]:
        return {block.name: self.joint.site(block) for block in self.blocks}

    def draw(self, num_samples: int) -> dict[str, Tensor]:
        packed = self.joint.sample(torch.Size([num_samples]))
        values = {block.name: (block.take(packed), block.transform) for block in self.blocks}
        return {name: value if to_site is None else to_site(value) for name, (value, to_site) in values.items()}
