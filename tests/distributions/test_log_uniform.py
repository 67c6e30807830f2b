# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

import math

import pytest
import scipy.stats
import torch
from torch.autograd import gradcheck

from pyro_bmrs.distributions import LogUniform
from pyro_bmrs.errors import ReductionError


@pytest.mark.parametrize("low, high", [(math.exp(-20), 1.0), (2.0**-23, 2.0**-8), (0.5, 0.6), (1.0, 1e10)])
def test_agrees_with_scipy(low, high):
    distribution = LogUniform(torch.tensor(low, dtype=torch.float64), high)
    reference = scipy.stats.loguniform(low, high)
    u = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)
    x = torch.as_tensor(reference.ppf(u))
    torch.testing.assert_close(distribution.icdf(u), x, rtol=1e-10, atol=0)
    torch.testing.assert_close(distribution.cdf(x), u, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(distribution.log_prob(x), torch.as_tensor(reference.logpdf(x)), rtol=1e-10, atol=1e-10)
    assert distribution.mean.item() == pytest.approx(reference.mean(), rel=1e-10)
    assert distribution.stddev.item() == pytest.approx(reference.std(), rel=1e-9)
    assert distribution.entropy().item() == pytest.approx(float(reference.entropy()), rel=1e-9)
    assert distribution.mode == low


def test_a_narrow_one_is_uniform():
    low = torch.tensor(3.0, dtype=torch.float64)
    distribution = LogUniform(low, low * (1 + 1e-6))
    assert distribution.stddev.item() == pytest.approx(3e-6 / math.sqrt(12), rel=1e-6)
    assert distribution.mean.item() == pytest.approx(3 * (1 + 0.5e-6), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_stay_in_the_interval_and_follow_the_distribution(dtype):
    torch.manual_seed(0)
    low = torch.logspace(-9, -1, 100, dtype=dtype)
    distribution = LogUniform(low, 1.0)
    samples = distribution.sample((1000,))
    assert distribution.support.check(samples).all() and samples.dtype == dtype
    assert distribution.log_prob(samples).isfinite().all()
    assert scipy.stats.kstest(distribution.cdf(samples).flatten().numpy(), "uniform").pvalue > 1e-3


def test_values_at_and_beyond_the_ends():
    distribution = LogUniform(torch.tensor([1e-3, 0.1]), 2.0, validate_args=False)
    width = (2.0 / distribution.low).log()
    torch.testing.assert_close(distribution.log_prob(distribution.low), -(distribution.low * width).log())
    torch.testing.assert_close(distribution.log_prob(distribution.high), -(2 * width).log())
    for outside in (-1.0, 0.0, 1e-4, 2.1):
        value = torch.tensor(outside)
        assert (distribution.log_prob(value) == -math.inf).all()
        assert (distribution.cdf(value) == (1.0 if outside > 2 else 0.0)).all()
    assert torch.equal(distribution.icdf(torch.tensor(0.0)), distribution.low)
    assert torch.equal(distribution.icdf(torch.tensor(1.0)), distribution.high)


@pytest.mark.parametrize("statistic", ["log_prob", "cdf", "icdf", "rsample", "mean", "variance", "stddev", "entropy"])
def test_gradients_agree_with_finite_differences(statistic):
    parameters = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in (0.1, 1.2)]
    argument = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)

    def evaluate(argument, *parameters):
        distribution = LogUniform(*parameters)
        if statistic in ("log_prob", "cdf", "icdf"):
            return getattr(distribution, statistic)(argument)
        if statistic == "rsample":
            torch.manual_seed(0)
            return distribution.rsample((5,))
        return distribution.entropy() if statistic == "entropy" else getattr(distribution, statistic)

    assert gradcheck(evaluate, (argument, *parameters), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    "low, high, message",
    [
        (0.0, 1.0, "positive and finite"),
        (-20.0, 0.0, "positive and finite"),
        (1.0, math.inf, "positive and finite"),
        (1.0, 1.0, "low < high"),
        (math.nan, 1.0, "low < high"),
    ],
)
def test_wrong_ends_are_refused(low, high, message):
    with pytest.raises(ReductionError, match=message):
        LogUniform(low, high)
