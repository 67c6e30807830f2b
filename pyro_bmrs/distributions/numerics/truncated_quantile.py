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
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_bmrs.distributions.numerics.normal_hazard import cumulative_hazard, hazard, hazard_rise
from pyro_bmrs.distributions.numerics.normal_mass import AboutMode, about_mode, energy, log_mass
from pyro_bmrs.distributions.numerics.tracing import untraced

__all__ = ["truncated_cdf", "truncated_quantile"]

_ROOT_2 = math.sqrt(2)
# Intervals with less than this share of the mass beyond their modes, and those more than about 5 scales away, with
# less than this of (twice) the normal's mass, are solved for in cumulative hazard.
_LEAST_SHARE = 0.1
_LEAST_MASS = 6e-7
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
    return _quantile(u, loc, scale, low, high)


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
    return _cdf(value, loc, scale, low, high)


class _TruncatedQuantile(torch.autograd.Function):
    @staticmethod
    @untraced
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
    @untraced
    def forward(ctx: Any, value: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        precision = scale.reciprocal().square()
        whole = about_mode(loc, precision, low, high)
        total = log_mass(*whole[1:])
        # Each piece from its own mode, so that both probabilities keep their relative accuracy down to 0.
        below = _log_mass_of_piece(about_mode(loc, precision, low, value), whole) - total
        above = _log_mass_of_piece(about_mode(loc, precision, value, high), whole) - total
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


_quantile: Callable[..., Tensor] = _TruncatedQuantile.apply
_cdf: Callable[..., Tensor] = _TruncatedCdf.apply


def _log_mass_of_piece(piece: AboutMode, whole: AboutMode) -> Tensor:
    """The log mass of a part of an interval, in terms of the density at the mode of the whole."""
    return log_mass(*piece[1:]) - energy(piece.mode - whole.mode, whole.slope, whole.precision)


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
    r"""
    The derivatives of a quantile x in the parameters of the distribution, at a given probability F of less than x.

    With :math:`z = (x - \mathrm{loc}) / \mathrm{scale}` and the ends :math:`z_l, z_h` in the same units,
    :math:`F = (\Phi(z) - \Phi(z_l)) / (\Phi(z_h) - \Phi(z_l))` is constant if

    .. math:: \frac{dx}{d\,\mathrm{low}} = (1 - F) \frac{\varphi(z_l)}{\varphi(z)}, \qquad
        \frac{dx}{d\,\mathrm{high}} = F \frac{\varphi(z_h)}{\varphi(z)}.

    What moves location and ends together moves x as far, and what stretches both about the location stretches x:

    .. math:: \frac{dx}{d\,\mathrm{loc}} = 1 - \frac{dx}{d\,\mathrm{low}} - \frac{dx}{d\,\mathrm{high}}, \qquad
        \frac{dx}{d\,\mathrm{scale}} = z - z_l \frac{dx}{d\,\mathrm{low}} - z_h \frac{dx}{d\,\mathrm{high}}.
    """

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
        unit = scale * _ROOT_2
        below, above = (loc - low).div_(unit), (high - loc).div_(unit)
        # How far the location is outside the interval: beyond its mode lies as much as beyond this.
        outside = torch.minimum(below, above).clamp_(max=0).neg_()
        ends = torch.stack([below, above, outside])
        below_low, above_high, half = beyond = torch.erfc(ends)
        # The mass from the mode to one end, and to the other, without which it would cancel in the tail.
        mass = (half - torch.minimum(below_low, above_high)).add_(
            torch.maximum(below_low, above_high).neg_().add_(1).clamp_(min=0)
        )
        return cls(ends[:2], beyond[:2], mass, mass < (half * _LEAST_SHARE).clamp_(min=_LEAST_MASS))

    def quantile(self, u: Tensor) -> Tensor:
        """In scales from the location."""
        # Sums of positive terms: the smaller of the two keeps its relative accuracy far into the tail.
        below = torch.addcmul(self.beyond[0], u, self.mass)
        above = torch.addcmul(self.beyond[1], torch.rsub(u, 1), self.mass)
        quantile: Tensor = torch.special.ndtri(torch.minimum(below, above).mul_(0.5)).copysign_(below - above)
        return quantile

    def slopes(self, log_below: Tensor, log_above: Tensor, z: Tensor) -> _Slopes:
        """Derivatives at ``z``, in scales from the location, given the log probabilities of less and of more."""
        low, high = self.ends
        energy = z.clamp(-_LAST_QUANTILE, _LAST_QUANTILE).square_().mul_(0.5)
        by_low = torch.addcmul(energy + log_above, low, low, value=-1).exp_()
        by_high = torch.addcmul(energy + log_below, high, high, value=-1).exp_()
        # An end beyond the last quantile has no influence; the bound keeps an infinite one from making a NaN of it.
        low, high = self.ends.clamp(max=_LAST_QUANTILE)
        by_scale = torch.add(z, torch.addcmul(low * by_low, high, by_high, value=-1), alpha=_ROOT_2)
        return _Slopes((by_low + by_high).neg_().add_(1), by_scale, by_low, by_high)

    def spacing(self, z: Tensor) -> Tensor:
        """dx/du in scales, the reciprocal of the density."""
        return math.sqrt(0.5 * math.pi) * self.mass * torch.exp(0.5 * z * z)


class _Tail(NamedTuple):
    """
    Any truncated normal, in units of its scale as seen from its mode.

    The slope is the signed distance of the mode from the location, 0 where the mode is interior; ``left`` and ``right``
    are the distances from the mode to the ends, as in :mod:`~pyro_bmrs.distributions.numerics.normal_mass`.
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
        start_hazard = hazard(start)
        cumulative, _ = cumulative_hazard(start, start_hazard, torch.stack([self.left, self.right]))
        beyond_left, beyond_right = torch.exp(-cumulative)
        left, right = torch.expm1(-cumulative).neg_()
        # The mass between the mode and the quantile, signed, and all the mass beyond, as fractions of the half normal.
        between = torch.lerp(-left, right, u)
        is_right = between >= 0
        between.abs_()
        beyond = torch.where(is_right, beyond_right, beyond_left)
        beyond.addcmul_(torch.where(is_right, torch.rsub(u, 1), u), left.add_(right))
        level = torch.where(between < 0.5, between.neg_().log1p_(), beyond.log_()).neg_()

        # The mean curvature of the cumulative hazard, relative to that at infinity, rises with the level.
        flatness = torch.rsub(start_hazard * (start_hazard - start), 1)
        curvature = torch.rsub((level * _CURVATURE_RATE).add_(1).rsqrt_().mul_(flatness), 1)
        t = _quadratic_step(level / start_hazard, curvature.div_(start_hazard))
        for _ in range(1 if torch.finfo(t.dtype).bits <= 32 else 2):
            reached, hazard_there = cumulative_hazard(start, start_hazard, t)
            t = t + _quadratic_step((level - reached).div_(hazard_there), hazard_there - start - t)
        t = torch.minimum(t, torch.where(is_right, self.right, self.left))
        return torch.where(is_right, t, -t)

    def slopes(self, log_below: Tensor, log_above: Tensor, t: Tensor) -> _Slopes:
        r"""
        Derivatives at the displacement ``t`` from the mode, given the log probabilities of less and of more.

        Densities and masses are those of the half normals beyond the mode, by the hazard h and its integral H from the
        mode. For the end n on the quantile's side and the end f on the other, in the formulas of :class:`_Slopes`,

        .. math:: \frac{\varphi(n)}{\varphi(t)} = \frac{h(n)}{h(t)} e^{H(t) - H(n)}, \qquad
            (1 - F) \frac{\varphi(f)}{\varphi(t)} = \frac{1 - e^{H(t) - H(n)}}{(1 - e^{-H(n)}) + (1 - e^{-H(f)})}
            \frac{h(f) e^{-H(f)}}{h(t)}.
        """
        is_right = t >= 0
        start = self.slope.abs()
        start_hazard = hazard(start)
        # The end beyond the quantile, as seen from the mode, and the other one. An end beyond the last quantile has no
        # influence; the bound keeps an infinite one from making NaNs of it.
        near, far = torch.where(is_right, self.right, self.left), torch.where(is_right, self.left, self.right)
        t, near, far = places = torch.stack([t.abs(), near, far]).clamp_(max=_LAST_QUANTILE)
        inwards = torch.where(is_right, log_below, log_above).exp()

        cumulative, (there, near_hazard, far_hazard) = cumulative_hazard(start, start_hazard, places)
        _, near_mass, far_mass = torch.expm1(-cumulative).neg_()
        difference = cumulative[0] - cumulative[1]
        weight = inwards * difference.exp()
        share = difference.expm1_().neg_().div_(near_mass + far_mass)
        far_density = far_hazard * torch.rsub(far_mass, 1)
        by_near = weight * near_hazard / there
        by_far = share * far_density / there

        # dx/dloc is 1 less both of these: the same in differences of hazards, which do not cancel in the tail.
        rise, near_rise = hazard_rise(start, start_hazard, places[:2], torch.stack([there, near_hazard]))
        across = torch.addcmul(start_hazard, start_hazard, far_mass).sub_(far_density).mul_(share)
        by_loc = across.add_(rise).addcmul_(weight, near_rise, value=-1).div_(there)
        by_scale = torch.addcmul(t, start, by_loc).addcmul_(far, by_far).addcmul_(near, by_near, value=-1)

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
        start_hazard = hazard(start)
        places = torch.stack([t.abs(), self.left, self.right])
        cumulative, hazards = cumulative_hazard(start, start_hazard, places)
        mass = -torch.expm1(-cumulative[1:]).sum(0)
        return mass * torch.exp(cumulative[0]) / hazards[0]


def _quadratic_step(ratio: Tensor, curvature: Tensor) -> Tensor:
    """The root t of ``t + curvature * t**2 / 2 = ratio`` that is near 0."""
    return 2 * ratio / (ratio * curvature).mul_(2).add_(1).sqrt_().add_(1)


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
    return float((25 * torch.finfo(dtype).eps) ** (1 / 5))
