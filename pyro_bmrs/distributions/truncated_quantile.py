# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
The quantile function of the truncated normal and its distribution function, with analytic derivatives.

Within 5 scales of the location, and on intervals not much narrower than the scale, the textbook quantile is accurate:
interpolate the distribution function between the ends, from the side of the smaller tail, and invert it. Elsewhere it
loses all digits. There the displacement :math:`t` from the mode, in
scales, solves :math:`H(\alpha, t) = L`, where

.. math:: H(\alpha, t) = \int_0^t h(\alpha + s)\, ds, \qquad h(z) = \varphi(z) / \Phi(-z),

is the cumulative hazard of the half of the normal beyond its mode on the interval, :math:`\alpha \ge 0` scales away
from the location, and :math:`L` follows from the probability asked for. The hazard is so nearly linear that solving
one quadratic gives ``t`` to a percent, and each further one takes the error to its third power.

The derivatives are those of the implicit function (M. Figurnov, S. Mohamed and A. Mnih (2018), *Implicit
reparameterization gradients*, https://arxiv.org/abs/1805.08498), :math:`dx/d\theta = -(dF/d\theta) / f(x)`, in closed
form.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_bmrs.distributions.normal_mass import about_mode, energy, log_mass

__all__ = ["truncated_cdf", "truncated_quantile"]

_ROOT_2 = math.sqrt(2)
_ROOT_2_OVER_PI = math.sqrt(2 / math.pi)
# Intervals with less than this fraction of the mass beyond their modes, and those more than about 5 scales away (where
# twice that mass falls below the second number), are solved for in cumulative hazard.
_LEAST_MASS = 0.1
_LEAST_TAIL = 6e-7
# How fast the mean curvature of the cumulative hazard approaches 1: with this rate the first solution of H(t) = L is
# within 1% of t, and the second within 4e-9, for every distance from the location and L up to 40.
_CURVATURE_RATE = 0.3
# No quantile of a normal at a floating-point probability lies as many scales away from its mode.
_LAST_QUANTILE = 40.0


def truncated_quantile(u: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """
    The quantile function of the normal truncated to [``low``, ``high``], differentiable once in all arguments.

    Accurate to rounding for locations any distance outside the interval, and intervals of any width. The gradients
    are the analytic derivatives of the quantile, so that this is the reparametrisation of a truncated normal sample.

    :param u: probability, in [0, 1].
    :param loc: location of the untruncated normal.
    :param scale: scale of the untruncated normal, positive.
    :param low: lower end, may be -inf.
    :param high: upper end, may be inf. These four are of one shape, with which ``u`` broadcasts.
    :return: the quantile, of the broadcast shape, never outside [``low``, ``high``].

    Example::

        >>> import torch
        >>> u, loc, scale = torch.tensor(0.5), torch.tensor(-40.0), torch.tensor(1.0)
        >>> truncated_quantile(u, loc, scale, torch.tensor(0.0), torch.tensor(1.0))  # log 2 / 40, and a little less
        tensor(0.0173)
    """
    return _TruncatedQuantile.apply(u, loc, scale, low, high)


def truncated_cdf(value: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """
    The distribution function of the normal truncated to [``low``, ``high``], differentiable once in all arguments.

    :param value: in [``low``, ``high``].
    :param loc: with ``scale``, ``low`` and ``high``, as for :func:`truncated_quantile`.
    :return: the probability of less than ``value``, of the broadcast shape; its relative accuracy holds down to 0.

    Example::

        >>> import torch
        >>> value, loc, scale = torch.tensor(0.0173), torch.tensor(-40.0), torch.tensor(1.0)
        >>> truncated_cdf(value, loc, scale, torch.tensor(0.0), torch.tensor(1.0))
        tensor(0.4997)
    """
    return _TruncatedCdf.apply(value, loc, scale, low, high)


class _TruncatedQuantile(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        bulk = _Bulk.of(loc, scale, low, high)
        z = bulk.quantile(u)
        x = torch.addcmul(loc, scale, z).clamp_(low, high)
        rest, t = _rest(bulk, x.shape), None
        if rest is not None:
            u_rest, loc_rest, scale_rest, low_rest, high_rest = _pick(rest, x.shape, u, loc, scale, low, high)
            t = _Tail.of(loc_rest, scale_rest, low_rest, high_rest).quantile(u_rest)
            mode = loc_rest.clamp(low_rest, high_rest)
            x = _put(rest, x, torch.addcmul(mode, scale_rest, t).clamp_(low_rest, high_rest))
        ctx.save_for_backward(u, loc, scale, low, high, z, *bulk, rest, t)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, loc, scale, low, high, z, *bulk_fields, rest, t = ctx.saved_tensors
        bulk, by_u = _Bulk(*bulk_fields), ctx.needs_input_grad[0]
        below, above = u.log(), torch.log1p(-u)
        slopes = bulk.slopes(below, above, z)
        spacing = scale * bulk.spacing(z) if by_u else None
        if rest is not None:
            below, above, *parameters = _pick(rest, grad.shape, below, above, loc, scale, low, high)
            tail = _Tail.of(*parameters)
            slopes = _Slopes(*(_put(rest, *pair) for pair in zip(slopes, tail.slopes(below, above, t))))
            spacing = _put(rest, spacing, parameters[1] * tail.spacing(t)) if spacing is not None else None
        return _gradients(ctx, grad, (u, loc, scale, low, high), (spacing, *slopes))


class _TruncatedCdf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        precision = scale.reciprocal().square()
        whole = about_mode(loc, precision, low, high)
        # Each piece from its own mode, so that both probabilities keep their relative accuracy down to 0.
        pieces = about_mode(loc, precision, low, value), about_mode(loc, precision, value, high)
        below, above = (
            log_mass(*piece[1:]) - energy(piece.mode - whole.mode, whole.slope, precision) - log_mass(*whole[1:])
            for piece in pieces
        )
        ctx.save_for_backward(value, loc, scale, low, high, below, above)
        return below.exp()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, loc, scale, low, high, below, above = ctx.saved_tensors
        bulk, z = _Bulk.of(loc, scale, low, high), (value - loc) / scale
        slopes, spacing = bulk.slopes(below, above, z), scale * bulk.spacing(z)
        rest = _rest(bulk, grad.shape)
        if rest is not None:
            rest_value, below, above, *parameters = _pick(rest, grad.shape, value, below, above, loc, scale, low, high)
            loc_rest, scale_rest, low_rest, high_rest = parameters
            tail, t = _Tail.of(*parameters), (rest_value - loc_rest.clamp(low_rest, high_rest)) / scale_rest
            slopes = _Slopes(*(_put(rest, *pair) for pair in zip(slopes, tail.slopes(below, above, t))))
            spacing = _put(rest, spacing, scale_rest * tail.spacing(t))
        density = 1 / spacing
        return _gradients(ctx, grad, (value, loc, scale, low, high), (density, *(-density * slope for slope in slopes)))


def _rest(bulk: _Bulk, shape: torch.Size) -> Tensor | None:
    """The flat positions of the elements that the textbook formulas do not serve, if any."""
    return bulk.scarce.expand(shape).reshape(-1).nonzero().squeeze(-1) if bulk.scarce.any() else None


def _pick(index: Tensor, shape: torch.Size, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The elements at flat positions of tensors expanded to ``shape``."""
    return torch.stack([tensor.expand(shape) for tensor in tensors]).reshape(len(tensors), -1)[:, index].unbind()


def _put(index: Tensor, tensor: Tensor, elements: Tensor) -> Tensor:
    """The tensor with new elements at flat positions."""
    return tensor.reshape(-1).index_copy(0, index, elements).reshape(tensor.shape)


def _gradients(
    ctx: Any, grad: Tensor, arguments: tuple[Tensor, ...], derivatives: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    return tuple(
        (grad * derivative).sum_to_size(argument.shape) if needed and derivative is not None else None
        for needed, argument, derivative in zip(ctx.needs_input_grad, arguments, derivatives)
    )


class _Slopes(NamedTuple):
    """The derivatives of a quantile in the parameters of the distribution."""

    loc: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor


class _Bulk(NamedTuple):
    """A truncated normal, in units of √2 scales as seen from its location; for what :attr:`scarce` does not mark."""

    ends: Tensor  # the distances to both ends, outwards
    beyond: Tensor  # twice the normal's masses beyond the ends
    mass: Tensor  # twice its mass between them
    scarce: Tensor  # where that mass is too little, or too far out, for the textbook formulas

    @classmethod
    def of(cls, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> _Bulk:
        ends = torch.stack([loc - low, high - loc]).div_(_ROOT_2 * scale)
        # The distance to the interval is that to its mode: half the normal is beyond it where the mode is interior.
        outside = ends.amin(0).clamp_(max=0)
        low_beyond, high_beyond, half = beyond = torch.erfc(torch.cat([ends, -outside[None]]))
        mass = torch.where(outside < 0, half - torch.minimum(low_beyond, high_beyond), 2 - low_beyond - high_beyond)
        scarce = (mass < _LEAST_MASS * half) | (half < _LEAST_TAIL)
        return cls(ends, beyond[:2], mass, scarce)

    def quantile(self, u: Tensor) -> Tensor:
        """In scales from the location."""
        # Sums of positive terms: the smaller of the two keeps its relative accuracy far into the tail.
        below = torch.addcmul(self.beyond[0], u, self.mass)
        above = torch.addcmul(self.beyond[1], 1 - u, self.mass)
        return torch.copysign(torch.special.ndtri(torch.minimum(below, above).mul_(0.5)), below - above)

    def slopes(self, log_below: Tensor, log_above: Tensor, z: Tensor) -> _Slopes:
        """Derivatives at ``z``, in scales from the location, given the log probabilities of less and of more."""
        low, high = self.ends
        energy = 0.5 * z.clamp(-_LAST_QUANTILE, _LAST_QUANTILE).square()
        by_low = torch.exp(log_above + energy - low * low)
        by_high = torch.exp(log_below + energy - high * high)
        # An end beyond the last quantile has no influence; the bound keeps an infinite one from making a NaN of it.
        low, high = self.ends.clamp(max=_LAST_QUANTILE)
        return _Slopes(1 - by_low - by_high, z + _ROOT_2 * (low * by_low - high * by_high), by_low, by_high)

    def spacing(self, z: Tensor) -> Tensor:
        """dx/du in scales, the reciprocal of the density."""
        return math.sqrt(0.5 * math.pi) * self.mass * torch.exp(0.5 * z * z)


class _Tail(NamedTuple):
    """
    Any truncated normal, in units of its scale as seen from its mode.

    The slope is the signed distance of the mode from the location, 0 where the mode is interior; ``left`` and ``right``
    are the distances from the mode to the ends, as in :mod:`~pyro_bmrs.distributions.normal_mass`.
    """

    slope: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> _Tail:
        below, above, width = (low - loc) / scale, (high - loc) / scale, (high - low) / scale
        left = torch.minimum((-below).clamp_(min=0), width)
        right = torch.minimum(above.clamp(min=0), width)
        return cls(below.clamp_(min=0) + above.clamp_(max=0), left, right)

    def quantile(self, u: Tensor) -> Tensor:
        """The displacement from the mode, in scales."""
        start = self.slope.abs()
        start_hazard = _hazard(start)
        cumulative, _ = _cumulative_hazard(start, start_hazard, torch.stack([self.left, self.right]))
        mass = torch.expm1(-cumulative).neg_()
        beyond_left, beyond_right = torch.exp(-cumulative)
        # The mass between the mode and the quantile, signed, and all the mass beyond, as fractions of the half normal.
        between = torch.lerp(-mass[0], mass[1], u)
        is_right = between >= 0
        between = between.abs()
        beyond = torch.where(is_right, 1 - u, u) * mass.sum(0) + torch.where(is_right, beyond_right, beyond_left)
        level = -torch.where(between < 0.5, torch.log1p(-between), torch.log(beyond))

        ratio = level / start_hazard
        curvature = 1 - (1 - start_hazard * (start_hazard - start)) * torch.rsqrt(1 + _CURVATURE_RATE * level)
        t = 2 * ratio / (1 + torch.sqrt(1 + 2 * ratio * curvature / start_hazard))
        for _ in range(1 if torch.finfo(t.dtype).bits <= 32 else 2):
            reached, hazard = _cumulative_hazard(start, start_hazard, t)
            ratio = (level - reached) / hazard
            t = t + 2 * ratio / (1 + torch.sqrt(1 + 2 * ratio * (hazard - start - t)))
        t = torch.minimum(t, torch.where(is_right, self.right, self.left))
        return torch.where(is_right, t, -t)

    def slopes(self, log_below: Tensor, log_above: Tensor, t: Tensor) -> _Slopes:
        """Derivatives at the displacement ``t`` from the mode, given the log probabilities of less and of more."""
        is_right = t >= 0
        start = self.slope.abs()
        start_hazard = _hazard(start)
        # The end beyond the quantile, as seen from the mode, and the other one. An end beyond the last quantile has no
        # influence; the bound keeps an infinite one from making NaNs of it.
        near, far = torch.where(is_right, self.right, self.left), torch.where(is_right, self.left, self.right)
        t, near, far = places = torch.stack([t.abs(), near, far]).clamp_(max=_LAST_QUANTILE)
        inwards = torch.where(is_right, log_below, log_above).exp()

        cumulative, (hazard, near_hazard, far_hazard) = _cumulative_hazard(start, start_hazard, places)
        _, near_mass, far_mass = torch.expm1(-cumulative).neg_()
        left_over = torch.exp(cumulative[0] - cumulative[1])
        share = torch.expm1(cumulative[0] - cumulative[1]).neg_() / (near_mass + far_mass)
        far_density = far_hazard * (1 - far_mass)
        by_near = inwards * left_over * near_hazard / hazard
        by_far = share * far_density / hazard

        # dx/dloc is 1 less both of these: the same in differences of hazards, which do not cancel in the tail.
        rise, near_rise = _hazard_rise(start, start_hazard, places[:2], torch.stack([hazard, near_hazard]))
        across = share * (start_hazard * (1 + far_mass) - far_density)
        by_loc = (rise - inwards * left_over * near_rise + across) / hazard
        by_scale = start * by_loc + t + far * by_far - near * by_near

        half = 0.5 * (near + far)
        is_narrow = half * (start + half) < _narrow_limit(t.dtype)
        if is_narrow.any():
            narrow_by_loc, narrow_by_scale = _narrow_slopes(start, t, near, far)
            by_loc = torch.where(is_narrow, narrow_by_loc, by_loc)
            by_scale = torch.where(is_narrow, narrow_by_scale, by_scale)
        by_low, by_high = torch.where(is_right, by_far, by_near), torch.where(is_right, by_near, by_far)
        return _Slopes(by_loc, torch.where(is_right, by_scale, -by_scale), by_low, by_high)

    def spacing(self, t: Tensor) -> Tensor:
        """dx/du in scales, the reciprocal of the density."""
        start = self.slope.abs()
        start_hazard = _hazard(start)
        places = torch.stack([t.abs(), self.left, self.right])
        cumulative, (hazard, *_) = _cumulative_hazard(start, start_hazard, places)
        mass = -torch.expm1(-cumulative[1:]).sum(0)
        return mass * torch.exp(cumulative[0]) / hazard


def _hazard(z: Tensor) -> Tensor:
    """Density over mass beyond ``z`` of the standard normal, for z >= 0."""
    return _ROOT_2_OVER_PI / torch.special.erfcx(z / _ROOT_2)


def _hazard_excess(z: Tensor, hazard: Tensor) -> Tensor:
    """``hazard - z``, to full relative accuracy."""
    # Laplace's continued fraction, where the difference would cancel.
    fraction = z
    for k in range(8, 1, -1):
        fraction = z + k / fraction
    return torch.where(z > 16, 1 / fraction, hazard - z)


def _hazard_rise(start: Tensor, start_hazard: Tensor, t: Tensor, hazard: Tensor) -> Tensor:
    """The ``hazard`` at ``start + t`` less that at ``start``, accurately; ``t`` and it have a leading dimension."""
    ends = torch.cat([start[None], start + t])
    hazards = torch.cat([start_hazard[None], hazard])
    excess = _hazard_excess(ends, hazards)
    long = t + (excess[1:] - excess[0])
    # Where that cancels, by the derivatives at both ends: h' = h (h - z), h'' = h (h - z)(2 h - z) - h.
    first = hazards * excess
    second = first * (hazards + excess) - hazards
    short = 0.5 * t * (first[0] + first[1:] + t * (second[0] - second[1:]) / 6)
    return torch.where(t * hazard < torch.finfo(t.dtype).eps ** (1 / 5), short, long)


def _cumulative_hazard(start: Tensor, start_hazard: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """H(``start``, t), and the hazard at ``start + t``, given that at ``start``."""
    end = start + t
    hazard = _hazard(end)
    # The derivatives of the hazard at both ends, each times its power of t: h' = h (h - z), h'' = h' (2 h - z) - h.
    first, last = t * start_hazard, t * hazard
    first_excess, last_excess = first - t * start, last - t * end
    square = t * t
    change = first * first_excess - last * last_excess
    first_bend = first * (first_excess * (first + first_excess) - square)
    last_bend = last * (last_excess * (last + last_excess) - square)
    # By a Taylor expansion at both ends where the logarithm of the ratio of the hazards would cancel.
    short = (first + last) / 2 + change / 10 + (first_bend + last_bend) / 120
    long = t * (start + t / 2) + torch.log(hazard / start_hazard)
    return torch.where(last < torch.finfo(t.dtype).eps ** (1 / 12), short, long), hazard


def _narrow_slopes(start: Tensor, t: Tensor, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """
    The derivatives in location and scale where the density is all but uniform.

    The third-order expansion of -(dF/dloc) / f and -(dF/dscale) / f in the slope ``b`` at the middle of the interval,
    its half width, and the displacement ``y`` from the middle, all in scales.
    """
    middle = 0.5 * (near - far)
    b, y, q = start + middle, t - middle, (near - t) * (far + t)
    yy, by = y * y, b * y
    by_loc = 0.5 + by / 6 - q / 8 - b * b * q / 24 - by * (29 * q + 8 * yy) / 360 + q * q / 48
    by_scale = (
        (b + y / 3)
        + (b * (by - q) / 3 + y * (yy - 2 * q) / 45)
        + (b * q * (11 * q - yy) / 180 - b * b * (b * q / 12 + y * (3 * q + yy) / 15))
        + y * (2 * q * q - 8 * q * yy - yy * yy) / 945
    )
    return q * by_loc, q * by_scale


def _narrow_limit(dtype: torch.dtype) -> float:
    """The half width times the slope up to which the expansion loses fewer digits than the closed form."""
    return (25 * torch.finfo(dtype).eps) ** (1 / 5)
