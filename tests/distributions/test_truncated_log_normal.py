# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

import csv
import itertools
import math
from pathlib import Path

import mpmath
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf
from pyro.infer import TraceMeanField_ELBO
from torch.autograd import gradcheck
from torch.distributions import constraints, kl_divergence

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.errors import ReductionError
from tests.distributions.exact_truncated_normal import ExactTruncatedNormal
from tests.distributions.inference import fit, recovers

LOW, HIGH = math.exp(-20), 1.0


@pytest.fixture(scope="module")
def reference():
    path = Path(__file__).parents[1] / "reference" / "truncated_log_normal.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: torch.tensor([float(row[name]) for row in rows], dtype=torch.float64) for name in rows[0]}


class TestAgainstTheReferenceValues:
    """200 rows of 60-digit arithmetic on [e^-20, 1], which this project did not compute."""

    @pytest.fixture
    def posterior(self, reference):
        return TruncatedLogNormal(reference["mu"], reference["sigma"], LOW, HIGH)

    def test_mean(self, posterior, reference):
        torch.testing.assert_close(posterior.mean, reference["mean"], rtol=1e-10, atol=0)

    def test_signal_to_noise_ratio(self, posterior, reference):
        torch.testing.assert_close(posterior.mean / posterior.stddev, reference["snr"], rtol=1e-7, atol=0)

    def test_divergence_from_the_log_uniform(self, posterior, reference):
        divergence = kl_divergence(posterior, LogUniform(torch.tensor(LOW, dtype=torch.float64), HIGH))
        error = (divergence - reference["kl"]).abs()
        assert torch.all((error <= 1e-10 * reference["kl"].abs()) | (error <= 1e-12))

    def test_float32(self, reference):
        posterior = TruncatedLogNormal(reference["mu"].float(), reference["sigma"].float(), LOW, HIGH)
        snr = posterior.mean / posterior.stddev
        divergence = kl_divergence(posterior, LogUniform(LOW, HIGH))
        torch.testing.assert_close(posterior.mean, reference["mean"].float(), rtol=1e-5, atol=0)
        torch.testing.assert_close(snr, reference["snr"].float(), rtol=1e-4, atol=0)
        torch.testing.assert_close(divergence, reference["kl"].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("low, high", [(LOW, 1.0), (0.0, 1.0), (0.5, 0.75), (1e-3, 1e3), (0.0, math.inf)])
def test_mean_and_standard_deviation_are_exact_for_all_locations_and_scales(low, high):
    # A width in logarithms, of 1 where there is no end; scales small enough for the moments to be finite.
    ends = mpmath.log(mpf(low)) if low else -mpmath.inf, mpmath.log(mpf(high))
    bounded = not any(mpmath.isinf(end) for end in ends)
    width = float(ends[1] - ends[0]) if bounded else 1.0
    anchor = math.log(low) if low else -1.0
    scales = [1e-6, 1e-3, 0.1, 1.0, 3.0, *([1e2, 1e6] if bounded else [])]
    for place, scale in itertools.product([-40.0, -1.0, 0.0, 0.5, 1.0, 41.0], scales):
        loc, scale = anchor + place * width, scale * width
        ours = TruncatedLogNormal(torch.tensor(loc, dtype=torch.float64), scale, low, high)
        exact = ExactTruncatedNormal(loc, scale, *ends)
        mean = exact.exponential_moment(1)
        # The ends of our interval are log(low) and log(high), rounded, which moves the mass on the last digit.
        assert abs(ours.mean.item() / mean - 1) < 1e-12, (loc, scale)
        assert low <= ours.mean <= high
        stddev = mpmath.sqrt(exact.exponential_moment(2) - mean**2)
        assert abs(ours.stddev.item() / stddev - 1) < 1e-9, (loc, scale)
        assert ours.variance.item() == pytest.approx(ours.stddev.item() ** 2)


def test_without_ends_it_is_the_log_normal():
    loc, scale = torch.tensor([-3.0, 0.0, 1.0]), torch.tensor([0.1, 1.0, 0.5])
    ours, free = TruncatedLogNormal(loc, scale, 0.0, math.inf), dist.LogNormal(loc, scale)
    x = free.icdf(torch.linspace(0.01, 0.99, 9)[:, None])
    for name in ("log_prob", "cdf"):
        torch.testing.assert_close(getattr(ours, name)(x), getattr(free, name)(x), rtol=1e-5, atol=1e-5)
    for name in ("mean", "variance", "mode"):
        torch.testing.assert_close(getattr(ours, name), getattr(free, name))
    torch.testing.assert_close(ours.entropy(), free.entropy())


def test_the_density_is_that_of_the_transformed_truncated_normal_and_integrates_to_one():
    distribution = TruncatedLogNormal(torch.tensor(-1.0, dtype=torch.float64), 2.0, 0.05, 1.5)
    grid = torch.linspace(0.05, 1.5, 200_001, dtype=torch.float64)
    density = distribution.log_prob(grid).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-8)
    assert torch.trapezoid(density * grid, grid).item() == pytest.approx(distribution.mean.item(), abs=1e-8)
    torch.testing.assert_close(torch.cumulative_trapezoid(density, grid), distribution.cdf(grid[1:]), rtol=0, atol=1e-7)
    torch.testing.assert_close(distribution.icdf(distribution.cdf(grid)), grid)
    assert grid[density.argmax()].item() == pytest.approx(distribution.mode.item(), abs=1e-4)
    entropy = -torch.trapezoid(density * density.log(), grid)
    assert entropy.item() == pytest.approx(distribution.entropy().item(), abs=1e-7)


