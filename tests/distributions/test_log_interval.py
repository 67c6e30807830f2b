# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from torch import Tensor

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal

LOW, HIGH = 0.2, 3.0
# Densities of the logarithm, up to a factor.
CASES = {
    "log-uniform": (lambda: LogUniform(double(LOW), double(HIGH)), lambda y: mp.mpf(1)),
    "truncated log-normal": (
        lambda: TruncatedLogNormal(double(-4.0), double(0.8), double(LOW), double(HIGH)),
        lambda y: mp.exp(-(((y + 4) / 0.8) ** 2) / 2),
    ),
}
each = pytest.mark.parametrize(("build", "density"), CASES.values(), ids=CASES)


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def expectation(density, function) -> float:
    ends = [mp.log(LOW), -1, 0, mp.log(HIGH)]
    mass = mp.quad(density, ends)
    return float(mp.quad(lambda y: density(y) * function(y, density(y) / mass), ends) / mass)


@each
def test_moments_and_entropy_are_integrals_over_the_logarithm(build, density) -> None:
    distribution = build()
    mean = expectation(density, lambda y, _: mp.exp(y))
    variance = expectation(density, lambda y, _: (mp.exp(y) - mean) ** 2)
    assert distribution.mean.item() == pytest.approx(mean, rel=1e-12)
    assert distribution.variance.item() == pytest.approx(variance, rel=1e-10)
    assert distribution.stddev.item() == pytest.approx(math.sqrt(variance), rel=1e-10)
    # The density of the variable itself is that of the logarithm over the variable.
    entropy = expectation(density, lambda y, normalised: y - mp.log(normalised))
    assert distribution.entropy().item() == pytest.approx(entropy, rel=1e-10)


@each
def test_quantiles_end_on_the_ends_exactly(build, density) -> None:
    distribution = build()
    low, high = distribution.icdf(double(0.0)), distribution.icdf(double(1.0))
    assert (low, high) == (double(LOW), double(HIGH))
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    torch.testing.assert_close(distribution.cdf(distribution.icdf(u)), u)
    draws = distribution.sample((1000,))
    assert ((draws >= LOW) & (draws <= HIGH)).all()


@each
def test_expanding_keeps_the_ends(build, density) -> None:
    wide = build().expand([2, 3])
    assert type(wide) is type(build())
    assert wide.low.shape == wide.high.shape == wide.sample().shape == (2, 3)
    torch.testing.assert_close(wide.log_prob(double(1.0)), build().log_prob(double(1.0)).expand(2, 3))
