# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The density q r / p of a batch of one-dimensional triples, found wherever it is and resolved by panels."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence.quadrature.line import Line
from pyro_bmrs.evidence.quadrature.panels import Panels, nodes, resolve
from pyro_bmrs.evidence.quadrature.survey import survey
from pyro_bmrs.evidence.support import common_interval

_FIRST_PANELS = 16
_SPARE_NATS = 5.0


@dataclass(frozen=True, eq=False)
class ProductDensity:
    """
    The density q r / p along a line, not normalised.

    :param posterior: q, batched over elements, of event dimension 0, as are the other two.
    :param prior: p.
    :param reduced_prior: r.
    :param line: the coordinate t on the support that the three have in common.
    """

    posterior: Distribution
    prior: Distribution
    reduced_prior: Distribution
    line: Line

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The log density in t, and x there."""
        x, log_slope = self.line.at(t)
        return self.log_ratio(x) + log_slope, x

    def log_ratio(self, x: Tensor) -> Tensor:
        """The log of q r / p."""
        return _log_ratio(*self._log_probs(x))

    def at_with_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The log density in t, and how much of it may be rounding."""
        x, log_slope = self.line.at(t)
        q, p, r = self._log_probs(x)
        ratio = _log_ratio(q, p, r)
        exact = (q == p) | (r == p)
        largest = torch.where(exact, ratio.abs(), torch.maximum(q.abs(), torch.maximum(p.abs(), r.abs())))
        noise = torch.finfo(t.dtype).eps * largest
        for at_bound, roughness in zip(self.line.at_bound(x), self._roughness):
            noise = torch.where(at_bound, roughness, noise)
        return ratio + log_slope, noise

    def _log_probs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.posterior.log_prob(x), self.prior.log_prob(x), self.reduced_prior.log_prob(x)

    @cached_property
    def _roughness(self) -> list[Tensor]:
        """How the log density changes per factor e of the distance from each bound, where that distance is rounded."""
        steps, line = 1024.0, self.line
        middle = line.at(torch.zeros_like(line.centre))[0]
        changes = []
        for bounded, near, away in zip(line.bounded, line.just_inside(1), line.just_inside(steps)):
            at_near = _log_ratio(*self._log_probs(torch.where(bounded, near, middle)))
            at_away = _log_ratio(*self._log_probs(torch.where(bounded, away, middle)))
            changes.append((at_near - at_away).abs() / math.log(steps))
        return changes


