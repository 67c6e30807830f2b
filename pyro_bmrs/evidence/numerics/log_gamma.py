# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Logarithms whose differences survive: Binet's remainder of the log gamma function, log ratios, log(1 - exp(x))."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Coefficients B_2k / (2k (2k - 1)) of Stirling's series in odd powers of 1/x.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
_SERIES_FROM = 20.0


def binet(x: Tensor) -> Tensor:
    r"""
    What Stirling's formula leaves of log gamma: :math:`\log\Gamma(x) - (x - \frac12)\log x + x - \frac12\log 2\pi`.

    Accurate to 1e-14 in double precision, for all x > 0. It is at most 1/(12 x), so a difference of log gammas at large
    x can be had without subtracting large numbers: handle the elementary part by log ratios.

    Example::

        >>> import torch
        >>> from pyro_bmrs.evidence.numerics.log_gamma import binet
        >>> binet(torch.tensor([1., 1e6], dtype=torch.float64))
        tensor([8.1061e-02, 8.3333e-08], dtype=torch.float64)
    """
    small = x < _SERIES_FROM
    near = torch.where(small, x, 1.0)
    direct = torch.lgamma(near) - (near - 0.5) * near.log() + near - 0.5 * math.log(2 * math.pi)
    inverse = torch.where(small, _SERIES_FROM, x).reciprocal()
    square = inverse.square()
    series = _STIRLING[-1] * square + _STIRLING[-2]
    for coefficient in _STIRLING[-3::-1]:
        series = series * square + coefficient
    return torch.where(small, direct, series * inverse)


def log_ratio(new: Tensor, old: Tensor, change: Tensor) -> Tensor:
    """
    log(new / old) for positive ``new`` = ``old`` + ``change``, as accurate as ``change`` is, however small.

    Example::

        >>> import torch
        >>> from pyro_bmrs.evidence.numerics.log_gamma import log_ratio
        >>> one, tiny = torch.tensor(1.), torch.tensor(1e-12)
        >>> log_ratio(one + tiny, one, tiny)
        tensor(1.0000e-12)
    """
    relative = change / old
    near = relative.abs() < 0.5
    return torch.where(near, torch.log1p(torch.where(near, relative, 0.0)), (new / old).log())


def log1mexp(x: Tensor) -> Tensor:
    """
    log(1 - exp(x)) for x < 0, accurate at both ends; 0 at minus infinity.

    Example::

        >>> import torch
        >>> from pyro_bmrs.evidence.numerics.log_gamma import log1mexp
        >>> log1mexp(torch.tensor([-1e-6, -50.]))
        tensor([-1.3816e+01, -1.9287e-22])
    """
    near = x > -math.log(2)
    inside, outside = torch.where(near, x, -1.0), torch.where(near, -1.0, x)
    return torch.where(near, (-torch.expm1(inside)).log(), torch.log1p(-outside.exp()))
