# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
The hazard :math:`h(z) = \varphi(z) / \Phi(-z)` of the standard normal for z >= 0, its rise and its integral.

The hazard stays finite where density and mass both underflow, and obeys :math:`h' = h (h - z)`, so that all of its
derivatives are polynomials in h and z. Values without gradients:
:mod:`~pyro_bmrs.distributions.numerics.truncated_quantile` differentiates in closed form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["cumulative_hazard", "hazard", "hazard_rise"]

_ROOT_HALF = math.sqrt(0.5)
_ROOT_2_OVER_PI = math.sqrt(2 / math.pi)


def hazard(z: Tensor) -> Tensor:
    """
    Density over the mass beyond ``z``.

    Example::

        >>> import torch
        >>> hazard(torch.tensor([0.0, 3.0, 1e6]))
        tensor([7.9788e-01, 3.2831e+00, 1.0000e+06])
    """
    values: Tensor = torch.special.erfcx(z * _ROOT_HALF).reciprocal_().mul_(_ROOT_2_OVER_PI)
    return values


def _excess(z: Tensor, hazard_there: Tensor) -> Tensor:
    """h(z) - z, to full relative accuracy."""
    # Laplace's continued fraction, where the difference would cancel.
    fraction = z
    for k in range(6, 1, -1):
        fraction = fraction.reciprocal().mul_(k).add_(z)
    return torch.where(z > 24, fraction.reciprocal_(), hazard_there - z)


def hazard_rise(start: Tensor, start_hazard: Tensor, t: Tensor, end_hazard: Tensor) -> Tensor:
    """
    h(``start + t``) - h(``start``), accurate also where these agree in many digits.

    :param start: where from.
    :param start_hazard: h(``start``).
    :param t: how far, with one more dimension, on the left.
    :param end_hazard: h(``start + t``).

    Example::

        >>> import torch
        >>> start, t = torch.tensor(1e6), torch.tensor([1e-6])
        >>> hazard_rise(start, hazard(start), t, hazard(start + t))
        tensor([1.0000e-06])
    """
    ends = torch.cat([start[None], start + t])
    hazards = torch.cat([start_hazard[None], end_hazard])
    excess = _excess(ends, hazards)
    long = (excess[1:] - excess[0]).add_(t)
    # Where that cancels, from the derivatives at both ends: h' = h (h - z), h'' = h (h - z)(2 h - z) - h.
    slope = hazards * excess
    bend = (hazards + excess).mul_(slope).sub_(hazards)
    short = (bend[0] - bend[1:]).mul_(t).mul_(1 / 6).add_(slope[0]).add_(slope[1:]).mul_(0.5 * t)
    return torch.where(t * end_hazard < torch.finfo(t.dtype).eps ** (1 / 5), short, long)


def cumulative_hazard(start: Tensor, start_hazard: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """
    The integral of h from ``start`` to ``start + t``, and h there.

    The mass beyond ``start + t`` is exp(-integral) times that beyond ``start``.

    :param start: where from.
    :param start_hazard: h(``start``).
    :param t: how far, may be inf.

    Example::

        >>> import torch
        >>> start = torch.tensor(10.0)
        >>> cumulative_hazard(start, hazard(start), torch.tensor([1e-6, 1.0, torch.inf]))
        (tensor([1.0098e-05, 1.0594e+01,        inf]), tensor([10.0981, 11.0895,     inf]))
    """
    end = start + t
    end_hazard = hazard(end)
    # h, h - z, h' and h'' at both ends, each times its power of t; h'' = h' (2 h - z) - h.
    first, last = t * start_hazard, t * end_hazard
    first_excess = torch.addcmul(first, t, start, value=-1)
    last_excess = torch.addcmul(last, t, end, value=-1)
    first_slope, last_slope = first * first_excess, last * last_excess
    square = t * t
    first_bend = first_excess.add_(first).mul_(first_slope).addcmul_(first, square, value=-1)
    last_bend = last_excess.add_(last).mul_(last_slope).addcmul_(last, square, value=-1)
    # By a Taylor expansion at both ends where the logarithm of the hazards' ratio would cancel.
    short = (first + last).mul_(0.5).add_(first_slope.sub_(last_slope), alpha=0.1)
    short.add_(first_bend.add_(last_bend), alpha=1 / 120)
    long = torch.log(end_hazard / start_hazard).addcmul_(t, torch.add(start, t, alpha=0.5))
    return torch.where(last < torch.finfo(t.dtype).eps ** (1 / 12), short, long), end_hazard
