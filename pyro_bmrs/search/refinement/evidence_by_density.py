# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
The evidence of reduced models by the model's own density.

The reduced posterior :math:`s` of a model is where its evidence is decided, and the density of the model there is at
hand however far it is out in the tail of the fit. For any x, the log evidence is
:math:`\log p(y, x) - \log p(x \mid y)` (Besag 1989, "A candidate's formula",
https://doi.org/10.1093/biomet/76.1.183). With :math:`s` for the posterior, it is taken at the mean of :math:`s`, one
evaluation for each model. What is read off the fit alone is the same with the density continued from the full posterior
as a normal. Where :math:`s` is not the posterior, the formula has another value at each x, and the mean of its
exponential over draws of :math:`s` is the evidence all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bmrs.search.averaging.conditioning import Normals, reduced_normals
from pyro_bmrs.search.observations import NormalSpace

# Numbers in the square roots of the models' covariances, and in the points at which they are evaluated, at once.
_BATCH = 2**22


class DrawnEvidence(NamedTuple):
    """
    The evidence of some models by draws of their reduced posteriors.

    :param value: in nats, shape ``(k,)``.
    :param standard_error: of each, in nats.
    :param share: effective sample size over the number of draws, of each.
    """

    value: Tensor
    standard_error: Tensor
    share: Tensor


class DensityEvidence:
    """
    The log evidence of reduced models, up to the same constant for all.

    :param space: the full posterior and the reductions of its elements.
    :param log_density: of the full model's data and sites, in the coordinates of the posterior, of points of shape
        ``(num_points, n)``.
    """

    def __init__(self, space: NormalSpace, log_density: Callable[[Tensor], Tensor]) -> None:
        self.space, self._log_density, self.num_evaluations = space, log_density, 0

    def at_mean(self, reduced: Tensor) -> Tensor:
        """
        At the mean of each reduced posterior, shape ``(k,)``.

        :param reduced: which groups are reduced in each model, shape ``(k, num_groups)``, boolean.
        """
        size = max(1, min(4096, _BATCH // len(self.space.loc) ** 2))
        return torch.cat([self._at_mean(part) for part in reduced.split(size)])

    def _at_mean(self, reduced: Tensor) -> Tensor:
        normals = reduced_normals(self.space, reduced)
        return self._candidates(normals.loc, reduced, _log_height(normals))

    def by_draws(self, reduced: Tensor, num_draws: int, generator: torch.Generator) -> DrawnEvidence:
        """
        By draws of each reduced posterior, in pairs about its mean.

        :param reduced: as for :meth:`at_mean`.
        :param num_draws: for each model; an even number. Models have the luck of the draws in common.
        """
        noise = torch.randn(num_draws // 2, len(self.space.loc), dtype=torch.double, generator=generator)
        noise = torch.cat([noise, -noise]).to(self.space.loc)
        size = max(1, _BATCH // (noise.numel() + len(self.space.loc) ** 2))
        log_weights = torch.cat([self._at_draws(part, noise) for part in reduced.split(size)])
        total = log_weights.logsumexp(-1)
        shares = (log_weights - total.unsqueeze(-1)).exp().nan_to_num(0.0)
        spread = (shares - 1 / num_draws).square().sum(-1) * num_draws / (num_draws - 1)
        share = 1 / (shares.square().sum(-1).clamp(min=1e-300) * num_draws)
        return DrawnEvidence(total - math.log(num_draws), spread.sqrt(), share.clamp(max=1.0))

    def _at_draws(self, reduced: Tensor, noise: Tensor) -> Tensor:
        normals = reduced_normals(self.space, reduced)
        free = (~normals.fixed).unsqueeze(1)
        own = torch.where(free, noise, 0.0)
        points = normals.loc.unsqueeze(1) + own @ normals.scale_tril.mT
        log_prob = _log_height(normals).unsqueeze(-1) - 0.5 * own.square().sum(-1)
        count = len(noise)
        at_each = self._candidates(points.flatten(0, 1), reduced.repeat_interleave(count, 0), log_prob.flatten())
        return at_each.reshape(-1, count)

    def _candidates(self, points: Tensor, reduced: Tensor, log_prob: Tensor) -> Tensor:
        """The candidate's formula at some points, each of a model, where its reduced posterior has a log density."""
        self.num_evaluations += len(points)
        return self._log_density(points) + _log_ratios(self.space, points, reduced) - log_prob


def _log_height(normals: Normals) -> Tensor:
    """The log density of each normal at its mean, over the elements that are not fixed."""
    free = (~normals.fixed).sum(-1)
    return -normals.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * free * math.log(2 * math.pi)


def _log_ratios(space: NormalSpace, points: Tensor, reduced: Tensor) -> Tensor:
    """The log of reduced prior over prior, of the elements that are reduced; of a point, what the prior has there."""
    noise = torch.where(space.pinned, 1.0, space.noise)
    density = -0.5 * noise.log() - 0.5 * (space.target - space.slope * points[:, space.at]).square() / noise
    ratio = space.constant + torch.where(space.pinned, 0.5 * math.log(2 * math.pi), density)
    return torch.where(reduced[:, space.label], ratio, 0.0).sum(-1)
