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
    """The log of how much a panel's error matters; minus infinity where it need not be halved."""
    total = panels.total
    least = total + math.log(tolerance / 20)
    width = panels.right - panels.left
    # A peak may hide between the end of a narrow panel and the first node of the wide panel next to it: then the
    # density differs between the two nodes nearest to the common end.
    order = panels.order()
    widths, edges = width.gather(0, order), panels.log_edges.gather(1, order.expand_as(panels.log_edges))
    broken = panels.broken.gather(0, order)
    wide = torch.full_like(widths, -torch.inf)
    differ = ~((edges[1, :-1] - edges[0, 1:]).abs() < 0.5)
    # What cannot be evaluated may go on as far as it likes; else what hides is no wider than the panel.
    log_widths = torch.where(broken, 0.0, widths.log())
    spill_up, spill_down = edges[1, :-1] + log_widths[1:], edges[0, 1:] + log_widths[:-1]
    wide[1:] = torch.where((differ & (widths[1:] > 2.5 * widths[:-1])) | broken[1:], spill_up, wide[1:])
    wide[:-1] = torch.where(
        (differ & (widths[:-1] > 2.5 * widths[1:])) | broken[:-1], torch.maximum(spill_down, wide[:-1]), wide[:-1]
    )
    wide = torch.empty_like(wide).scatter(0, order, wide)
    settled = settled | (panels.log_error < panels.log_noise)
    error = torch.where(settled, -torch.inf, panels.log_error)
    # Where a part cannot be evaluated, part it from what can.
    error = torch.where(panels.broken, torch.maximum(error, panels.log_mass), error)
    urgency = torch.maximum(error, wide) - total
    floor = torch.finfo(width.dtype).eps * 8 * torch.maximum(panels.left.abs(), panels.right.abs())
    return torch.where(
        (torch.maximum(error, wide) > least) & (width > floor), urgency, torch.full_like(urgency, -torch.inf)
    )


@cache
def _legendre() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(ORDER)
    degrees = np.arange(ORDER - 2, ORDER)
    values = np.polynomial.legendre.legvander(points, ORDER - 1)[:, degrees]
    return points, weights, (values * weights[:, None] * (degrees + 0.5)).T


def _rule(dtype: torch.dtype, device: torch.device, dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights on [-1, 1], to broadcast with ``dims`` more, and the last two Legendre coefficients."""
    points, weights, last = (torch.as_tensor(array, dtype=dtype, device=device) for array in _legendre())
    shape = (ORDER,) + (1,) * dims
    return points.reshape(shape), weights.reshape(shape), last
