# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The support of a one-dimensional distribution, and a coordinate on it in which every density decays fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution, VonMises, constraints
from torch.distributions.transforms import AffineTransform, ExpTransform, Transform

from pyro_bmrs.distributions.extended_interval import ExtendedIntervalTransform, extended_interval

Bound = Tensor | float


@dataclass(frozen=True)
class Interval:
    """An interval of the real line; bounds are numbers or tensors of the batch shape, infinite where there is none."""

    low: Bound = -math.inf
    high: Bound = math.inf

    def intersection(self, other: Interval) -> Interval:
        """What is in both."""
        return Interval(_largest(self.low, other.low), -_largest(-self.high, -other.high))

    def outside(self, other: Interval) -> Tensor:
        """Where a part of this interval is outside the other."""
        low, high = (_difference(*pair) for pair in ((self.low, other.low), (other.high, self.high)))
        return (low < 0) | (high < 0)

    def constraint(self) -> constraints.Constraint:
        """The support of a distribution on this interval."""
        if not isinstance(self.low, Tensor) and not isinstance(self.high, Tensor) and self == Interval():
            return constraints.real
        low, high = (torch.as_tensor(bound) for bound in (self.low, self.high))
        return extended_interval(*torch.broadcast_tensors(low, high))


def _largest(one: Bound, other: Bound) -> Bound:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        like = one if isinstance(one, Tensor) else torch.as_tensor(other)
        return torch.maximum(*(torch.as_tensor(bound, dtype=like.dtype, device=like.device) for bound in (one, other)))
    return max(one, other)


def _difference(one: Bound, other: Bound) -> Tensor:
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    return torch.where(one == other, 0.0, one - other)


def support_interval(distribution: Distribution) -> Interval | None:
    """
    The support of a continuous distribution of scalars; None where it has another, or none that can be told.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_bmrs.evidence.quadrature.line import support_interval
        >>> support_interval(dist.Gamma(2., 1.))
        Interval(low=0.0, high=inf)
        >>> support_interval(dist.Poisson(2.)) is None
        True
    """
    if distribution.event_shape:
        return None
    if isinstance(distribution, VonMises):
        return Interval(-math.pi, math.pi)  # the density is periodic; torch calls the support real
    declared = _constraint_interval(distribution.support)
    if declared is None or not isinstance(distribution, TransformedDistribution):
        return declared
    # Torch takes the codomain of the last transform for the support, however bounded the base distribution is.
    image = support_interval(distribution.base_dist)
    for transform in distribution.transforms:
        image = None if image is None else _image(image, transform)
    return declared if image is None else declared.intersection(image)


def _image(interval: Interval, transform: Transform) -> Interval | None:
    if isinstance(transform, AffineTransform):
        ends = [transform.loc + transform.scale * end for end in (interval.low, interval.high)]
        return Interval(-_largest(-ends[0], -ends[1]), _largest(ends[0], ends[1]))
    if isinstance(transform, ExpTransform):
        return Interval(
            *(end.exp() if isinstance(end, Tensor) else float(np.exp(end)) for end in (interval.low, interval.high))
        )
    return None


def _constraint_interval(constraint: Any) -> Interval | None:
    if constraint.is_discrete:
        return None
    if isinstance(constraint, constraints.MixtureSameFamilyConstraint):
        interval = _constraint_interval(constraint.base_constraint)
        bounds = () if interval is None else (interval.low, interval.high)
        return None if any(isinstance(bound, Tensor) and bound.dim() for bound in bounds) else interval
    if constraint is constraints.real:
        return Interval()
    bounded = (
        constraints.greater_than,
        constraints.greater_than_eq,
        constraints.less_than,
        constraints.interval,
        constraints.half_open_interval,
    )
    if not isinstance(constraint, bounded):
        return None
    low, high = getattr(constraint, "lower_bound", -math.inf), getattr(constraint, "upper_bound", math.inf)
    return Interval(*(bound if isinstance(bound, Tensor) else float(bound) for bound in (low, high)))


class Line:
    r"""
    A coordinate t on an interval, such that densities decay at least exponentially in it.

    :math:`x = T(u)` is the bijection of the unconstrained line with the interval, and
    :math:`u = c + w \sinh\sinh t` makes of a power of u, and of an exponential, a double exponential.

    :param interval: where x may be.
    :param centre: the u at which t is 0: where resolution is highest. Of the batch shape.
    :param width: du/dt there.
    """

    def __init__(self, interval: Interval, centre: Tensor, width: Tensor) -> None:
        self.centre, self.width = centre, width
        bounds = (interval.low, interval.high)
        low, high = (torch.as_tensor(bound, dtype=centre.dtype, device=centre.device) for bound in bounds)
        self._bijection = ExtendedIntervalTransform(*torch.broadcast_tensors(low, high))
        self.bounded = low.isfinite(), high.isfinite()
        self._bounds = tuple(torch.where(has, bound, 0.0) for has, bound in zip(self.bounded, (low, high)))
        with torch.no_grad():
            self._steps = tuple(
                torch.nextafter(bound, torch.full_like(bound, inwards)) - bound
                for bound, inwards in zip(self._bounds, (torch.inf, -torch.inf))
            )

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """x, and the log of dx/dt, at t; x is strictly inside the interval."""
        inner = t.sinh()
        u = self.centre + self.width * inner.sinh()
        x = self._bijection(u)
        log_slope = self._bijection.log_abs_det_jacobian(u, x)
        return self._inside(x), log_slope + self.width.log() + _log_cosh(inner) + _log_cosh(t)

    def find(self, x: Tensor) -> Tensor:
        """The t at which x is."""
        return ((self.unconstrained(x) - self.centre) / self.width).asinh().asinh()

    def ends(self) -> tuple[Tensor, Tensor]:
        """The least and the largest t whose x, and the squares of x, do not overflow."""
        info = torch.finfo(self.centre.dtype)
        # Near a bound, u is the logarithm of the distance from it; away from one bound, of x; without bounds, it is x.
        near, far, free = (
            torch.full_like(self.centre, reach)
            for reach in (0.95 * math.log(info.max), 0.45 * math.log(info.max), info.max**0.45)
        )
        has_low, has_high = self.bounded
        none = ~(has_low | has_high)
        low = torch.where(has_low, near, torch.where(none, free, far))
        high = torch.where(has_high, near, torch.where(none, free, far))
        return tuple(((end - self.centre) / self.width).asinh().asinh() for end in (-low, high))  # type: ignore

    def unconstrained(self, x: Tensor) -> Tensor:
        """The u at which x is."""
        return self._bijection.inv(x)

    def _inside(self, x: Tensor) -> Tensor:
        # Rounding may put x on a bound, where densities are 0 or infinite: the nearest number inside stands for it.
        first, last = self.just_inside(1)
        at_low, at_high = self.at_bound(x)
        return torch.where(at_low, first, torch.where(at_high, last, x))

    def just_inside(self, steps: float) -> tuple[Tensor, Tensor]:
        """The points a number of units in the last place inside the bounds; meaningless where there is no bound."""
        low, high = (bound + steps * step for bound, step in zip(self._bounds, self._steps))
        return low, high

    def at_bound(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where x is no further inside than the number next to the low, and to the high bound."""
        (has_low, has_high), (first, last) = self.bounded, self.just_inside(1)
        return has_low & (x <= first), has_high & (x >= last)


def _log_cosh(x: Tensor) -> Tensor:
    x = x.abs()
    return x + torch.log1p((-2 * x).exp()) - math.log(2)
