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

from collections.abc import Callable
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
    members = (q, p, r)

    def each(of: Callable[..., Tensor], *values: list[Tensor | None]) -> list[Tensor | None]:
        """What is said of each normal; None for a uniform, which adds nothing to the parabola."""
        return [of(m, *rest) if isinstance(m, NormalMember) else None for m, *rest in zip(members, *values)]

    def tangent(x: Tensor) -> Tensor:
        return _signed_sum(*each(lambda m: m.precision * (x - m.loc)))

    if all(isinstance(m, UniformMember) for m in members):
        value = ((high - low).log() - r.log_mass) - (q.log_mass - p.log_mass)
        return NormalProduct(torch.where(disjoint, -torch.inf, value), None, None, low, high)

    precision = _signed_sum(*each(lambda m: m.precision))
    # How far the stationary point of the parabola lies from each location.
    end = diverges = None
    if isinstance(p, NormalMember) and (precision <= 0).any():
        # Where it does not open upwards its lowest point is an end: that takes the place of the stationary point.
        falls = precision <= 0
        end, diverges = lower, _ = _lower_end(precision, tangent, low, high)
        opening = torch.where(falls, 1.0, precision)
        shifts = each(lambda m: torch.where(falls, lower - m.loc, -tangent(m.loc) / opening))
    else:
        shifts = each(lambda m: -tangent(m.loc) / precision)

    # How far it lies from the ends is best measured from the location nearest to it.
    (loc, shift), *others = [
        (m.loc, s) for m, s in zip(members, shifts) if isinstance(m, NormalMember) and s is not None
    ]
    for other_loc, other in others:
        nearer = other.abs() <= shift.abs()
        loc, shift = torch.where(nearer, other_loc, loc), torch.where(nearer, other, shift)
    from_low, from_high = (loc - low) + shift, (high - loc) - shift
    # The lowest point lies between the ends. At an end itself, relu and clamp pass the gradient of an interior point.
    left, right = (distance.clamp(min=0).clamp(max=high - low) for distance in (from_low, from_high))
    slope = precision * ((-from_low).relu() - (-from_high).relu())
    if end is not None:
        falls = precision <= 0
        left, right = torch.where(falls, end - low, left), torch.where(falls, high - end, right)
        slope = torch.where(falls, tangent(end), slope)

    energies = each(lambda m, s: _rise(m, s.clamp(low - m.loc, high - m.loc), left, right, low, high), shifts)
    mass = log_mass(slope, precision, left, right)
    value = (mass - r.log_mass) - (q.log_mass - p.log_mass) - _signed_sum(*energies)
    if diverges is not None:
        value = torch.where(diverges, torch.inf, value)
    if disjoint.any():
        value = torch.where(disjoint, -torch.inf, value)
    return NormalProduct(value, loc + shift, precision, low, high)


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