def test_the_mode_is_where_the_density_of_the_variable_itself_is_greatest():
    distribution = TruncatedLogNormal(torch.tensor([-30.0, -5.0, -0.5, 40.0]), 0.5, LOW, HIGH)
    expected = torch.tensor([LOW, math.exp(-5.25), math.exp(-0.75), HIGH])
    torch.testing.assert_close(distribution.mode, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loc, scale", [(-3.0, 1.0), (-25.0, 0.3), (-20.0, 1e-6), (5.0, 0.5), (-10.0, 1e3)])
def test_samples_stay_in_the_interval_and_follow_the_distribution(loc, scale, dtype):
    torch.manual_seed(1)
    distribution = TruncatedLogNormal(torch.tensor(loc, dtype=dtype), scale, LOW, HIGH)
    samples = distribution.sample((10_000,))
    assert distribution.support.check(samples).all() and samples.dtype == dtype
    assert distribution.log_prob(samples).isfinite().all()
    if scale > 1e-3:
        exact = TruncatedLogNormal(torch.tensor(loc, dtype=torch.float64), scale, LOW, HIGH, validate_args=False)
        assert scipy.stats.kstest(exact.cdf(samples.double()).numpy(), "uniform").pvalue > 1e-3


def test_a_sample_on_an_end_still_has_the_gradient_of_the_exponential():
    # In float32, e^x for x = log(low) may round below low; all samples here are on that end or next to it.
    loc = torch.full((1000,), -20.0, requires_grad=True)
    low = torch.linspace(1e-9, 1e-8, 1000)
    sample = TruncatedLogNormal(loc - 1, 1e-7, low, 1.0).rsample()
    assert torch.all(sample >= low)
    assert TruncatedLogNormal(loc, 1e-7, low, 1.0).log_prob(sample).isfinite().all()
    normal = TruncatedLogNormal(loc, 1e-7, 1e-12, 1.0).rsample()
    (slope,) = torch.autograd.grad(normal.sum(), loc)
    torch.testing.assert_close(slope, normal)


def test_samples_that_underflow_have_no_density_and_no_nan():
    loc = torch.tensor(-1e4, requires_grad=True)
    distribution = TruncatedLogNormal(loc, 1.0, 0.0, 1.0)
    sample = distribution.rsample()
    log_prob = distribution.log_prob(sample)
    assert sample == 0 and log_prob == -math.inf and distribution.cdf(sample) == 0
    assert not torch.autograd.grad(log_prob, loc)[0].isnan()


@pytest.mark.parametrize(
    "loc, scale, low, high", [(-1.0, 0.7, 0.1, 1.0), (-9.0, 1.0, 0.1, 1.0), (-1.0, 30.0, 0.1, 1.0)]
)
@pytest.mark.parametrize(
    "statistic", ["log_prob", "cdf", "icdf", "rsample", "mean", "variance", "stddev", "entropy", "divergence"]
)
def test_gradients_agree_with_finite_differences(loc, scale, low, high, statistic):
    parameters = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in (loc, scale, low, high)]
    argument = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)

    def evaluate(argument, *parameters):
        distribution = TruncatedLogNormal(*parameters)
        if statistic in ("log_prob", "cdf", "icdf"):
            return getattr(distribution, statistic)(argument)
        if statistic == "rsample":
            torch.manual_seed(0)
            return distribution.rsample((5,))
        if statistic == "divergence":
            return kl_divergence(distribution, LogUniform(0.5 * parameters[2], 2 * parameters[3]))
        return distribution.entropy() if statistic == "entropy" else getattr(distribution, statistic)

    assert gradcheck(evaluate, (argument, *parameters), atol=1e-7, rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    place=st.floats(-40, 41),
    log_scale=st.floats(-6, 6),
    low=st.sampled_from([LOW, 0.01, 0.9]),
)
@pytest.mark.no_cover
def test_everything_is_finite_in_values_and_gradients(dtype, place, log_scale, low):
    width = -math.log(low)
    numbers = (math.log(low) + place * width, width * 10**log_scale, low, HIGH)
    parameters = [torch.tensor(number, dtype=dtype, requires_grad=True) for number in numbers]
    distribution = TruncatedLogNormal(*parameters)
    prior = LogUniform(parameters[2], parameters[3])
    sample = distribution.rsample((3,))
    statistics = {
        "rsample": sample,
        "log_prob": distribution.log_prob(sample.detach()),
        "cdf": distribution.cdf(sample.detach()),
        "mean": distribution.mean,
        "mode": distribution.mode,
        "variance": distribution.variance,
        "stddev": distribution.stddev,
        "entropy": distribution.entropy(),
        "divergence": kl_divergence(distribution, prior),
    }
    for name, statistic in statistics.items():
        gradients = torch.autograd.grad(statistic.sum(), parameters, allow_unused=True, retain_graph=True)
        assert statistic.isfinite().all(), name
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients), name
    for name in ("rsample", "mean", "mode"):
        assert ((distribution.low <= statistics[name]) & (statistics[name] <= distribution.high)).all(), name
    assert (distribution.mean / distribution.stddev).isfinite()
    assert statistics["divergence"] > -64 * torch.finfo(dtype).eps * width


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0.0, 1.0, -1.0, 1.0), "bound the variable itself"),
        ((-20.0, 1.0, -20.0, 0.0), "bound the variable itself"),
        ((0.0, 1.0, 1.0, 0.5), "low < high"),
        ((0.0, 1.0, 1.0, math.nan), "low < high"),
    ],
)
def test_wrong_ends_are_refused(arguments, message):
    with pytest.raises(ReductionError, match=message):
        TruncatedLogNormal(*arguments)