@dataclass(frozen=True, eq=False)
class Integrand:
    """
    A density, and panels on which its integral is resolved; :func:`find_integrand` makes them.

    :param density: what is integrated.
    :param panels: from left to right.
    :param tolerance: of the error of the integral, relative to it.
    """

    density: ProductDensity
    panels: Panels
    tolerance: float

    @property
    def line(self) -> Line:
        """The coordinate t."""
        return self.density.line

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """
        The log density in t, and x there.

        Where it is not finite, as where x is rounded to 0 on the way, it is minus infinity, as in the panels, and x is
        the middle of the line: elsewhere of a batch such places may hold mass, and are asked for.
        """
        log_density, x = self.density.at(t)
        finite = log_density.isfinite()
        if finite.all():
            return log_density, x
        # Evaluated elsewhere: the gradient of NaN is NaN, even times 0.
        log_density, x = self.density.at(torch.where(finite, t, 0.0))
        return torch.where(finite, log_density, -torch.inf), x

    @cached_property
    def relevant(self) -> Panels:
        """The panels that hold all but a negligible share of the mass, from left to right."""
        with torch.no_grad():
            count = int((~self._is_negligible(self.panels)).sum(0).max())
            return self.panels.pick(self.panels.log_mass.topk(max(count, 1), 0).indices).sort()

    def _is_negligible(self, panels: Panels) -> Tensor:
        share = panels.log_mass - self.panels.total
        return ~(share > math.log(torch.finfo(share.dtype).eps) - _SPARE_NATS)

    def nodes(self) -> tuple[Tensor, Tensor]:
        """
        Log masses at nodes on the :attr:`relevant` panels, differentiable, and x there.

        Both have the shape ``(order, num_panels, *batch_shape)``. What is relevant to others of a batch may be where an
        element has no density that can be evaluated, or none with a gradient; it has no mass there, and is evaluated
        in the middle of the line, as NaN stays NaN times 0.
        """
        t, weights = nodes(self.relevant.left, self.relevant.right)
        with torch.no_grad():
            negligible = self._is_negligible(self.relevant)
        log_density, x = self.at(torch.where(negligible, 0.0, t))
        return torch.where(negligible, -torch.inf, log_density) + weights.log(), x

    @cached_property
    def rounding(self) -> Tensor:
        """
        How far the log of the integral may be off for the rounding of x, of the batch shape.

        Where a density is hardly wider than numbers are apart, it is another one at the next number.
        """
        with torch.no_grad():
            log_mass, x = self.nodes()
            share = (log_mass - torch.logsumexp(log_mass, (0, 1))).exp()
            here = self.density.log_ratio(x)
            beside = [torch.nextafter(x, torch.full_like(x, side)) for side in (-math.inf, math.inf)]
            jumps = torch.stack([self.density.log_ratio(next_to) - here for next_to in beside]).abs().amax(0)
            # What is next to a bound is known to be rounded.
            at_bound = torch.stack(self.line.at_bound(x)).any(0)
            return (share * torch.where(at_bound | (share == 0), 0.0, 0.5 * jumps)).square().sum((0, 1)).sqrt()

    def log_integral(self) -> Tensor:
        """The log of the integral, differentiable in all parameters of the triple."""
        with torch.no_grad():
            total = self.panels.total
        if not (torch.is_grad_enabled() and self.at(self.panels.left[:1])[0].requires_grad):
            return total
        return torch.logsumexp(self.nodes()[0], (0, 1))


def find_integrand(posterior: Distribution, prior: Distribution, reduced_prior: Distribution) -> Integrand:
    """
    Survey the densities, lay a line through where they are, and resolve their product on it.

    :raises ReductionError: where a support is no interval, the reduced prior's support leaves the prior's, or the
        density is not integrable.
    """
    interval = common_interval(posterior, prior, reduced_prior)
    # What a transform rounds to an end of a support has a density of 0, and is no mistake of the user's.
    posterior, prior, reduced_prior = map(_unvalidated, (posterior, prior, reduced_prior))
    with torch.no_grad():
        marks, centre, width = survey(posterior, prior, reduced_prior, interval)
    # Bounds may carry gradients, so the line is made outside.
    density = ProductDensity(posterior, prior, reduced_prior, Line(interval, centre, width))
    with torch.no_grad():
        low, high = density.line.ends()
        steps = torch.linspace(0, 1, _FIRST_PANELS + 1, dtype=low.dtype, device=low.device)
        grid = low + steps.reshape((-1,) + (1,) * low.dim()) * (high - low)
        marks = ((marks - centre) / width).asinh().asinh()
        edges = torch.cat([grid, torch.minimum(torch.maximum(marks, low), high)])
        tolerance = max(1e-10, 100 * torch.finfo(edges.dtype).eps)
        panels = resolve(density.at_with_noise, edges, tolerance).sort()
        _check_integrable(panels, tolerance)
    return Integrand(density, panels, tolerance)


def _unvalidated(distribution: Distribution) -> Distribution:
    """The distribution, on the same tensors, without a check of the values whose density is asked for."""
    twin = copy.copy(distribution)
    held = vars(distribution).items()
    vars(twin).update({name: _unvalidated(part) for name, part in held if _is_other(part, distribution)})
    twin._validate_args = False
    return twin


def _is_other(part: Any, whole: Distribution) -> bool:
    return isinstance(part, Distribution) and part is not whole


def _check_integrable(panels: Panels, tolerance: float) -> None:
    unseen = panels.broken.clone()
    unseen[0] = unseen[-1] = True
    # What a panel may hide is seen from the nearest nodes: its own and its neighbours'.
    first, last = panels.log_edges
    near = torch.maximum(panels.log_mass, torch.maximum(first.roll(-1, 0), last.roll(1, 0)))
    near[0], near[-1] = first[0], last[-1]
    least = panels.total + math.log(tolerance)
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
