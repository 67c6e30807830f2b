# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The support of a one-dimensional distribution, and a coordinate on it in which every density decays fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import AffineTransform, Distribution, TransformedDistribution, VonMises, constraints
from torch.nn.functional import logsigmoid

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
        if not _any_finite(self.low):
            return constraints.less_than(self.high) if _any_finite(self.high) else constraints.real
        return (
            constraints.interval(self.low, self.high) if _any_finite(self.high) else constraints.greater_than(self.low)
        )


def _largest(one: Bound, other: Bound) -> Bound:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        like = one if isinstance(one, Tensor) else torch.as_tensor(other)
        return torch.maximum(*(torch.as_tensor(bound, dtype=like.dtype, device=like.device) for bound in (one, other)))
    return max(one, other)


def _difference(one: Bound, other: Bound) -> Tensor:
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    return torch.where(one == other, torch.zeros_like(one - other), one - other)


def _any_finite(bound: Bound) -> bool:
    return bool(torch.isfinite(torch.as_tensor(bound)).any())


def support_interval(distribution: Distribution) -> Interval | None:
    """
    The support of a continuous distribution of scalars; None where it has another, or none that can be told.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_bmrs.evidence.line import support_interval
        >>> support_interval(dist.Gamma(2., 1.))
        Interval(low=0.0, high=inf)
        >>> support_interval(dist.Poisson(2.)) is None
        True
    """
    if distribution.event_shape:
        return None
    if isinstance(distribution, VonMises):
        return Interval(-math.pi, math.pi)  # the density is periodic; torch calls the support real
    if isinstance(distribution, TransformedDistribution):
        transforms = distribution.transforms
        if transforms and isinstance(transforms[-1], AffineTransform):
            # The codomain of an affine transform is the real line, whatever the base's support.
            before = TransformedDistribution(distribution.base_dist, transforms[:-1])
            return _affine_image(support_interval(before), transforms[-1])
        if not transforms:
            return support_interval(distribution.base_dist)
    return _constraint_interval(distribution.support)


def _affine_image(interval: Interval | None, transform: AffineTransform) -> Interval | None:
    if interval is None:
        return None
    ends = [transform.loc + transform.scale * end for end in (interval.low, interval.high)]
    return Interval(-_largest(-ends[0], -ends[1]), _largest(ends[0], ends[1]))


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

    :math:`x = T(u)` is the interval's bijection with the real line: the exponential from one bound, the logistic from
    two. :math:`u = c + w \sinh\sinh t` then makes of a power of u, and of an exponential, a double exponential.

    :param interval: where x may be.
    :param centre: the u at which t is 0: where resolution is highest. Of the batch shape.
    :param width: du/dt there.
    """

    def __init__(self, interval: Interval, centre: Tensor, width: Tensor) -> None:
        self.centre, self.width = centre, width
        self._low, self._high = (torch.as_tensor(bound).to(centre) for bound in (interval.low, interval.high))
        self._from_low, self._from_high = torch.isfinite(self._low), torch.isfinite(self._high)
        # A bound that is not there still takes part in arithmetic whose result is thrown away: make it harmless.
        self._bound_low = torch.where(self._from_low, self._low, torch.zeros_like(self._low))
        self._bound_high = torch.where(self._from_high, self._high, torch.ones_like(self._high))
        self._both = self._from_low & self._from_high
        with torch.no_grad():
            inwards = torch.full_like(self._low, torch.inf), torch.full_like(self._high, -torch.inf)
            self._rise = torch.nextafter(self._bound_low, inwards[0]) - self._bound_low
            self._fall = torch.nextafter(self._bound_high, inwards[1]) - self._bound_high

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """x, and the log of dx/dt, at t; x is strictly inside the interval."""
        inner = t.sinh()
        x, log_slope = self._fold(self.centre + self.width * inner.sinh())
        return x, log_slope + self.width.log() + _log_cosh(inner) + _log_cosh(t)

    def find(self, x: Tensor) -> Tensor:
        """The t at which x is."""
        return ((self.unfold(x) - self.centre) / self.width).asinh().asinh()

    def ends(self) -> tuple[Tensor, Tensor]:
        """The least and the largest t whose x, and the squares of x, do not overflow."""
        info = torch.finfo(self.centre.dtype)
        # Near a bound, u is the logarithm of the distance from it; away from one bound, of x; without bounds, it is x.
        near, far, free = (
            torch.full_like(self.centre, reach)
            for reach in (0.95 * math.log(info.max), 0.45 * math.log(info.max), info.max**0.45)
        )
        none = ~(self._from_low | self._from_high)
        low = torch.where(self._from_low, near, torch.where(none, free, far))
        high = torch.where(self._from_high, near, torch.where(none, free, far))
        return tuple(((end - self.centre) / self.width).asinh().asinh() for end in (-low, high))  # type: ignore

    def _fold(self, u: Tensor) -> tuple[Tensor, Tensor]:
        low, high, span = self._bound_low, self._bound_high, self._bound_high - self._bound_low
        span = torch.where(self._both, span, torch.ones_like(span))
        one_sided = torch.where(self._both, torch.zeros_like(u), u)
        between = torch.where(u < 0, low + span * u.sigmoid(), high - span * (-u).sigmoid())
        x = torch.where(self._both, between, u)
        x = torch.where(self._from_low & ~self._from_high, low + one_sided.exp(), x)
        x = torch.where(self._from_high & ~self._from_low, high - (-one_sided).exp(), x)
        log_slope = torch.where(self._both, span.log() + logsigmoid(u) + logsigmoid(-u), torch.zeros_like(u))
        log_slope = torch.where(self._from_low & ~self._from_high, one_sided, log_slope)
        log_slope = torch.where(self._from_high & ~self._from_low, -one_sided, log_slope)
        return self._inside(x), log_slope

    def _inside(self, x: Tensor) -> Tensor:
        # Rounding may put x on a bound, where densities are 0 or infinite: the nearest number inside stands for it.
        first, last = self.just_inside(1)
        x = torch.where(self._from_low & (x <= self._low), first, x)
        return torch.where(self._from_high & (x >= self._high), last, x)

    def just_inside(self, steps: float) -> tuple[Tensor, Tensor]:
        """The points a number of units in the last place inside the bounds; meaningless where there is no bound."""
        return self._bound_low + steps * self._rise, self._bound_high + steps * self._fall

    def bounded(self) -> tuple[Tensor, Tensor]:
        """Whether there is a low, and a high bound."""
        return self._from_low, self._from_high

    def at_bound(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where x is the number next to the low, and the number next to the high bound."""
        first, last = self.just_inside(1)
        return self._from_low & (x <= first), self._from_high & (x >= last)

    def unfold(self, x: Tensor) -> Tensor:
        """The unconstrained u at which x is."""
        from_low = (x - self._bound_low).clamp(min=torch.finfo(x.dtype).tiny)
        from_high = (self._bound_high - x).clamp(min=torch.finfo(x.dtype).tiny)
        u = torch.where(self._both, from_low.log() - from_high.log(), x)
        u = torch.where(self._from_low & ~self._from_high, from_low.log(), u)
        return torch.where(self._from_high & ~self._from_low, -from_high.log(), u)


def _log_cosh(x: Tensor) -> Tensor:
    x = x.abs()
    return x + torch.log1p((-2 * x).exp()) - math.log(2)
