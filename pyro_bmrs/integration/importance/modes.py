# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The modes of a model's joint density, and what lies around them.

A guide and draws know of the mode that they are at. Others are looked for from draws of the prior and from draws far
around the posterior, each of which climbs by Newton's method, with the curvature's absolute value where it is not that
of a top (Y. Dauphin et al. (2014), *Identifying and attacking the saddle point problem in high-dimensional non-convex
optimization*, https://arxiv.org/abs/1406.2572). Tops that single climbs came to are a sign of others that none came
to (I. J. Good (1953), *The population frequencies of species and the estimation of population parameters*,
https://doi.org/10.1093/biomet/40.3-4.237).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_MOST_STEPS = 20
# The rise that a step still promises, in nats, at which a climb is over.
_SMALLEST_RISE = 5e-3
# Two tops are one where each is nearer to the other than this, in squared units of its own spread.
_SAME = 0.1
# Modes are left out that are this much lighter, in nats, than the heaviest, or beyond the most.
_LIGHTEST, _MOST_MODES = 12.0, 12
# A mode counts as one that matters from this share of the whole.
_MATTERS = 0.005
_STEPS = (1.0, 0.5, 0.25, 0.1, 0.02, 1e-3)
# How far around the posterior starts are spread, in standard deviations.
_BREADTH = 5.0
# The smallest curvature that a step believes, in units of the posterior's.
_SMALLEST_CURVATURE = 1e-3


class Climbable(Protocol):
    """A log density of points of shape ``(num_points, dim)``, with derivatives."""

    def __call__(self, points: Tensor) -> Tensor:
        """The log density, shape ``(num_points,)``."""

    def derivatives(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Its first and second derivatives, shapes ``(num_points, dim)`` and ``(num_points, dim, dim)``."""

    def prior_points(self, num_points: int) -> Tensor:
        """Draws from the prior, shape ``(num_points, dim)``."""


@dataclass(frozen=True)
class Modes:
    """
    The modes that were found, the heaviest first.

    :param points: shape ``(num_modes, dim)``.
    :param covariances: of the normal distributions that touch the density there, shape ``(num_modes, dim, dim)``.
    :param unseen: an estimate of the chance that one start more would climb to a mode that matters and is not here.
    """

    points: Tensor
    covariances: Tensor
    unseen: float


def find_modes(log_density: Climbable, begins: Sequence[tuple[Tensor, Tensor]]) -> Modes:
    """
    The modes of a density.

    :param log_density: with its derivatives.
    :param begins: means and covariances around which to begin, beside the prior; the spread of the first is the unit.
    :return: those that matter; none where no climb came to a top.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_bmrs.integration.log_joint import LogJoint
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 3.0))
        ...     pyro.sample("square", dist.Normal(x**2, 0.1), obs=torch.tensor(4.0))
        >>> modes = find_modes(LogJoint(model), [(torch.tensor([2.0]), torch.tensor([[0.01]]))])
        >>> modes.points.sort(0).values.round(decimals=2)
        tensor([[-2.],
                [ 2.]], dtype=torch.float64)
    """
    loc, covariance = begins[0]
    dim = len(loc)
    num_starts = min(max(640 // dim, 8), 32) // 2
    root = torch.linalg.cholesky(covariance.double())
    around = loc + _BREADTH * torch.randn(num_starts, dim, dtype=torch.float64) @ root.mT
    given = torch.stack([mean.double() for mean, _ in begins])
    starts = torch.cat([given, around, log_density.prior_points(num_starts).double()])
    points, covariances, arrived = _climb(log_density, starts, root)
    roots, failed = torch.linalg.cholesky_ex(covariances)
    arrived = arrived & (failed == 0)
    if not arrived.any():
        return Modes(starts[:0], root.new_zeros(0, dim, dim), 0.0)
    # Of the climbs that arrived, those that were not begun at what is known.
    blind = (torch.arange(len(starts)) >= len(begins))[arrived]
    points, covariances, roots = points[arrived], covariances[arrived], roots[arrived]
    log_masses = log_density(points) + roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    distinct = _distinct(points, roots, log_masses)
    at = torch.tensor([place for place, _ in distinct])
    shares = torch.softmax(log_masses[at], 0)
    visits = torch.tensor([int((belongs & blind).sum()) for _, belongs in distinct])[shares >= _MATTERS]
    once = int((visits == 1).sum())
    # A single climb that came somewhere says nothing: there is too little to compare it with.
    unseen = once / int(visits.sum()) if once > 1 else 0.0
    kept = at[log_masses[at] >= log_masses[at].max() - _LIGHTEST][:_MOST_MODES]
    return Modes(points[kept], covariances[kept], unseen)


def _distinct(points: Tensor, roots: Tensor, log_masses: Tensor) -> list[tuple[int, Tensor]]:
    """A place for each distinct top, the heaviest first, and which points are at it."""
    found: list[tuple[int, Tensor]] = []
    free = torch.ones(len(points), dtype=torch.bool)
    for place in log_masses.argsort(descending=True).tolist():
        if free[place]:
            apart = torch.linalg.solve_triangular(roots[place], (points - points[place]).mT, upper=False)
            belongs = free & (apart.square().sum(0) < _SAME)
            free = free & ~belongs
            found.append((place, belongs))
    return found


def _climb(log_density: Climbable, starts: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    Where climbs end, the covariances of the normal distributions there, and which of them are at a top.

    :param root: of the covariance in whose units curvature is small or not.
    """
    points, values = starts.clone(), log_density(starts)
    covariances = torch.eye(starts.shape[1], dtype=starts.dtype).repeat(len(starts), 1, 1)
    arrived = torch.zeros(len(starts), dtype=torch.bool)
    active = values.isfinite().nonzero().flatten()
    steps = starts.new_tensor(_STEPS)
    for _ in range(_MOST_STEPS):
        if not len(active):
            break
        gradient, hessian = log_density.derivatives(points[active])
        sound = gradient.isfinite().all(-1) & hessian.isfinite().flatten(1).all(-1)
        active = active[sound]
        bends, axes = torch.linalg.eigh(root.mT @ -hessian[sound] @ root)
        axes = root @ axes
        slopes = (gradient[sound].unsqueeze(-2) @ axes).squeeze(-2)
        moves = slopes / bends.abs().clamp(min=_SMALLEST_CURVATURE)
        done = ((slopes * moves).sum(-1) < 2 * _SMALLEST_RISE) & (bends > 0).all(-1)
        arrived[active[done]] = True
        covariances[active[done]] = axes[done] / bends[done].unsqueeze(-2) @ axes[done].mT
        active, directions = active[~done], (axes[~done] @ moves[~done].unsqueeze(-1)).squeeze(-1)
        if not len(active):
            break
        ladder = points[active].unsqueeze(1) + steps[:, None] * directions.unsqueeze(1)
        best, which = log_density(ladder.flatten(0, 1)).reshape(len(active), -1).max(-1)
        rises = best > values[active]
        active = active[rises]
        points[active], values[active] = ladder[rises, which[rises]], best[rises]
    return points, covariances, arrived
