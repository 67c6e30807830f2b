# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Adaptive Gauss-Legendre quadrature of a batch of densities, each on panels of its own.

A panel is halved until the highest Legendre coefficients of the density on it, which bound what its nodes do not see,
are negligible beside the whole integral. All is in logarithms, so that peaks of any height and width are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

LogDensity = Callable[[Tensor], tuple[Tensor, Tensor]]

ORDER = 16
_MOST_ROUNDS = 60
_MOST_PANELS = 2000
_NODES_AT_ONCE = 2**20


@dataclass(frozen=True)
class Panels:
    """
    Panels that resolve a batch of densities.

    :param left: left ends, shape ``(num_panels, *batch_shape)``, in no order.
    :param right: right ends.
    :param log_mass: log of the integral over each panel.
    :param log_error: log of what the nodes of each may miss of it.
    :param log_noise: log of what the rounding of the density may add to it.
    :param log_edges: log densities at the first and the last node of each panel, of shape ``(2, num_panels, ...)``.
    :param broken: whether at a node the density is NaN or infinite, or its logarithm is nothing but rounding.
    """

    left: Tensor
    right: Tensor
    log_mass: Tensor
    log_error: Tensor
    log_noise: Tensor
    log_edges: Tensor
    broken: Tensor

    @property
    def total(self) -> Tensor:
        """Log of the integral, of the batch shape."""
        return torch.logsumexp(self.log_mass, 0)

    @property
    def error(self) -> Tensor:
        """A bound on the error of :attr:`total`."""
        return (torch.logaddexp(self.log_error, self.log_noise).logsumexp(0) - self.total).exp()

    def pick(self, index: Tensor) -> Panels:
        """Panels by index, of shape ``(num_picked, *batch_shape)``, along the first dimension."""
        return self._map(
            lambda field: field.gather(-self.left.dim(), index.expand(field.shape[: -self.left.dim()] + index.shape))
        )

    def sort(self) -> Panels:
        """The panels from left to right."""
        return self.pick(self.order())

    def order(self) -> Tensor:
        """The indices of the panels from left to right; one of no width comes before the next, which starts with it."""
        return (self.left + self.right).argsort(0)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Panels:
        return Panels(*(function(getattr(self, name)) for name in self.__dataclass_fields__))


