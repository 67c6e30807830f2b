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

from pyro_bmrs.distributions.extended_interval import leaves
from pyro_bmrs.distributions.numerics.normal_mass import about_mode, energy, log_mass, moments
from pyro_bmrs.distributions.truncated_normal import TruncatedNormal

__all__: list[str] = []


class _IntervalNormal:
    """A member of the family as seen from its mode; a uniform, which has closed forms of its own, from its low end."""

    def __init__(self, distribution: Any) -> None:
        self.is_uniform = isinstance(distribution, Uniform)
        if isinstance(distribution, (TruncatedNormal, Uniform)):
            self.low, self.high = distribution.low, distribution.high
        else:
            self.high = torch.full_like(distribution.scale, torch.inf)
            self.low = -self.high if isinstance(distribution, Normal) else torch.zeros_like(self.high)
        zero = torch.zeros_like(self.low)
        loc = zero if isinstance(distribution, HalfNormal) else self.low if self.is_uniform else distribution.loc
        precision = zero if self.is_uniform else distribution.scale.reciprocal().square()
        self.about = about_mode(loc, precision, self.low, self.high)

    def log_mass(self) -> Tensor:
        return self.about.right.log() if self.is_uniform else log_mass(*self.about[1:])

    def moments(self) -> tuple[Tensor, ...]:
        """E[t] and E[t²] of the displacement from the mode."""
        width = self.about.right
        return (width / 2, width * width / 3) if self.is_uniform else moments(*self.about[1:], order=2)


def _kl_interval_normals(p: Distribution, q: Distribution) -> Tensor:
    of_p, of_q = _IntervalNormal(p), _IntervalNormal(q)
    about_p, about_q = of_p.about, of_q.about
    offset = about_p.mode - about_q.mode
    slope = about_q.slope + about_q.precision * offset - about_p.slope
    curvature = about_q.precision - about_p.precision
    first, second = of_p.moments()
    excess = energy(offset, about_q.slope, about_q.precision) + slope * first + 0.5 * curvature * second
    outside = leaves(of_p.low, of_p.high, of_q.low, of_q.high)
    return torch.where(outside, torch.inf, excess + of_q.log_mass() - of_p.log_mass())


for _pair in (
    (TruncatedNormal, TruncatedNormal),
    (TruncatedNormal, Normal),
    (TruncatedNormal, HalfNormal),
    (TruncatedNormal, Uniform),
    (Normal, TruncatedNormal),
    (HalfNormal, TruncatedNormal),
    (HalfNormal, Uniform),
    (Uniform, TruncatedNormal),
    (Uniform, HalfNormal),
):
    register_kl(*_pair)(_kl_interval_normals)
