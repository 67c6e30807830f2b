# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Adaptive importance sampling finds an integral from a start that is not right, or says that it has not."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.integration.importance.adaptive import log_integral


def normal(dim: int, correlation: float) -> torch.distributions.MultivariateNormal:
    covariance = (1 - correlation) * torch.eye(dim, dtype=torch.float64) + correlation
    return torch.distributions.MultivariateNormal(torch.arange(dim, dtype=torch.float64) / dim, covariance)


@pytest.mark.parametrize(("dim", "correlation"), [(1, 0.0), (2, 0.9), (10, 0.9), (20, 0.9)])
@pytest.mark.parametrize(("shift", "width"), [(0.0, 0.1), (2.0, 0.3), (0.5, 3.0)])
def test_the_integral_of_a_normal_from_a_start_beside_it(dim, correlation, shift, width):
    density = normal(dim, correlation)
    start = density.mean + shift
    estimate = log_integral(lambda x: density.log_prob(x) - 7.0, start, width**2 * torch.eye(dim))
    assert estimate.trusted
    assert estimate.value == pytest.approx(-7.0, abs=max(4 * estimate.standard_error, 1e-3))
    assert estimate.standard_error < 0.05


def test_its_moments_are_those_of_the_density():
    density = normal(3, 0.5)
    estimate = log_integral(density.log_prob, torch.zeros(3), torch.eye(3))
    loc, covariance = estimate.moments()
    torch.testing.assert_close(loc, density.mean, atol=0.1, rtol=0.0)
    torch.testing.assert_close(covariance, density.covariance_matrix, atol=0.15, rtol=0.0)
    torch.testing.assert_close(estimate.resample(5000).mean(0), density.mean, atol=0.1, rtol=0.0)


@pytest.mark.parametrize("df", [3.0, 6.0])
def test_heavy_tails(df):
    density = torch.distributions.StudentT(torch.tensor(df, dtype=torch.float64))
    estimate = log_integral(lambda x: density.log_prob(x).sum(-1), torch.zeros(4), torch.eye(4))
    assert estimate.trusted
    assert estimate.value == pytest.approx(0.0, abs=4 * estimate.standard_error)


def test_a_funnel_is_not_trusted():
    def funnel(x):
        neck = torch.distributions.Normal(0.0, 3.0).log_prob(x[:, 0])
        return neck + torch.distributions.Normal(0.0, (x[:, :1] / 2).exp()).log_prob(x[:, 1:]).sum(-1)

    assert not log_integral(funnel, torch.zeros(10), torch.eye(10)).trusted


def test_no_dimension_is_no_integral():
    estimate = log_integral(lambda x: x.new_full((len(x),), -3.5), torch.zeros(0), torch.zeros(0, 0))
    assert (estimate.value, estimate.standard_error, estimate.num_evaluations) == (-3.5, 0.0, 1)
    assert estimate.trusted


def test_a_density_that_is_nowhere_is_an_error():
    with pytest.raises(ReductionError, match="density is 0"):
        log_integral(lambda x: x.new_full((len(x),), -math.inf), torch.zeros(2), torch.eye(2))