def test_samples_that_overflow_are_infinite_and_have_no_density():
    distribution = TruncatedLogNormal(torch.tensor(200.0), 1.0, 1.0, math.inf)
    sample = distribution.sample((3,))
    assert (sample == math.inf).all() and (distribution.log_prob(sample) == -math.inf).all()
    assert (distribution.cdf(sample) == 1).all()


@pytest.mark.no_cover
def test_a_truncated_log_normal_guide(double):
    """A normal likelihood of the logarithm and a log-uniform prior: the posterior is truncated log-normal."""
    observed, noise = torch.tensor([-3.0, -19.8, -0.3]), 0.7
    posterior = TruncatedLogNormal(observed, noise, LOW, HIGH)

    def model():
        with pyro.plate("units", 3):
            x = pyro.sample("x", LogUniform(LOW, HIGH))
            pyro.sample("y", dist.Normal(x.log(), noise), obs=observed)

    def guide():
        loc = pyro.param("loc", torch.full((3,), -10.0))
        scale = pyro.param("scale", torch.full((3,), 2.0), constraint=constraints.positive)
        with pyro.plate("units", 3):
            pyro.sample("x", TruncatedLogNormal(loc, scale, LOW, HIGH))

    elbo = TraceMeanField_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
    fit(model, guide, elbo, 250, 0.5)
    fitted = TruncatedLogNormal(pyro.param("loc").detach(), pyro.param("scale").detach(), LOW, HIGH)
    recovers(fitted.base_dist, posterior.base_dist, 0.15)
