# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Where the densities of a triple may have mass and features, before anything is integrated."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, TransformedDistribution

from pyro_bmrs.evidence.quadrature.line import Line
from pyro_bmrs.evidence.support import Interval
from pyro_bmrs.structure.vectorised import own_random_numbers, set_seed

_PROBABILITIES = (1e-6, 0.01, 0.2, 0.5, 0.8, 0.99, 1 - 1e-6)
_DRAWS = 25


class Survey(NamedTuple):
    """
    What to look at, in unconstrained coordinates on an interval.

    :param marks: points at which a density may have features, along a first dimension before the batch shape.
    :param centre: where resolution and mass are most likely needed.
    :param width: of what is there.
    """

    marks: Tensor
    centre: Tensor
    width: Tensor


def survey(posterior: Distribution, prior: Distribution, reduced_prior: Distribution, interval: Interval) -> Survey:
    """
    Quantiles (or draws, where there are none) and locations of the three, and the middle of the narrower of q and r.

    :param interval: the support that the three have in common.
    """
    triple = posterior, prior, reduced_prior
    shape = torch.broadcast_shapes(*(distribution.batch_shape for distribution in triple))
    landmarks = [_landmarks(distribution, shape) for distribution in triple]
    plain = Line(interval, landmarks[0].new_zeros(shape), landmarks[0].new_ones(shape))
    q, p, r = [plain.unconstrained(x).nan_to_num().sort(0).values for x in landmarks]
    # The narrower of q and r is where both resolution and the mass of their product are most likely needed.
    spread_q, spread_r = _spread(q), _spread(r)
    at_r = spread_r < spread_q
    centre = torch.where(at_r, r[len(r) // 2], q[len(q) // 2])
    width = torch.where(at_r, spread_r, spread_q).clamp(min=torch.finfo(centre.dtype).tiny ** 0.25)
    return Survey(torch.cat([q, p, r]), centre, width)


def _spread(points: Tensor) -> Tensor:
    """How far apart the middle half of sorted points is."""
    return points[int(0.75 * len(points))] - points[int(0.25 * len(points))]


def _landmarks(distribution: Any, shape: torch.Size) -> Tensor:
    """Where a distribution's mass and features may be, along a first dimension before those of a batch shape."""
    points = _features(distribution)
    points = points.reshape(points.shape[:1] + (1,) * (len(shape) + 1 - points.dim()) + points.shape[1:])
    return points.expand(points.shape[:1] + shape)


def _features(distribution: Any) -> Tensor:
    if isinstance(distribution, TransformedDistribution):
        points = _features(distribution.base_dist)
        for transform in distribution.transforms:
            points = transform(points)
        return points
    if isinstance(distribution, MixtureSameFamily):
        return _features(distribution.component_distribution).movedim(-1, 0).flatten(0, 1)
    try:
        like = _draws(distribution, 1)
        levels = torch.tensor(_PROBABILITIES, dtype=like.dtype, device=like.device)
        points = distribution.icdf(levels.reshape((-1,) + (1,) * len(distribution.batch_shape)))
    except NotImplementedError:
        points = _draws(distribution, _DRAWS).sort(0).values
    location = getattr(distribution, "loc", None)
    if isinstance(location, Tensor) and location.shape == points.shape[1:]:
        points = torch.cat([points, location.unsqueeze(0)])
    return points


def _draws(distribution: Distribution, count: int) -> Tensor:
    """Draws that are the same each time and leave the global generators as they are."""
    with own_random_numbers():
        set_seed(0)
        return distribution.sample(torch.Size([count]))
