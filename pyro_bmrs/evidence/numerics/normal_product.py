# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
The product q·r/p of normals and uniforms on intervals, on tensors of parameters.

With :math:`E_i(x)` the negative log density of each member relative to its mode and :math:`M_i` its mass
(:mod:`~pyro_bmrs.distributions.numerics.normal_mass`), the exponent of the product on the intersection of the
supports of q and r is :math:`T(x) = E_q(x) + E_r(x) - E_p(x)`, again a parabola. Seen from its own lowest point c it
is a normal on an interval, of precision :math:`\lambda_s = \lambda_q + \lambda_r - \lambda_p`, so

.. math:: \log E_q[r/p] = -T(c) + \log M_s - \log M_q - \log M_r + \log M_p.

A uniform is the member of precision 0. Only differences of locations appear, never their squares: a reduced prior a
million times narrower than the posterior costs no digits.

Source: K. Friston, T. Parr and P. Zeidman (2018), *Bayesian model reduction*, https://arxiv.org/abs/1805.07092,
extended here to truncated members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bmrs.distributions.numerics.normal_mass import about_mode, log_mass


class IntervalUniform(NamedTuple):
    """A uniform on an interval."""

    low: Tensor
    high: Tensor


class IntervalNormal(NamedTuple):
    """A normal on an interval, whose ends may be infinite."""

    loc: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor


class NormalProduct(NamedTuple):
    """
    q·r/p, normalised: a normal on [``low``, ``high``], of any sign of ``precision``.

    ``log_evidence`` is log E_q[r/p] in nats: -inf where q and r share no interval, inf where the integral diverges.
    Location and precision are None where all three are uniform.
    """

    log_evidence: Tensor
    loc: Tensor | None
    precision: Tensor | None
    low: Tensor
    high: Tensor


class UniformMember(NamedTuple):
    """A uniform, and the log of its mass."""

    low: Tensor
    high: Tensor
    log_mass: Tensor


class NormalMember(NamedTuple):
    """A normal, seen from its mode: ``offset`` is the mode less the location, ``slope`` that of the exponent there."""

    low: Tensor
    high: Tensor
    log_mass: Tensor
    loc: Tensor
    precision: Tensor
    offset: Tensor
    slope: Tensor


Member = NormalMember | UniformMember


def normal_product(
    q: IntervalNormal | IntervalUniform, p: IntervalNormal | IntervalUniform, r: IntervalNormal | IntervalUniform
) -> NormalProduct:
    """
    The product q·r/p of normals and uniforms on intervals.

    Parameters broadcast, and each result is of a shape that broadcasts to theirs. The log evidence is exactly 0 where
    the parameters of q are those of p.

    Example::

        >>> import torch
        >>> zero, one, half = torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.5)
        >>> q, p = IntervalNormal(half, one, zero, one), IntervalUniform(zero, one)
        >>> normal_product(q, p, r=IntervalNormal(zero, half, zero, one)).log_evidence
        tensor(0.0006)
    """
    return product_of_members(seen_from_mode(q), seen_from_mode(p), seen_from_mode(r))


def seen_from_mode(member: IntervalNormal | IntervalUniform) -> Member:
    """The member, with what its mode and its mass are."""
    if isinstance(member, IntervalUniform):
        return UniformMember(*member, (member.high - member.low).log())
    mode, slope, precision, left, right = about_mode(member.loc, member.scale**-2, member.low, member.high)
    mass = log_mass(slope, precision, left, right)
    return NormalMember(member.low, member.high, mass, member.loc, precision, mode - member.loc, slope)


def product_of_members(q: Member, p: Member, r: Member) -> NormalProduct:
    """:func:`normal_product` of members seen from their modes."""
    low, high = torch.maximum(q.low, r.low), torch.minimum(q.high, r.high)
    disjoint = low >= high
    if disjoint.any():  # any interval will do, so that no NaN reaches the gradients of the other elements
        low, high = torch.where(disjoint, 0.0, low), torch.where(disjoint, 1.0, high)
    exponent = _Exponent(*(member if isinstance(member, NormalMember) else None for member in (q, p, r)))
    loc = precision = None
    if all(normal is None for normal in exponent):
        value = ((high - low).log() - r.log_mass) - (q.log_mass - p.log_mass)
    else:
        precision = exponent.precision()
        # Two normals, or a uniform prior, leave a parabola that opens upwards.
        falls = isinstance(p, NormalMember) and bool((precision <= 0).any())
        lowest = (_lowest_if_falling if falls else _lowest)(exponent, precision, low, high)
        loc = lowest.stationary
        mass = log_mass(lowest.slope, precision, lowest.left, lowest.right)
        value = (mass - r.log_mass) - (q.log_mass - p.log_mass) - exponent.rise(lowest, low, high)
        if lowest.diverges is not None:
            value = torch.where(lowest.diverges, torch.inf, value)
    if disjoint.any():
        value = torch.where(disjoint, -torch.inf, value)
    return NormalProduct(value, loc, precision, low, high)


class _Lowest(NamedTuple):
    """
    The point of an interval at which the exponent T is lowest.

    :param stationary: where T would be stationary, were there no ends: the location of the product.
    :param shifts: how far it, or an end that takes its place, lies from the location of q, p and r; None for uniforms.
    :param left: distance of the lowest point from the low end.
    :param right: its distance from the high end.
    :param slope: that of T there, 0 inside the interval.
    :param diverges: where T falls to minus infinity on the interval; None where it does nowhere.
    """

    stationary: Tensor
    shifts: tuple[Tensor | None, ...]
    left: Tensor
    right: Tensor
    slope: Tensor
    diverges: Tensor | None = None


