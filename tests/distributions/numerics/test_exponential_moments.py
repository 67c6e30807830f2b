# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

import math

import mpmath
import pytest
import torch
from mpmath import mpf

from pyro_bmrs.distributions.numerics.exponential_moments import log_exponential_moment, log_squared_variation
from tests.distributions.exact_truncated_normal import normal_mass

# Slope, precision, left and right of densities of all kinds.
DENSITIES = [
    (0.0, 1.0, math.inf, math.inf),
    (0.0, 1e10, math.inf, math.inf),
    (0.0, 0.25, 3.0, 1.0),
    (0.0, 4.0, 0.0, math.inf),
    (50.0, 1.0, 0.0, 20.0),
    (1e6, 1e-3, 0.0, 1.0),
    (-50.0, 1.0, 20.0, 0.0),
    (-0.5, 0.01, 20.0, 0.0),
    (0.0, 0.0, 0.0, 20.0),
    (0.0, 0.0, 0.0, 1e-6),
    (0.0, 1e-12, 7.0, 13.0),
]


def exact_moment(order, slope, precision, left, right):
    """The ratio of two integrals of exponentials of parabolas, in closed form and many digits."""
    precision, ends = mpf(precision), (-mpf(left), mpf(right))

    def integral(linear):
        if precision == 0:
            return ends[1] - ends[0] if linear == 0 else (mpmath.exp(linear * ends[1]) - 1) / linear
        scale = 1 / mpmath.sqrt(precision)
        centre = linear / precision
        mass = normal_mass((ends[0] - centre) / scale, (ends[1] - centre) / scale)
        return mpmath.exp(linear * centre / 2) * mpmath.sqrt(2 * mpmath.pi) * scale * mass

    return integral(order - mpf(slope)) / integral(-mpf(slope))


@pytest.mark.parametrize("density", DENSITIES)
def test_against_numerical_integration(density):
    first, second = (exact_moment(order, *density) for order in (1, 2))
    variation = mpmath.log(second / first**2)
    arguments = [torch.tensor(number, dtype=torch.float64) for number in density]
    for order, truth in ((1.0, first), (2.0, second)):
        assert log_exponential_moment(order, *arguments).item() == pytest.approx(float(mpmath.log(truth)), abs=1e-12)
    assert log_squared_variation(*arguments).item() == pytest.approx(float(variation), rel=1e-10)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_the_variation_is_continuous_where_its_computation_changes(dtype, tolerance):
    # A log-normal: the variation is its squared scale, which crosses the change at 0.1.
    scale = torch.linspace(0.25, 0.4, 61, dtype=dtype)
    infinity, zero = torch.full_like(scale, math.inf), torch.zeros_like(scale)
    variation = log_squared_variation(zero, scale**-2, infinity, infinity)
    torch.testing.assert_close(variation, scale**2, rtol=tolerance, atol=0)
    # A log-uniform, likewise.
    width = torch.linspace(0.9, 1.3, 61, dtype=dtype)
    variation = log_squared_variation(zero, zero, zero, width)
    torch.testing.assert_close(variation.expm1(), width / 2 / (width / 2).tanh() - 1, rtol=tolerance, atol=0)
