# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
The mass of a normal density on an interval, measured from its mode.

Every function here speaks of the density proportional to :math:`\exp(-st - \lambda t^2/2)` for
:math:`t \in [-l, r]`, where ``t`` is the displacement from the **mode** of the density on its interval. Where the
mode is interior the slope ``s`` is 0; where it is the low end, ``left`` is 0 and the slope is positive; where it is
the high end, ``right`` is 0 and the slope is negative. The exponent is then never positive: no term of the size of
(location / scale)² appears, nothing overflows and nothing cancels, however far the location lies outside the
interval, and a uniform is just precision 0.

==========================  ==========================================================================================
:func:`about_mode`          mode, slope there, precision, and distances to both ends, of a normal on an interval
:func:`energy`              the exponent :math:`st + \lambda t^2/2` at a displacement
:func:`log_mass`            log of the integral of the density over the interval
:func:`moments`             E[t], E[t²], ... of the displacement from the mode
:func:`mean_and_variance`   mean displacement from the mode, and variance
:func:`log_fractions`       log P(T <= t) and log P(T >= t), each to full relative accuracy
==========================  ==========================================================================================

The log density of a normal on an interval at ``x`` is ``-energy(x - mode, slope, precision) - log_mass(...)``.
All functions broadcast, and are differentiable to any order in all of their tensor arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bmrs.distributions.numerics.normal_quadrature import quadrature_moments
from pyro_bmrs.distributions.numerics.tracing import is_traced, untraced

_HALF_ROOT_PI = 0.5 * math.sqrt(math.pi)


class AboutMode(NamedTuple):
    """A normal on an interval as seen from its mode; see :func:`about_mode`."""

    mode: Tensor
    slope: Tensor
    precision: Tensor
    left: Tensor
    right: Tensor


def about_mode(loc: Tensor, precision: Tensor, low: Tensor, high: Tensor) -> AboutMode:
    """
    The normal of location ``loc`` and a precision >= 0 on [``low``, ``high``], as seen from its mode.

    :param loc: location of the untruncated normal; of no account where the precision is 0.
    :param precision: 1 / scale², not negative.
    :param low: lower end, may be -inf.
    :param high: upper end, may be inf.
    :return: the mode, the slope of the negative log density there, the precision, and the distances from the mode to
        both ends. ``log_mass(*about_mode(...)[1:])`` is the log normaliser.

    Example::

        >>> import torch
        >>> about = about_mode(torch.tensor(3.0), torch.tensor(4.0), torch.tensor(0.0), torch.tensor(1.0))
        >>> about.mode, about.slope, about.left, about.right
        (tensor(1.), tensor(-8.), tensor(1.), tensor(0.))
    """
    mode = loc.clamp(low, high)
    return AboutMode(mode, precision * (mode - loc), precision, mode - low, high - mode)


def energy(t: Tensor, slope: Tensor, precision: Tensor) -> Tensor:
    """The negative log density relative to the mode, ``slope * t + precision * t**2 / 2``, in nats."""
    return t * (slope + 0.5 * precision * t)


