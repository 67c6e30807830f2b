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

# Of climbs from what is known, and of blind ones.
_MOST_STEPS, _MOST_BLIND_STEPS = 40, 15
# The rise that a step still promises, in nats, at which a climb is over.
_SMALLEST_RISE = 5e-3
# Two tops are one where each is nearer to the other than this, in squared units of its own spread.
_SAME = 0.1
# Modes are left out that are this much lighter, in nats, than the heaviest, or beyond the most.
_LIGHTEST, _MOST_MODES = 12.0, 32
# As long as a further mode is more likely than this, the search goes on, with twice the starts, but so often at most.
_MOST_UNSEEN, _MOST_SEARCHES = 0.03, 3
# A mode counts as one that matters from this share of the whole.
_MATTERS = 0.005
_STEPS = (1.0, 0.5, 0.25, 0.1, 0.02, 1e-3)
# How far around the posterior starts are spread, in standard deviations.
_BREADTH = 5.0
# Between two gradients, in the same units, where there is no second derivative.
_DIFFERENCE = 0.01
# The smallest curvature that a step believes, in units of the posterior's.
_SMALLEST_CURVATURE = 1e-3


class Climbable(Protocol):
    """A log density of points of shape ``(num_points, dim)``, with derivatives."""

    def __call__(self, points: Tensor) -> Tensor:
        """The log density, shape ``(num_points,)``."""

    def gradient(self, points: Tensor) -> Tensor:
        """Its first derivatives, shape ``(num_points, dim)``."""

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
    :param unseen: an estimate of the chance that one start more would climb to a mode that matters and is not here, or
        the share of the mass that was found and is too scattered to be kept.
    """

    points: Tensor
    covariances: Tensor
    unseen: float


def find_modes(log_density: Climbable, begins: Sequence[tuple[Tensor, Tensor]], *, is_blind: bool = True) -> Modes:
    """
    The modes of a density.

    :param log_density: with its derivatives.
    :param begins: means and covariances around which to begin; the spread of the first is the unit.
    :param is_blind: whether to begin from the prior and far around the first, too.
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
    num_starts = min(max(320 // dim, 4), 16)
    root = torch.linalg.cholesky(covariance.double())
    known, tops = torch.stack([mean.double() for mean, _ in begins]), None
    for _ in range(_MOST_SEARCHES):
        blind = known[:0]
        if is_blind:
            around = loc + _BREADTH * torch.randn(num_starts, dim, dtype=torch.float64) @ root.mT
            blind = torch.cat([around, log_density.prior_points(num_starts).double()])
        found = _climb(log_density, known, blind, root)
        tops = found if tops is None else tops.and_those(found)
        modes = _modes(tops)
        if not is_blind or modes.unseen <= _MOST_UNSEEN:
            break
        known, num_starts = known[:0], 2 * num_starts
    return modes


def _modes(tops: _Tops) -> Modes:
    distinct = _distinct(tops)
    if not distinct:
        return Modes(tops.points, tops.covariances, 0.0)
    at = torch.tensor([place for place, _ in distinct])
    log_masses = tops.log_masses[at]
    # What is begun at says nothing of what there is besides.
    visits = torch.tensor([int((belongs & tops.are_blind).sum()) for _, belongs in distinct])
    visits = visits[torch.softmax(log_masses, 0) >= _MATTERS]
    once = int((visits == 1).sum())
    # A single climb that came somewhere says nothing: there is too little to compare it with.
    unseen = once / int(visits.sum()) if once > 1 else 0.0
    at = at[log_masses >= log_masses.max() - _LIGHTEST]
    kept, left_out = at[:_MOST_MODES], at[_MOST_MODES:]
    share_left_out = float((tops.log_masses[left_out].logsumexp(0) - tops.log_masses[at].logsumexp(0)).exp())
    return Modes(tops.points[kept], tops.covariances[kept], max(unseen, share_left_out))


@dataclass(frozen=True)
class _Tops:
    """
    Where climbs came to a top: points, covariances of the normal distributions there, and the mass of these.

    With whether they began blindly.
    """

    points: Tensor
    covariances: Tensor
    log_masses: Tensor
    are_blind: Tensor

    def and_those(self, others: _Tops) -> _Tops:
        return _Tops(
            torch.cat([self.points, others.points]),
            torch.cat([self.covariances, others.covariances]),
            torch.cat([self.log_masses, others.log_masses]),
            torch.cat([self.are_blind, others.are_blind]),
        )


def _distinct(tops: _Tops) -> list[tuple[int, Tensor]]:
    """A place for each distinct top, the heaviest first, and which tops are the same."""
    found: list[tuple[int, Tensor]] = []
    free = torch.ones(len(tops.points), dtype=torch.bool)
    roots = torch.linalg.cholesky(tops.covariances)
    for place in tops.log_masses.argsort(descending=True).tolist():
        if free[place]:
            apart = tops.points - tops.points[place]
            standard = torch.linalg.solve_triangular(roots[place], apart.mT, upper=False)
            belongs = free & (standard.square().sum(0) < _SAME)
            free = free & ~belongs
            found.append((place, belongs))
    return found


def _climb(log_density: Climbable, known: Tensor, blind: Tensor, root: Tensor) -> _Tops:
    """
    The tops that climbs come to; those that come to none in some steps are left out.

    Blind climbs of which none has come to a top after half of their steps are given up: such a density, of many
    dimensions or badly scaled, is not one on which more of them tell anything.

    :param known: where climbs begin that may take long, shape ``(num_starts, dim)``.
    :param blind: where others begin, of that shape.
    :param root: of the covariance in whose units curvature is small or not.
    """
    starts = torch.cat([known, blind])
    are_blind = torch.arange(len(starts)) >= len(known)
    points, values = starts.clone(), log_density(starts)
    covariances = torch.eye(starts.shape[1], dtype=starts.dtype).repeat(len(starts), 1, 1)
    arrived = torch.zeros(len(starts), dtype=torch.bool)
    active = values.isfinite().nonzero().flatten()
    steps = starts.new_tensor(_STEPS)
    for step in range(_MOST_STEPS):
        is_hopeless = step == _MOST_BLIND_STEPS // 2 and not (arrived & are_blind).any()
        if is_hopeless or step == _MOST_BLIND_STEPS:
            active = active[~are_blind[active]]
        if not len(active):
            break
        gradient, curvature = _derivatives(log_density, points[active], root)
        sound = gradient.isfinite().all(-1) & curvature.isfinite().flatten(1).all(-1)
        active, gradient = active[sound], gradient[sound]
        bends, axes = torch.linalg.eigh(curvature[sound])
        axes = root @ axes
        slopes = (gradient.unsqueeze(-2) @ axes).squeeze(-2)
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
    points, covariances, values, are_blind = (of[arrived] for of in (points, covariances, values, are_blind))
    roots, failed = torch.linalg.cholesky_ex(covariances)
    sound = failed == 0
    log_masses = values + roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _Tops(points[sound], covariances[sound], log_masses[sound], are_blind[sound])


def _derivatives(log_density: Climbable, points: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """
    The gradient at points, and how much the density bends downwards along the columns of ``root``.

    By differences of gradients where there is no second derivative: that of :func:`torch.logaddexp` is not a number
    where one of the two is far below the other.
    """
    gradient, hessian = log_density.derivatives(points)
    curvature = root.mT @ -hessian @ root
    lacking = ~curvature.isfinite().flatten(1).all(-1) & gradient.isfinite().all(-1)
    if lacking.any():
        dim = len(root)
        steps = _DIFFERENCE * torch.cat([root.mT, -root.mT])
        around = points[lacking].unsqueeze(1) + steps
        slopes = log_density.gradient(around.flatten(0, 1)).reshape(-1, 2, dim, dim) @ root
        differences = (slopes[:, 1] - slopes[:, 0]) / (2 * _DIFFERENCE)
        curvature[lacking] = (differences + differences.mT) / 2
    return gradient, curvature
