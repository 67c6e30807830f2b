# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The density q r / p of a batch of one-dimensional triples, found wherever it is and resolved by panels."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, TransformedDistribution

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence.quadrature.line import Line
from pyro_bmrs.evidence.quadrature.panels import Panels, nodes, resolve
from pyro_bmrs.evidence.support import common_interval

_PROBABILITIES = (1e-6, 0.01, 0.2, 0.5, 0.8, 0.99, 1 - 1e-6)
_DRAWS = 25
_FIRST_PANELS = 16
_SPARE_NATS = 5.0


class Integrand:
    """
    The density q r / p, not normalised.

    :raises ReductionError: where a support is no interval, the reduced prior's support leaves the prior's, or the
        density is not integrable.
    """

    def __init__(self, posterior: Distribution, prior: Distribution, reduced_prior: Distribution) -> None:
        self.triple = posterior, prior, reduced_prior
        self.interval = common_interval(posterior, prior, reduced_prior)
        with torch.no_grad():
            marks, centre, width = self._survey()
        # Bounds may carry gradients, so the line is made outside.
        self.line = Line(self.interval, centre, width)
        with torch.no_grad():
            low, high = self.line.ends()
            steps = torch.linspace(0, 1, _FIRST_PANELS + 1, dtype=low.dtype, device=low.device)
            grid = low + steps.reshape((-1,) + (1,) * low.dim()) * (high - low)
            marks = ((marks - centre) / width).asinh().asinh()
            edges = torch.cat([grid, torch.minimum(torch.maximum(marks, low), high)])
            self.tolerance = max(1e-10, 100 * torch.finfo(edges.dtype).eps)
            self.panels = resolve(self.at_with_noise, edges, self.tolerance).sort()
            self._check_ends()

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The log density in the coordinate t of :attr:`line`, and x there."""
        x, log_slope = self.line.at(t)
        return self._log_ratio(x) + log_slope, x

    def _log_ratio(self, x: Tensor) -> Tensor:
        return _log_ratio(*(distribution.log_prob(x) for distribution in self.triple))

    def at_with_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The log density in the coordinate t, and how much of it may be rounding."""
        x, log_slope = self.line.at(t)
        q, p, r = (distribution.log_prob(x) for distribution in self.triple)
        ratio = _log_ratio(q, p, r)
        exact = (q == p) | (r == p)
        largest = torch.where(exact, ratio.abs(), torch.maximum(q.abs(), torch.maximum(p.abs(), r.abs())))
        noise = torch.finfo(t.dtype).eps * largest
        for at_bound, roughness in zip(self.line.at_bound(x), self._roughness):
            noise = torch.where(at_bound, roughness, noise)
        return ratio + log_slope, noise

    @cached_property
    def _roughness(self) -> list[Tensor]:
        """How the log density changes per factor e of the distance from each bound, where that distance is rounded."""
        steps, line = 1024.0, self.line
        middle = line.at(torch.zeros_like(line.centre))[0]
        pairs = zip(line.bounded, line.just_inside(1), line.just_inside(steps))
        values = (
            [self._log_ratio(torch.where(bounded, x, middle)) for x in (near, away)] for bounded, near, away in pairs
        )
        return [(near - away).abs() / math.log(steps) for near, away in values]

    @cached_property
    def relevant(self) -> Panels:
        """The panels that hold all but a negligible share of the mass, from left to right."""
        with torch.no_grad():
            share = self.panels.log_mass - self.panels.total
            count = int((share > math.log(torch.finfo(share.dtype).eps) - _SPARE_NATS).sum(0).max())
            return self.panels.pick(share.topk(max(count, 1), 0).indices).sort()

    def nodes(self) -> tuple[Tensor, Tensor]:
        """
        Log masses at nodes on the :attr:`relevant` panels, differentiable, and x there.

        Both have the shape ``(order, num_panels, *batch_shape)``.
        """
        t, weights = nodes(self.relevant.left, self.relevant.right)
        log_density, x = self.at(t)
        return log_density + weights.log(), x

    def log_integral(self) -> Tensor:
        """The log of the integral, differentiable in all parameters of the triple."""
        with torch.no_grad():
            total = self.panels.total
        if not (torch.is_grad_enabled() and self.at(self.panels.left[:1])[0].requires_grad):
            return total
        return torch.logsumexp(self.nodes()[0], (0, 1))

    def _survey(self) -> tuple[Tensor, Tensor, Tensor]:
        """Unconstrained points at which the density may have features; a centre and a width to see it from."""
        shape = torch.broadcast_shapes(*(d.batch_shape for d in self.triple))
        landmarks = [_landmarks(distribution, shape) for distribution in self.triple]
        plain = Line(self.interval, landmarks[0].new_zeros(shape), landmarks[0].new_ones(shape))
        q, p, r = (plain.unconstrained(x).nan_to_num().sort(0).values for x in landmarks)
        # The narrower of q and r is where both resolution and the mass of their product are most likely needed.
        spreads = [u[int(0.75 * len(u))] - u[int(0.25 * len(u))] for u in (q, r)]
        at_r = spreads[1] < spreads[0]
        centre = torch.where(at_r, r[len(r) // 2], q[len(q) // 2])
        width = torch.where(at_r, spreads[1], spreads[0]).clamp(min=torch.finfo(centre.dtype).tiny ** 0.25)
        return torch.cat([q, p, r]), centre, width

    def _check_ends(self) -> None:
        panels = self.panels
        unseen = panels.broken.clone()
        unseen[0] = unseen[-1] = True
        # What a panel may hide is seen from the nearest nodes: its own and its neighbours'.
        first, last = panels.log_edges
        near = torch.maximum(panels.log_mass, torch.maximum(first.roll(-1, 0), last.roll(1, 0)))
        near[0], near[-1] = first[0], last[-1]
        least = panels.total + math.log(self.tolerance)
        diverges = (unseen & (near > least)).any(0) | (panels.broken.any(0) & (panels.total == -torch.inf))
        if diverges.any():
            raise ReductionError(
                f"The evidence integral diverges, or has mass beyond floating point, at {int(diverges.sum())} of "
                f"{diverges.numel()} elements: most often because the reduced prior is broader than the prior where "
                "the posterior still has mass. Give a reduced prior no broader than the prior."
            )


def _log_ratio(q: Tensor, p: Tensor, r: Tensor) -> Tensor:
    """q + r - p, the closer two subtracted first: what they have in common may be very large."""
    from_q, from_r = q - p, r - p
    return torch.where(from_q.abs() < from_r.abs(), from_q + r, q + from_r)


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
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return distribution.sample(torch.Size([count]))