def nodes(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The Gauss-Legendre nodes and weights of panels, with a first dimension over the nodes."""
    half = 0.5 * (right - left)
    points, weights, _ = _rule(left.dtype, left.device, left.dim())
    return left + half * (1 + points), half * weights


def resolve(log_density: LogDensity, edges: Tensor, tolerance: float) -> Panels:
    """
    Halve panels until the error bound of each integral is below ``tolerance`` of the integral, or cannot be lowered.

    :param log_density: the log density at points, and what part of it may be rounding; vectorised over leading
        dimensions.
    :param edges: ends of the first panels, in any order, shape ``(num_panels + 1, *batch_shape)``.
    """
    edges = edges.sort(0).values
    panels = _evaluate(log_density, edges[:-1], edges[1:])
    settled = torch.zeros_like(panels.broken)
    for _ in range(_MOST_ROUNDS):
        urgency = _urgency(panels, settled, tolerance)
        count = int((urgency > -torch.inf).sum(0).max())
        if not count or len(panels.left) + count > _MOST_PANELS:
            break
        _, index = urgency.topk(count, 0)
        parents = panels.pick(index)
        middle = 0.5 * (parents.left + parents.right)
        lower, upper = _evaluate(log_density, parents.left, middle), _evaluate(log_density, middle, parents.right)
        # Where halving does not lower the error any more, rounding of the density is what is left of it.
        stuck = torch.logaddexp(lower.log_error, upper.log_error) > parents.log_error + math.log(0.7)
        stuck &= parents.log_error < parents.log_mass + math.log(1e-6)
        panels = Panels(
            *(
                torch.cat([old.scatter(dim, index.expand_as(new), new), other], dim)
                for name in Panels.__dataclass_fields__
                for old, new, other in [(getattr(panels, name), getattr(lower, name), getattr(upper, name))]
                for dim in [-index.dim()]
            )
        )
        settled = torch.cat([settled.scatter(0, index, stuck), stuck])
    return panels


def _evaluate(log_density: LogDensity, left: Tensor, right: Tensor) -> Panels:
    size = max(1, _NODES_AT_ONCE // (ORDER * max(1, left[0].numel())))
    parts = [_evaluate_at_once(log_density, *part) for part in zip(left.split(size), right.split(size))]
    if len(parts) == 1:
        return parts[0]
    dim = -left.dim()
    return Panels(*(torch.cat([getattr(part, name) for part in parts], dim) for name in Panels.__dataclass_fields__))


def _evaluate_at_once(log_density: LogDensity, left: Tensor, right: Tensor) -> Panels:
    at, weights = nodes(left, right)
    values, noise = log_density(at)
    broken = torch.isnan(values) | (values == torch.inf) | ((noise > 0.5) & (values > -100 * noise))
    values = torch.where(broken, -torch.inf, values)
    noise = torch.where(values > -torch.inf, noise, 0.0)
    highest = values.amax(0)
    highest = torch.where(highest > -torch.inf, highest, 0.0)
    log_masses = values + weights.log()
    log_mass, log_noise = torch.logsumexp(log_masses, 0), torch.logsumexp(log_masses + noise.log(), 0)
    _, _, last = _rule(left.dtype, left.device, left.dim())
    coefficients = torch.tensordot(last, (values - highest).exp(), 1).abs().sum(0)
    log_error = coefficients.log() + highest + (right - left).log()
    ends = torch.stack([values[0], values[-1]])
    return Panels(left, right, log_mass, log_error, log_noise, ends, broken.any(0))


def _urgency(panels: Panels, settled: Tensor, tolerance: float) -> Tensor:
    """
    The log of how much a panel may be wrong, relative to the whole; minus infinity where it need not be halved.

    A panel is halved while what its nodes miss, or what may hide beside its neighbours, is above a twentieth of the
    tolerance, and there are numbers between its ends. What is missed is the error bound, unless rounding is larger
    or halving no longer helped; of a panel that cannot be evaluated everywhere it is all that it holds.
    """
    total, width = panels.total, panels.right - panels.left
    done = settled | (panels.log_error < panels.log_noise)
    missed = torch.where(done, -torch.inf, panels.log_error)
    missed = torch.where(panels.broken, torch.maximum(missed, panels.log_mass), missed)
    wrong = torch.maximum(missed, _hidden(panels))
    floor = torch.finfo(width.dtype).eps * 8 * torch.maximum(panels.left.abs(), panels.right.abs())
    matters = (wrong > total + math.log(tolerance / 20)) & (width > floor)
    return torch.where(matters, wrong - total, -torch.inf)


def _hidden(panels: Panels) -> Tensor:
    """
    The log of the mass that may hide between a panel's ends and its nodes; minus infinity where none is to be feared.

    A peak may hide between the end of a narrow panel and the first node of the wide panel next to it. Then the density
    differs, by half a nat or more, between the two nodes nearest to the common end, and the wide panel is more than one
    halving behind. What hides is no higher than at the neighbour's node and no wider than the
    panel; what cannot be evaluated may go on as far as it likes.
    """
    order = panels.order()
    width = (panels.right - panels.left).gather(0, order)
    edges, broken = panels.log_edges.gather(1, order.expand_as(panels.log_edges)), panels.broken.gather(0, order)
    log_width = torch.where(broken, 0.0, width.log())
    differ = ~((edges[1, :-1] - edges[0, 1:]).abs() < 0.5)
    hidden = torch.full_like(width, -torch.inf)
    above = (differ & (width[1:] > 2.5 * width[:-1])) | broken[1:]
    hidden[1:] = torch.where(above, edges[1, :-1] + log_width[1:], hidden[1:])
    below = (differ & (width[:-1] > 2.5 * width[1:])) | broken[:-1]
    hidden[:-1] = torch.where(below, torch.maximum(edges[0, 1:] + log_width[:-1], hidden[:-1]), hidden[:-1])
    return torch.empty_like(hidden).scatter(0, order, hidden)


@cache
def _legendre() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(ORDER)
    degrees = np.arange(ORDER - 2, ORDER)
    values = np.polynomial.legendre.legvander(points, ORDER - 1)[:, degrees]
    return points, weights, (values * weights[:, None] * (degrees + 0.5)).T


def _rule(dtype: torch.dtype, device: torch.device, dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights on [-1, 1], to broadcast with ``dims`` more, and the last two Legendre coefficients."""
    points, weights, last = [torch.as_tensor(array, dtype=dtype, device=device) for array in _legendre()]
    shape = (ORDER,) + (1,) * dims
    return points.reshape(shape), weights.reshape(shape), last
