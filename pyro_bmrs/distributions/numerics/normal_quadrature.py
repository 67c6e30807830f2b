# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Gauss-Legendre quadrature of :math:`t^k \exp(-st - \lambda t^2/2)` on intervals where closed forms cancel.

The integrand is positive and its exponent monotone on each of at most two pieces, so nothing cancels in the sums;
each piece is cut where the exponent has fallen so far that the rest is below rounding, so one fixed rule serves every
slope and precision, of either sign.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import cache

import torch
from torch import Tensor

# e^-60 leaves even a fourth moment of the tail below float64 rounding, and 40 nodes integrate exponents that vary by
# 60, of either curvature, to 1e-15.
_CUT = 60.0
_NUM_NODES = 40
# Rows of nodes evaluated at once: large enough to hide the overhead of a call, small enough for a processor's cache.
_ROWS = 4096


@cache
def gauss_legendre(num_nodes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """
    Nodes and weights of the Gauss-Legendre rule on [0, 1], correctly rounded.

    Computed in decimal arithmetic: nodes close to 0 and all weights then have full *relative* accuracy, which
    :func:`numpy.polynomial.legendre.leggauss` (weights to 1e-12) does not give.

    Example::

        >>> nodes, weights = gauss_legendre(2)
        >>> [round(node, 4) for node in nodes], weights
        ([0.2113, 0.7887], (0.5, 0.5))
    """
    nodes, weights = [], []
    with localcontext() as context:
        context.prec = 40
        for i in range(num_nodes):
            z = Decimal(math.cos(math.pi * (i + 0.75) / (num_nodes + 0.5)))
            for _ in range(6):
                previous, current = Decimal(1), z
                for k in range(2, num_nodes + 1):
                    previous, current = current, ((2 * k - 1) * z * current - (k - 1) * previous) / k
                derivative = num_nodes * (previous - z * current) / (1 - z * z)
                z -= current / derivative
            nodes.append(float((1 - z) / 2))
            weights.append(float(1 / ((1 - z * z) * derivative * derivative)))
    return tuple(nodes), tuple(weights)


@cache
def _rule(order: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes, and weights times the powers 0 .. ``order`` of the nodes, one row each."""
    nodes, weights = torch.tensor(gauss_legendre(_NUM_NODES), dtype=torch.float64)
    powers = torch.stack([weights * nodes**k for k in range(order + 1)])
    return nodes.to(device, dtype), powers.to(device, dtype)


def _unit_integrals(linear: Tensor, quadratic: Tensor, order: int) -> Tensor:
    """Integrals of x^k exp(-linear x - quadratic x²) over [0, 1], k = 0 .. ``order``, in rows; inputs are 1-D."""
    nodes, powers = _rule(order, linear.dtype, linear.device)
    out = linear.new_empty(order + 1, len(linear))
    for start in range(0, len(linear), _ROWS):
        rows = slice(start, start + _ROWS)
        density = torch.exp(-(linear[rows, None] + quadratic[rows, None] * nodes) * nodes)
        for k, weights in enumerate(powers):
            # A sum over the contiguous axis, not a matrix product: its rounding does not depend on the batch size.
            out[k, rows] = (density * weights).sum(-1)
    return out


def _reach(slope: Tensor, precision: Tensor, length: Tensor) -> Tensor:
    """The part of [0, ``length``] within which slope * t + precision * t² / 2 stays below the cut."""
    bend = (2 * _CUT * precision.abs()).sqrt()
    root = torch.where(precision >= 0, torch.hypot(slope, bend), (slope - bend).sqrt() * (slope + bend).sqrt())
    # A root that is NaN says that the exponent turns before it reaches the cut: fmin then keeps the length.
    return torch.fmin(length, 2 * _CUT / (slope + root))


def quadrature_moments(
    slope: Tensor, precision: Tensor, left: Tensor, right: Tensor, order: int
) -> tuple[Tensor, Tensor]:
    r"""
    Integrals of :math:`t^k \exp(-st - \lambda t^2/2)` over :math:`t \in [-l, r]`, where t = 0 is the mode.

    :param slope: 1-D, like the next three; see :func:`~pyro_bmrs.distributions.numerics.normal_mass.log_mass`.
    :param order: the highest power k.
    :return: a unit of length ``u``, and the integrals of ``(t / u)**k`` in units of ``u``, k = 0 .. ``order`` in rows.
        The unit is the extent of the mass, so that no power of it underflows in float32.
    """
    mirrored = slope < 0
    slope = slope.abs()
    left, right = torch.where(mirrored, right, left), torch.where(mirrored, left, right)

    # The exponent rises from the mode to the right end, unless a negative precision turns it before: then the second
    # piece is measured from the right end inwards. An interior mode has its second piece on the left.
    turn = slope / -precision
    turned = (precision < 0) & (turn < right)
    lengths = torch.where(turned, turn, right), torch.where(turned, right - turn, left)
    slopes = slope, torch.where(turned, -(slope + precision * right), torch.zeros_like(slope))
    reaches = [_reach(*piece) for piece in zip(slopes, (precision, precision), lengths)]

    unit = torch.maximum(*reaches)
    unit = torch.where(unit == 0, torch.ones_like(unit), unit)

    def of_piece(slope: Tensor, reach: Tensor) -> Tensor:
        """The integrals over a piece, with distances from where it begins."""
        powers = torch.stack([(reach / unit) ** (k + 1) for k in range(order + 1)])
        return _unit_integrals(slope * reach, 0.5 * (precision * reach) * reach, order) * powers

    first, second = map(of_piece, slopes, reaches)

    origin = torch.where(turned, right / unit, torch.zeros_like(unit))
    weight = torch.where(turned, torch.exp(-right * (slope + 0.5 * precision * right)), torch.ones_like(unit))
    signs = torch.where(mirrored, -1.0, 1.0).to(slope)
    integrals = [
        signs**k
        * (first[k] + weight * sum(math.comb(k, j) * (-1) ** j * origin ** (k - j) * second[j] for j in range(k + 1)))
        for k in range(order + 1)
    ]
    return unit, torch.stack(integrals)
