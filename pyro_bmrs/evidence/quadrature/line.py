# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A coordinate on the support of one-dimensional distributions in which every density decays fast."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_bmrs.distributions.extended_interval import ExtendedIntervalTransform
from pyro_bmrs.evidence.support import Interval


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
        low, high = [torch.as_tensor(bound, dtype=centre.dtype, device=centre.device) for bound in bounds]
        self._bijection = ExtendedIntervalTransform(*torch.broadcast_tensors(low, high))
        self.bounded = low.isfinite(), high.isfinite()
        low, high = self._bounds = torch.where(self.bounded[0], low, 0.0), torch.where(self.bounded[1], high, 0.0)
        with torch.no_grad():
            upwards = torch.nextafter(low, torch.full_like(low, torch.inf)) - low
            self._steps = upwards, torch.nextafter(high, torch.full_like(high, -torch.inf)) - high

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """x, and the log of dx/dt, at t; x is strictly inside the interval."""
        inner = t.sinh()
        u = self.centre + self.width * inner.sinh()
        x = self._bijection(u)
        log_slope = self._bijection.log_abs_det_jacobian(u, x)
        return self._inside(x), log_slope + self.width.log() + _log_cosh(inner) + _log_cosh(t)

    def find(self, x: Tensor) -> Tensor:
        """The t at which x is."""
        return self._coordinate(self.unconstrained(x))

    def _coordinate(self, u: Tensor) -> Tensor:
        return ((u - self.centre) / self.width).asinh().asinh()

    def ends(self) -> tuple[Tensor, Tensor]:
        """The least and the largest t whose x, and the squares of x, do not overflow."""
        info = torch.finfo(self.centre.dtype)
        # Near a bound, u is the logarithm of the distance from it; away from one bound, of x; without bounds, it is x.
        near, far, free = 0.95 * math.log(info.max), 0.45 * math.log(info.max), info.max**0.45
        has_low, has_high = self.bounded
        none = ~(has_low | has_high)
        away = torch.full_like(self.centre, far).masked_fill(none, free)
        return self._coordinate(-away.masked_fill(has_low, near)), self._coordinate(away.masked_fill(has_high, near))

    def unconstrained(self, x: Tensor) -> Tensor:
        """The u at which x is."""
        u: Tensor = self._bijection.inv(x)
        return u

    def _inside(self, x: Tensor) -> Tensor:
        # Rounding may put x on a bound, where densities are 0 or infinite: the nearest number inside stands for it.
        first, last = self.just_inside(1)
        at_low, at_high = self.at_bound(x)
        return torch.where(at_low, first, torch.where(at_high, last, x))

    def just_inside(self, steps: float) -> tuple[Tensor, Tensor]:
        """The points a number of units in the last place inside the bounds; meaningless where there is no bound."""
        (low, high), (upwards, downwards) = self._bounds, self._steps
        return low + steps * upwards, high + steps * downwards

    def at_bound(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where x is no further inside than the number next to the low, and to the high bound."""
        (has_low, has_high), (first, last) = self.bounded, self.just_inside(1)
        return has_low & (x <= first), has_high & (x >= last)


def _log_cosh(x: Tensor) -> Tensor:
    x = x.abs()
    return x + torch.log1p((-2 * x).exp()) - math.log(2)