def log_mass(slope: Tensor, precision: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""
    Log of the integral of :math:`\exp(-st - \lambda t^2/2)` over :math:`t \in [-l, r]`, where 0 is the mode.

    Accurate to a few units in the last place of the integral for every slope and precision: error functions where
    the mode is interior, scaled complementary error functions in the tail, and Gauss-Legendre quadrature over the
    part of the interval that carries mass where those cancel (narrow intervals) or do not exist (precision <= 0). A
    difference of two normal distribution functions loses all digits beyond 8 scales.

    :param slope: slope of the exponent at the mode; 0 for an interior mode, positive where ``left`` is 0, negative
        where ``right`` is 0.
    :param precision: curvature of the exponent; may be 0 or negative on a bounded interval.
    :param left: distance from the mode to the low end, may be inf where the density is integrable.
    :param right: distance from the mode to the high end, may be inf on the same condition.
    :return: log of the integral, in nats, of the broadcast shape; -inf for an interval of no length.

    Example::

        >>> import torch
        >>> inf, zero, one = torch.tensor(torch.inf), torch.tensor(0.0), torch.tensor(1.0)
        >>> log_mass(zero, one, inf, inf)                # log sqrt(2 pi)
        tensor(0.9189)
        >>> log_mass(torch.tensor(1e6), one, zero, inf)  # the tail beyond a million scales: 1 / slope
        tensor(-13.8155)
    """
    arguments = _aligned(slope, precision, left, right)
    return _differentiable_log_mass(*arguments) if _needs_graph(arguments) else _log_mass(*arguments)


def moments(slope: Tensor, precision: Tensor, left: Tensor, right: Tensor, order: int) -> tuple[Tensor, ...]:
    """
    The moments E[t], ..., E[t^order] of the displacement from the mode.

    The mean lies within √3 standard deviations of the mode wherever the density is unimodal, so central moments
    follow from these without harmful cancellation, even a million scales out in the tail.

    :param slope: with ``precision``, ``left`` and ``right``, as for :func:`log_mass`.
    :param order: how many moments.
    :return: a tensor of the broadcast shape for each moment.

    Example::

        >>> import torch
        >>> inf, zero, one = torch.tensor(torch.inf), torch.tensor(0.0), torch.tensor(1.0)
        >>> moments(torch.tensor(1e3), one, zero, inf, 2)
        (tensor(0.0010), tensor(2.0000e-06))
    """
    arguments = _aligned(slope, precision, left, right)
    if _needs_graph(arguments):
        return _differentiable_moments(*arguments, order).unbind(0)
    slope, precision, left, right = arguments
    return _moments(slope, precision, left, right, order).unbind(0)


def mean_and_variance(slope: Tensor, precision: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """
    Mean displacement from the mode, and variance; arguments as for :func:`log_mass`.

    Example::

        >>> import torch
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> mean_and_variance(zero, zero, zero, one)  # a uniform
        (tensor(0.5000), tensor(0.0833))
    """
    first, second = moments(slope, precision, left, right, 2)
    return first, second - first * first


def log_fractions(t: Tensor, slope: Tensor, precision: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """
    Log of the fractions of the mass below and above a displacement ``t`` from the mode, for a precision >= 0.

    Both are integrated directly, neither is one minus the other: each keeps its relative accuracy however small it is.

    :param t: displacement from the mode, within [-left, right].
    :param slope: with ``precision``, ``left`` and ``right``, as for :func:`log_mass`.
    :return: log P(T <= t) and log P(T >= t), in nats.

    Example::

        >>> import torch
        >>> inf, zero, one = torch.tensor(torch.inf), torch.tensor(0.0), torch.tensor(1.0)
        >>> log_fractions(torch.tensor(20.0), zero, one, inf, inf)
        (tensor(0.), tensor(-203.9172))
    """
    zero = torch.zeros_like(t)
    beyond = t > 0
    whole = log_mass(slope, precision, left, right)
    body = log_mass(slope, precision, torch.where(beyond, left, -t), torch.where(beyond, t, right)) - whole
    # The tail on the other side of t has its mode at t, where the slope points outwards.
    below, above = torch.where(beyond, zero, (left + t).clamp(min=0)), torch.where(beyond, right - t, zero)
    tail = log_mass(slope + precision * t, precision, below, above.clamp(min=0)) - energy(t, slope, precision) - whole
    return torch.where(beyond, body, tail), torch.where(beyond, tail, body)


def _aligned(*tensors: Tensor) -> list[Tensor]:
    """The tensors with one shape and one dtype."""
    dtype = reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    return [tensor.to(dtype) for tensor in torch.broadcast_tensors(*tensors)]


def _needs_graph(tensors: list[Tensor]) -> bool:
    # An autograd function costs as much as a thousand elements: it is not entered in vain.
    # The tracer must not look into what it is there for: see :mod:`~pyro_bmrs.distributions.numerics.tracing`.
    needed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    # Nor can vmap look into it: it writes in place, by index. The function has a rule for it.
    return needed or is_traced() or torch._C._are_functorch_transforms_active()


def _log_mass(slope: Tensor, precision: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Values of :func:`log_mass`, without a graph; in place and by index, since this is the inner loop of pruning."""
    shape = slope.shape
    slope, precision, left, right = (tensor.reshape(-1) for tensor in (slope, precision, left, right))
    half = 0.5 * precision
    unit = half.rsqrt()
    root = half.mul_(unit)
    ends = (slope != 0) | ~(precision > 0)
    if ends.all():
        return _end_mass(slope, precision, left, right, unit, root).log_().reshape(shape)
    mass = (left * root).erf_().add_((right * root).erf_()).mul_(unit).mul_(_HALF_ROOT_PI)
    rest = ends.nonzero().squeeze(-1)
    if len(rest):
        parts = (tensor.index_select(0, rest) for tensor in (slope, precision, left, right, unit, root))
        mass.index_copy_(0, rest, _end_mass(*parts))
    return mass.log_().reshape(shape)


def _end_mass(slope: Tensor, precision: Tensor, left: Tensor, right: Tensor, unit: Tensor, root: Tensor) -> Tensor:
    """The mass where the mode is an end of the interval, or the precision is not positive; 1-D."""
    length = torch.where(slope < 0, left, right)
    mass, fall = scaled_tail((0.5 * slope.abs()).mul_(unit), length * root)
    mass.mul_(unit).mul_(_HALF_ROOT_PI)
    # With less than one e-fold between the ends the two terms cancel; a NaN says that there is no root.
    flat = (~((slope != 0) & (fall > 1))).nonzero().squeeze(-1)
    if len(flat):
        slope, precision, left, right = (tensor[flat] for tensor in (slope, precision, left, right))
        unit, integrals = quadrature_moments(slope, precision, left, right, order=0)
        mass[flat] = torch.where((slope == 0) & (precision == 0), left + right, unit * integrals[0])
    return mass


def scaled_tail(start: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """
    exp(start²) (erfc(start) - erfc(start + length)), and by how many e-folds the second is the smaller; 1-D, no graph.

    Full relative accuracy for ``start >= 0`` where the second number is above 1; below, the difference cancels.
    """
    fall = length * (length + 2 * start)
    tail = torch.special.erfcx(start)
    near = (fall < 40).nonzero().squeeze(-1)
    if len(near):
        end = start.index_select(0, near).add_(length.index_select(0, near))
        tail[near] -= torch.special.erfcx(end).mul_(fall.index_select(0, near).neg_().exp_())
    return tail, fall


def _moments(slope: Tensor, precision: Tensor, left: Tensor, right: Tensor, order: int) -> Tensor:
    """Values of :func:`moments`, stacked, without a graph."""
    shape = slope.shape
    slope, precision, left, right = [tensor.reshape(-1) for tensor in (slope, precision, left, right)]
    root = (0.5 * precision).sqrt()
    below, above = left * root, right * root
    # Beyond 40 the density at the end is 0; the bound keeps infinite ends from making NaNs of it.
    low_end, high_end = -below.clamp(max=40), above.clamp(max=40)
    low_density, high_density = torch.exp(-low_end * low_end), torch.exp(-high_end * high_end)
    integrals = [_HALF_ROOT_PI * (torch.erf(below) + torch.erf(above))]
    for k in range(order):
        # Integration by parts; the ends' terms cancel the first only on intervals of less than a scale.
        parts = low_end**k * low_density - high_end**k * high_density
        integrals.append(0.5 * (parts if k == 0 else k * integrals[k - 1] + parts))
    out = torch.stack([integral / integrals[0] / root**k for k, integral in enumerate(integrals)][1:])
    wide = (slope == 0) & (torch.maximum(below, above) > 1)
    rest = (~wide).nonzero().squeeze(-1)
    if len(rest):
        unit, raw = quadrature_moments(slope[rest], precision[rest], left[rest], right[rest], order)
        for k in range(order):
            out[k, rest] = raw[k + 1] / raw[0] * unit ** (k + 1)
    return out.reshape(order, *shape)


def _end_density(slope: Tensor, precision: Tensor, distance: Tensor, log_mass: Tensor) -> tuple[Tensor, Tensor]:
    """The normalised density at an end, and the end's distance from the mode with 0 for one that has no density."""
    finite = torch.where(distance.isinf(), torch.zeros_like(distance), distance)
    density = torch.exp(-energy(finite, slope, precision) - log_mass)
    density = torch.where(distance.isinf(), torch.zeros_like(density), density)
    return density, torch.where(density > 0, finite, torch.zeros_like(finite))


def _batches_first(in_dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Tensors of one shape, but for the dimension of vmap that some of them have, with that dimension first."""
    for dim, tensor in zip(in_dims, tensors):
        yield tensor if dim is None else tensor.movedim(dim, 0)


class _LogMass(torch.autograd.Function):
    """log_mass with its analytic gradients: minus moments, and the densities at the ends."""

    @staticmethod
    @untraced
    def forward(slope: Tensor, precision: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return _log_mass(slope, precision, left, right)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        slope, precision, left, right = _batches_first(in_dims, tensors)
        return log_mass(slope, precision, left, right), 0

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slope, precision, left, right, value = ctx.saved_tensors
        grads: list[Tensor | None] = [None] * 4
        if any(ctx.needs_input_grad[:2]):
            first, second = moments(slope, precision, left, right, 2)
            grads[:2] = -grad * first, -0.5 * grad * second
        if ctx.needs_input_grad[2]:
            grads[2] = grad * _end_density(-slope, precision, left, value)[0]
        if ctx.needs_input_grad[3]:
            grads[3] = grad * _end_density(slope, precision, right, value)[0]
        return tuple(grads)


class _Moments(torch.autograd.Function):
    """Stacked moments, whose gradients are covariances of powers: moments again, two orders up."""

    @staticmethod
    @untraced
    def forward(slope: Tensor, precision: Tensor, left: Tensor, right: Tensor, order: int) -> Tensor:
        return _moments(slope, precision, left, right, order)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        *tensors, order = inputs
        slope, precision, left, right = _batches_first(in_dims, tuple(tensors))
        return torch.stack(moments(slope, precision, left, right, order)), 1

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.order = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slope, precision, left, right = ctx.saved_tensors
        order = ctx.order
        powers = moments(slope, precision, left, right, order + 2)
        value = log_mass(slope, precision, left, right)
        low_density, low_end = _end_density(-slope, precision, left, value)
        high_density, high_end = _end_density(slope, precision, right, value)
        grads = [torch.zeros_like(slope) for _ in range(4)]
        for k in range(1, order + 1):
            upstream, moment = grad[k - 1], powers[k - 1]
            grads[0] = grads[0] - upstream * (powers[k] - moment * powers[0])
            grads[1] = grads[1] - 0.5 * upstream * (powers[k + 1] - moment * powers[1])
            grads[2] = grads[2] + upstream * ((-low_end) ** k - moment) * low_density
            grads[3] = grads[3] + upstream * (high_end**k - moment) * high_density
        return *grads, None


_differentiable_log_mass: Callable[..., Tensor] = _LogMass.apply
_differentiable_moments: Callable[..., Tensor] = _Moments.apply