class _Exponent(NamedTuple):
    """T = E_q - E_p + E_r by its normals. A uniform is a parabola of precision 0, which adds nothing: None."""

    q: NormalMember | None
    p: NormalMember | None
    r: NormalMember | None

    def precision(self) -> Tensor:
        """The curvature of T."""
        return _signed_sum(*(None if normal is None else normal.precision for normal in self))

    def tangent(self, x: Tensor) -> Tensor:
        """The slope of T at x."""
        return _signed_sum(*(None if normal is None else normal.precision * (x - normal.loc) for normal in self))

    def rise(self, lowest: _Lowest, low: Tensor, high: Tensor) -> Tensor:
        """T at its lowest point on [``low``, ``high``]."""
        rises: list[Tensor | None] = [None, None, None]
        for role, (normal, shift) in enumerate(zip(self, lowest.shifts)):
            if normal is not None and shift is not None:
                offset = shift.clamp(low - normal.loc, high - normal.loc)
                rises[role] = _rise(normal, offset, lowest.left, lowest.right, low, high)
        return _signed_sum(*rises)


def _lowest(exponent: _Exponent, precision: Tensor, low: Tensor, high: Tensor) -> _Lowest:
    """Of a parabola that opens upwards: its stationary point, or the end that is nearest to it."""
    shifts = [None if normal is None else -exponent.tangent(normal.loc) / precision for normal in exponent]
    return _between(exponent, shifts, precision, low, high)


def _lowest_if_falling(exponent: _Exponent, precision: Tensor, low: Tensor, high: Tensor) -> _Lowest:
    """Of parabolas of which some do not open upwards: for these, the end towards which they fall."""
    falls = precision <= 0
    end, diverges = _lower_end(precision, exponent.tangent, low, high)
    opening = torch.where(falls, 1.0, precision)
    shifts = [
        None if normal is None else torch.where(falls, end - normal.loc, -exponent.tangent(normal.loc) / opening)
        for normal in exponent
    ]
    lowest = _between(exponent, shifts, precision, low, high)
    return lowest._replace(
        left=torch.where(falls, end - low, lowest.left),
        right=torch.where(falls, high - end, lowest.right),
        slope=torch.where(falls, exponent.tangent(end), lowest.slope),
        diverges=diverges,
    )


def _between(
    exponent: _Exponent, shifts: Sequence[Tensor | None], precision: Tensor, low: Tensor, high: Tensor
) -> _Lowest:
    """The lowest point between the ends, by how far the stationary point lies from each location."""
    # How far it lies from the ends is best measured from the location nearest to it.
    (loc, shift), *others = [
        (normal.loc, shift) for normal, shift in zip(exponent, shifts) if normal is not None and shift is not None
    ]
    for other_loc, other in others:
        nearer = other.abs() <= shift.abs()
        loc, shift = torch.where(nearer, other_loc, loc), torch.where(nearer, other, shift)
    from_low, from_high = (loc - low) + shift, (high - loc) - shift
    # At an end itself, relu and clamp pass the gradient of an interior point.
    width = high - low
    left, right = from_low.clamp(min=0).clamp(max=width), from_high.clamp(min=0).clamp(max=width)
    slope = precision * ((-from_low).relu() - (-from_high).relu())
    return _Lowest(loc + shift, tuple(shifts), left, right, slope)


def _signed_sum(q: Tensor | None, p: Tensor | None, r: Tensor | None) -> Tensor:
    """q - p + r, where None is 0; p is first taken from the closer of the two, so that equals cancel exactly."""
    if q is None:
        q, r = r, None
    if q is None:
        assert p is not None
        return -p
    if p is None:
        return q if r is None else q + r
    if r is None:
        return q - p
    from_q, from_r = q - p, r - p
    return torch.where(from_q.abs() <= from_r.abs(), r + from_q, q + from_r)


def _lower_end(
    precision: Tensor, tangent: Callable[[Tensor], Tensor], low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The end towards which a parabola of precision <= 0 falls from the middle, and where its integral diverges."""
    open_low, open_high = low.isinf(), high.isinf()
    low, high = torch.where(open_low, 0.0, low), torch.where(open_high, 0.0, high)
    middle = torch.where(open_low, high, torch.where(open_high, low, 0.5 * (low + high)))
    slope = tangent(middle)
    # On a half-line a constant slope that points inwards makes an exponential distribution.
    exponential = (precision == 0) & ((open_low & ~open_high & (slope < 0)) | (open_high & ~open_low & (slope > 0)))
    return torch.where(slope < 0, high, low), (precision <= 0) & (open_low | open_high) & ~exponential


def _rise(member: NormalMember, offset: Tensor, left: Tensor, right: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The energy of a member at ``offset`` from its location, where the lowest point is, above that at its mode."""
    rise = 0.5 * member.precision * (offset - member.offset).square()
    if member.slope.any():  # then the mode is an end, and the distance from it a sum, without cancellation
        from_low, from_high = left + (low - member.low), right + (member.high - high)
        rise = rise + member.slope * torch.where(member.slope > 0, from_low, -from_high)
    return rise
