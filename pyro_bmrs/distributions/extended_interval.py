# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Intervals whose ends may be infinite, element by element, and their bijection from the real line.

A batch of truncated distributions may hold bounded intervals, half-lines and whole lines side by side. PyTorch has a
constraint and a bijection for each of these, but none for a tensor of ends that mixes them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import Transform
from torch.types import _size

from pyro_bmrs.errors import ReductionError

__all__ = ["ExtendedIntervalTransform", "check_ends", "extended_interval", "leaves"]


def check_ends(name: str, low: Tensor, high: Tensor) -> None:
    """
    Refuse intervals whose ends are NaN, equal, or in the wrong order.

    :param name: of what has the interval, for the message.
    :raises ReductionError: saying where, and how often.
    """
    wrong = ~(low < high)
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise ReductionError(
            f"{name} needs low < high, but has low {low[first]:.6g} and high {high[first]:.6g}"
            + (f" at index {first}, and so or similarly at {int(wrong.sum())} of {wrong.numel()}" if first else "")
            + ". Swap the ends; for a point use Delta."
        )


def leaves(
    low: Tensor, high: Tensor, outer_low: Tensor, outer_high: Tensor, rounded_to: torch.dtype | None = None
) -> Tensor:
    """
    Where an interval leaves another one, by more than rounding.

    Ends that were computed in two ways, as -20 and log(exp(-20)), differ in their last places: up to 8 units of these,
    of the coarsest dtype among the four, they are the same end. An end at 0 has no such slack.

    :param low: lower end of the interval, may be -inf.
    :param high: upper end of the interval, may be inf.
    :param outer_low: lower end of the interval that it should be within, may be -inf.
    :param outer_high: upper end of that interval, may be inf.
    :param rounded_to: a dtype that the ends have been rounded to, where that is not their own.
    :return: of the broadcast shape of the four.

    Example::

        >>> import torch
        >>> zero, end = torch.tensor(0.0), torch.tensor(0.1)
        >>> leaves(zero, 10 * end * 0.1, zero, end), leaves(zero, end, zero, 0.99 * end)
        (tensor(False), tensor(True))
    """
    dtypes = {end.dtype for end in (low, high, outer_low, outer_high)} | ({rounded_to} if rounded_to else set())
    slack = 8 * max(torch.finfo(dtype).eps for dtype in dtypes)
    return (low < outer_low - slack * outer_low.abs()) | (high > outer_high + slack * outer_high.abs())


class _ExtendedInterval(constraints.interval):
    """
    Constrain to [``lower_bound``, ``upper_bound``], where both are tensors that may hold infinities.

    Example::

        >>> import torch
        >>> from torch.distributions import biject_to
        >>> support = extended_interval(torch.tensor([0.0, 0.0]), torch.tensor([1.0, torch.inf]))
        >>> support.check(torch.tensor([2.0, 2.0]))
        tensor([False,  True])
        >>> biject_to(support)(torch.zeros(2))
        tensor([0.5000, 1.0000])
    """


# Named as PyTorch names its constraints.
extended_interval: Callable[[Tensor, Tensor], _ExtendedInterval] = _ExtendedInterval


class ExtendedIntervalTransform(Transform):
    """
    The increasing bijection from the real line to an interval whose ends may be infinite.

    A logistic curve between two finite ends, an exponential towards a single one, the identity where there is none.
    A value on an end itself, which no real number maps to, has the smallest positive distance from it that its
    dtype can hold, as in :class:`torch.distributions.transforms.SigmoidTransform`.

    :param low: lower end, may be -inf.
    :param high: upper end, may be inf.

    Example::

        >>> import torch
        >>> to_interval = ExtendedIntervalTransform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, torch.inf]))
        >>> to_interval(torch.zeros(2))
        tensor([0.5000, 3.0000])
        >>> to_interval.inv(torch.tensor([0.5, 3.0]))
        tensor([0., 0.])
    """

    domain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, low: Tensor, high: Tensor, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.low = low
        self.high = high

    @property
    def codomain(self) -> _ExtendedInterval:  # type: ignore[override]
        return extended_interval(self.low, self.high)

    def with_cache(self, cache_size: int = 1) -> ExtendedIntervalTransform:
        if self._cache_size == cache_size:
            return self
        return ExtendedIntervalTransform(self.low, self.high, cache_size)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ExtendedIntervalTransform)
            and torch.equal(self.low, other.low)
            and torch.equal(self.high, other.high)
        )

    __hash__ = Transform.__hash__

    def forward_shape(self, shape: _size) -> torch.Size:
        return torch.Size(torch.broadcast_shapes(shape, self.low.shape, self.high.shape))

    def inverse_shape(self, shape: _size) -> torch.Size:
        return self.forward_shape(shape)

    def _ends(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The ends, with 0 for the infinite ones, and which elements are bounded on both sides, below or above only."""
        has_low, has_high = self.low.isfinite(), self.high.isfinite()
        low = torch.where(has_low, self.low, 0.0)
        high = torch.where(has_high, self.high, 0.0)
        return low, high, has_low & has_high, has_low & ~has_high, has_high & ~has_low

    def _call(self, x: Tensor) -> Tensor:
        low, high, bounded, below, above = self._ends()
        # From the nearer end, so that neither end is ever passed. The exponentials see 0 where they are not asked for:
        # an overflow there would turn the gradient into NaN.
        width = high - low
        inside = torch.where(x < 0, low + width * torch.sigmoid(x), high - width * torch.sigmoid(-x))
        from_low = low + torch.where(below, x, 0.0).exp()
        from_high = high - torch.where(above, -x, 0.0).exp()
        return torch.where(bounded, inside, torch.where(below, from_low, torch.where(above, from_high, x)))

    def _inverse(self, y: Tensor) -> Tensor:
        low, high, bounded, below, above = self._ends()
        tiny = torch.finfo(y.dtype).tiny
        log_left = torch.where(bounded | below, y - low, 1.0).clamp(min=tiny).log()
        log_right = torch.where(bounded | above, high - y, 1.0).clamp(min=tiny).log()
        return torch.where(bounded | below | above, log_left - log_right, y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        low, high, bounded, below, above = self._ends()
        inside = torch.where(bounded, high - low, 1.0).log() + F.logsigmoid(x) + F.logsigmoid(-x)
        outside = torch.where(below, x, torch.where(above, -x, 0.0))
        return torch.where(bounded, inside, outside)


def _transform_to_extended_interval(constraint: _ExtendedInterval) -> ExtendedIntervalTransform:
    return ExtendedIntervalTransform(constraint.lower_bound, constraint.upper_bound)


biject_to.register(_ExtendedInterval, _transform_to_extended_interval)
transform_to.register(_ExtendedInterval, _transform_to_extended_interval)
