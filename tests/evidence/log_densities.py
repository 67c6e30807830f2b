# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Log densities for mpmath to integrate."""

from __future__ import annotations

import mpmath as mp
from mpmath import mpf

from tests.evidence.numerical import CASES, LogDensity


def normal(loc: mpf, scale: mpf) -> LogDensity:
    constant = -mp.log(scale) - mp.log(2 * mp.pi) / 2
    return lambda x: constant - ((x - loc) / scale) ** 2 / 2


def log_normal(loc: mpf, scale: mpf) -> LogDensity:
    density = normal(loc, scale)
    return lambda x: density(mp.log(x)) - mp.log(x)


def cauchy(scale: mpf) -> LogDensity:
    return lambda x: mp.log(scale / mp.pi) - mp.log(scale**2 + x**2)


def half_cauchy(scale: mpf) -> LogDensity:
    density = cauchy(scale)
    return lambda x: density(x) + mp.log(2)


def student(df: mpf) -> LogDensity:
    constant = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(df * mp.pi) / 2
    return lambda x: constant - (df + 1) / 2 * mp.log1p(x * x / df)


def laplace(scale: mpf) -> LogDensity:
    return lambda x: -mp.log(2 * scale) - abs(x) / scale


def logistic(loc: mpf, scale: mpf) -> LogDensity:
    return lambda x: -(x - loc) / scale - mp.log(scale) - 2 * mp.log1p(mp.exp(-(x - loc) / scale))


def gumbel(loc: mpf, scale: mpf) -> LogDensity:
    return lambda x: -(x - loc) / scale - mp.exp(-(x - loc) / scale) - mp.log(scale)


def weibull(scale: mpf, shape: mpf) -> LogDensity:
    return lambda x: mp.log(shape / scale) + (shape - 1) * mp.log(x / scale) - (x / scale) ** shape


def gamma(a: mpf, b: mpf) -> LogDensity:
    return CASES["Gamma"].log_density(a, b)


def beta(a: mpf, b: mpf) -> LogDensity:
    return CASES["Beta"].log_density(a, b)


def logit_normal(loc: mpf, scale: mpf) -> LogDensity:
    density = normal(loc, scale)
    return lambda x: density(mp.log(x) - mp.log1p(-x)) - mp.log(x) - mp.log1p(-x)
