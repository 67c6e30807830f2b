# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Kullback-Leibler divergences between normals on intervals: Normal, HalfNormal, TruncatedNormal and Uniform.

With :math:`E_i` the negative log density relative to the mode and :math:`M_i` the mass of each member,

.. math:: \mathrm{KL}(p \| q) = E_p[E_q(X) - E_p(X)] + \log M_q - \log M_p,

where the expectation needs the first two moments of p. It is infinite where the support of p leaves that of q, by more
than rounding. The exponentials of these distributions (LogNormal, TruncatedLogNormal, LogUniform) follow by PyTorch's
rule for distributions that share their transform.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, HalfNormal, Normal, Uniform
from torch.distributions.kl import register_kl

from pyro_bmrs.distributions.normal_mass import AboutMode, about_mode, energy, log_mass, moments
from pyro_bmrs.distributions.truncated_normal import TruncatedNormal

__all__: list[str] = []


def _interval(distribution: Any) -> tuple[Tensor, Tensor]:
    if isinstance(distribution, (TruncatedNormal, Uniform)):
        return distribution.low, distribution.high
    infinity = torch.full_like(distribution.scale, torch.inf)
    return -infinity if isinstance(distribution, Normal) else torch.zeros_like(infinity), infinity


def _about_mode(distribution: Any) -> AboutMode:
    low, high = _interval(distribution)
    if isinstance(distribution, Uniform):
        return about_mode(low, torch.zeros_like(low), low, high)
    loc = torch.zeros_like(low) if isinstance(distribution, HalfNormal) else distribution.loc
    return about_mode(loc, distribution.scale.reciprocal().square(), low, high)


@register_kl(TruncatedNormal, TruncatedNormal)
@register_kl(TruncatedNormal, Normal)
@register_kl(TruncatedNormal, HalfNormal)
@register_kl(TruncatedNormal, Uniform)
@register_kl(Normal, TruncatedNormal)
@register_kl(HalfNormal, TruncatedNormal)
@register_kl(HalfNormal, Uniform)
@register_kl(Uniform, TruncatedNormal)
@register_kl(Uniform, HalfNormal)
def _kl_interval_normals(p: Distribution, q: Distribution) -> Tensor:
    (p_low, p_high), (q_low, q_high) = _interval(p), _interval(q)
    # Ends that were computed in two ways, as e^-20 and back, differ in their last places.
    slack = 8 * torch.finfo(q_low.dtype).eps
    leaves = (p_low < q_low - slack * q_low.abs()) | (p_high > q_high + slack * q_high.abs())

    about_p, about_q = _about_mode(p), _about_mode(q)
    offset = about_p.mode - about_q.mode
    slope = about_q.slope + about_q.precision * offset - about_p.slope
    curvature = about_q.precision - about_p.precision
    first, second = moments(*about_p[1:], order=2)
    excess = energy(offset, about_q.slope, about_q.precision) + slope * first + 0.5 * curvature * second
    return torch.where(leaves, torch.inf, excess + log_mass(*about_q[1:]) - log_mass(*about_p[1:]))
