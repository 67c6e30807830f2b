# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The truncated normal in mpmath: the truth that the tests compare with, from the textbook formulas in 80 digits."""

from __future__ import annotations

from dataclasses import dataclass

import mpmath
from mpmath import mp, mpf

mp.dps = 80


def normal_mass(low: mpf, high: mpf) -> mpf:
    """P(low <= Z <= high) of a standard normal, from the side where the difference keeps its digits."""
    if low > 0:
        low, high = -high, -low
    return (mpmath.erfc(-high / mpmath.sqrt(2)) - mpmath.erfc(-low / mpmath.sqrt(2))) / 2


def normal_density(z: mpf) -> mpf:
    return mpmath.exp(-z * z / 2) / mpmath.sqrt(2 * mpmath.pi)


@dataclass
class ExactTruncatedNormal:
    loc: mpf
    scale: mpf
    low: mpf
    high: mpf

    def __post_init__(self) -> None:
        self.loc, self.scale, self.low, self.high = map(mpf, (self.loc, self.scale, self.low, self.high))

    def _z(self, x: mpf) -> mpf:
        return (mpf(x) - self.loc) / self.scale

    @property
    def mass(self) -> mpf:
        return normal_mass(self._z(self.low), self._z(self.high))

    def pdf(self, x: mpf) -> mpf:
        return normal_density(self._z(x)) / self.scale / self.mass

    def log_prob(self, x: mpf) -> mpf:
        return mpmath.log(self.pdf(x))

    def cdf(self, x: mpf) -> mpf:
        return normal_mass(self._z(self.low), self._z(x)) / self.mass

    def sf(self, x: mpf) -> mpf:
        return normal_mass(self._z(x), self._z(self.high)) / self.mass

    def _end_terms(self, power: int) -> mpf:
        """b^power phi(b) - a^power phi(a), over the mass, for the standardised ends a and b."""
        terms = [
            mpf(0) if mpmath.isinf(end) else self._z(end) ** power * normal_density(self._z(end))
            for end in (self.low, self.high)
        ]
        return (terms[1] - terms[0]) / self.mass

    @property
    def mean(self) -> mpf:
        return self.loc - self.scale * self._end_terms(0)

    @property
    def variance(self) -> mpf:
        return self.scale**2 * (1 - self._end_terms(1) - self._end_terms(0) ** 2)

    @property
    def entropy(self) -> mpf:
        second = 1 - self._end_terms(1)
        return mpmath.log(mpmath.sqrt(2 * mpmath.pi) * self.scale * self.mass) + second / 2

    def exponential_moment(self, order: int) -> mpf:
        """E[exp(order X)]."""
        tilted = ExactTruncatedNormal(self.loc + order * self.scale**2, self.scale, self.low, self.high)
        return mpmath.exp(order * self.loc + (order * self.scale) ** 2 / 2) * tilted.mass / self.mass

    def quantile_slopes(self, x: mpf) -> list[mpf]:
        """-(dF/dtheta) / f at x for each of loc, scale, low and high, by differences in 80 digits."""
        parameters = [self.loc, self.scale, self.low, self.high]
        step = self.scale * mpf(10) ** -25
        slopes = []
        for i, parameter in enumerate(parameters):
            if mpmath.isinf(parameter):
                slopes.append(mpf(0))
                continue
            above, below = (
                ExactTruncatedNormal(*parameters[:i], parameter + sign * step, *parameters[i + 1 :]).cdf(x)
                for sign in (1, -1)
            )
            slopes.append(-(above - below) / (2 * step) / self.pdf(x))
        return slopes
