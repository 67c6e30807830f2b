# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.autograd import gradcheck
from torch.distributions import constraints, kl_divergence

from pyro_bmrs.distributions import TruncatedNormal
from tests.distributions.exact_truncated_normal import ExactTruncatedNormal
from tests.distributions.inference import fit, recovers

INF = math.inf
INTERVALS = [(0.0, 1.0), (-20.0, 0.0), (5.0, 5.5), (0.0, INF), (-INF, 1.0), (-INF, INF)]
# Locations in widths from an end, scales in widths; an unbounded interval counts as one of width 1.
PLACES = [-40.0, -3.0, -0.1, 0.0, 0.3, 0.9, 1.0, 1.5, 41.0]
SCALES = [1e-6, 1e-3, 0.1, 0.3, 1.0, 3.0, 1e2, 1e6]


def sweep(low, high, dtype):
    """Distributions with locations and scales of all sizes on one interval."""
    anchor = low if math.isfinite(low) else min(high - 1, 0)
    width = high - low if math.isfinite(high - low) else 1
    place, scale = torch.tensor(list(itertools.product(PLACES, SCALES)), dtype=torch.float64).to(dtype).unbind(-1)
    return TruncatedNormal(anchor + width * place, width * scale, low, high)


def exact(distribution):
    parameters = (distribution.loc, distribution.scale, distribution.low, distribution.high)
    return [ExactTruncatedNormal(*numbers) for numbers in zip(*(parameter.tolist() for parameter in parameters))]


def assert_accurate(values, truths, relative, absolute=0.0):
    for value, truth in zip(values.tolist(), truths):
        assert abs(mpf(value) - truth) <= relative * abs(truth) + absolute, (value, float(truth))


@pytest.mark.parametrize("low, high", INTERVALS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 2e-13), (torch.float32, 1e-4)])
class TestAgainstTheTextbookFormulasInManyDigits:
    def test_log_prob(self, low, high, dtype, tolerance):
        distribution = sweep(low, high, dtype)
        for u in (0.0, 0.2, 0.5, 0.9, 1.0):
            # The quantiles are where samples lie; the clamp brings infinite ends in.
            value = distribution.icdf(torch.full_like(distribution.loc, u)).clamp(-1e3, 1e3)
            truths = [each.log_prob(x) for each, x in zip(exact(distribution), value.tolist())]
            assert_accurate(distribution.log_prob(value), truths, tolerance, tolerance)

    def test_cdf(self, low, high, dtype, tolerance):
        distribution = sweep(low, high, dtype)
        for u in (1e-9, 0.2, 0.9):
            value = distribution.icdf(torch.full_like(distribution.loc, u))
            truths = [each.cdf(x) for each, x in zip(exact(distribution), value.tolist())]
            assert_accurate(distribution.cdf(value), truths, 3 * tolerance, 1e-30)

    def test_mean_variance_and_entropy(self, low, high, dtype, tolerance):
        distribution = sweep(low, high, dtype)
        truths = exact(distribution)
        assert_accurate(distribution.mean, [each.mean for each in truths], tolerance, tolerance * 1e-3)
        assert_accurate(distribution.variance, [each.variance for each in truths], tolerance)
        assert_accurate(distribution.stddev, [each.variance**0.5 for each in truths], tolerance)
        assert_accurate(distribution.entropy(), [each.entropy for each in truths], tolerance, 10 * tolerance)

    def test_quantiles_and_probabilities_are_inverse(self, low, high, dtype, tolerance):
        distribution = sweep(low, high, dtype)
        for u in (1e-6, 0.1, 0.5, 0.99):
            u = torch.full_like(distribution.loc, u)
            x = distribution.icdf(u)
            rounding = distribution.log_prob(x).exp() * x.abs() * torch.finfo(dtype).eps
            resolved = x.abs() * torch.finfo(dtype).eps < 1e-3 * distribution.stddev
            assert resolved.sum() > len(x) / 3
            assert ((distribution.cdf(x) - u).abs() <= 0.5 * tolerance + 2 * rounding)[resolved].all()


def test_probabilities_of_quantiles_are_exact_to_1e_13_where_rounding_allows():
    for low, high in INTERVALS[:1] + INTERVALS[3:4]:
        distribution = sweep(low, high, torch.float64)
        for u in torch.linspace(0, 1, 101, dtype=torch.float64):
            x = distribution.icdf(u.expand_as(distribution.loc))
            rounding = distribution.log_prob(x).exp() * x.abs() * torch.finfo(x.dtype).eps
            error = (distribution.cdf(x) - u).abs()[~(rounding > 1e-15)]
            assert (error < 1e-13).all() and len(error) > 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.01, 0.03, 0.1, 0.3, 1.0])
def test_numpyro_issue_1492(scale, dtype):
    """https://github.com/pyro-ppl/numpyro/issues/1492: the log density in the tail was inf."""
    distribution = TruncatedNormal(torch.tensor(1.35, dtype=dtype), scale, -20.0, -1.0)
    value = torch.tensor(-15.0, dtype=dtype)
    exact = ExactTruncatedNormal(distribution.loc.item(), distribution.scale.item(), -20, -1)
    truth = exact.log_prob(-15)
    assert abs(distribution.log_prob(value).item() - truth) <= 4 * torch.finfo(dtype).eps * abs(truth)
    assert_accurate(distribution.mean[None], [exact.mean], 4 * torch.finfo(dtype).eps)
    assert_accurate(distribution.variance[None], [exact.variance], 200 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("loc, scale, low, high", [(0.5, 2.0, -1.0, 3.0), (-1.0, 1.0, 0.0, INF), (2.0, 0.5, -INF, 1.5)])
def test_agrees_with_scipy_near_the_location(loc, scale, low, high):
    distribution = TruncatedNormal(torch.tensor(loc, dtype=torch.float64), scale, low, high)
    reference = scipy.stats.truncnorm((low - loc) / scale, (high - loc) / scale, loc, scale)
    u = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)
    x = torch.as_tensor(reference.ppf(u))
    torch.testing.assert_close(distribution.icdf(u), x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(distribution.cdf(x), u, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(distribution.log_prob(x), torch.as_tensor(reference.logpdf(x)), rtol=1e-10, atol=1e-10)
    for ours, theirs in [
        (distribution.mean, reference.mean()),
        (distribution.stddev, reference.std()),
        *([(distribution.entropy(), reference.entropy())] if math.isfinite(high - low) else []),  # SciPy's is NaN there
    ]:
        assert ours.item() == pytest.approx(float(theirs), rel=1e-8)


class TestLimits:
    def test_without_ends_it_is_the_normal(self):
        loc, scale = torch.tensor([-3.0, 0.0, 1e4]), torch.tensor([0.1, 1.0, 1e3])
        ours, normal = TruncatedNormal(loc, scale, -INF, INF), dist.Normal(loc, scale)
        x = loc + scale * torch.linspace(-4, 4, 9)[:, None]
        torch.testing.assert_close(ours.log_prob(x), normal.log_prob(x))
        torch.testing.assert_close(ours.cdf(x), normal.cdf(x))
        torch.testing.assert_close(ours.entropy(), normal.entropy())
        for moment in ("mean", "stddev", "mode"):
            torch.testing.assert_close(getattr(ours, moment), getattr(normal, moment))

    def test_from_its_location_upwards_it_is_the_half_normal(self):
        scale = torch.tensor([0.1, 1.0, 1e3])
        ours, half = TruncatedNormal(0.0, scale, 0.0, INF), dist.HalfNormal(scale)
        x = scale * torch.linspace(0, 4, 9)[:, None]
        torch.testing.assert_close(ours.log_prob(x), half.log_prob(x))
        torch.testing.assert_close(ours.entropy(), half.entropy())
        for moment in ("mean", "stddev", "mode"):
            torch.testing.assert_close(getattr(ours, moment), getattr(half, moment))

    def test_far_from_its_location_it_is_exponential(self):
        ours, rate = TruncatedNormal(torch.tensor(-1e6, dtype=torch.float64), 1.0, 0.0, INF), 1e6
        exponential = dist.Exponential(torch.tensor(rate, dtype=torch.float64))
        x = torch.linspace(0, 20, 11, dtype=torch.float64) / rate
        torch.testing.assert_close(ours.log_prob(x), exponential.log_prob(x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.icdf(exponential.cdf(x[:9])), x[:9], rtol=1e-8, atol=0)
        torch.testing.assert_close(ours.variance, exponential.variance, rtol=1e-9, atol=0)

    def test_with_a_scale_of_many_widths_it_is_uniform(self):
        ours, uniform = TruncatedNormal(0.0, torch.tensor(2e6), -1.0, 1.0), dist.Uniform(-1.0, torch.tensor(1.0))
        x = torch.linspace(-1, 0.9, 9)
        torch.testing.assert_close(ours.log_prob(x), uniform.log_prob(x))
        torch.testing.assert_close(ours.icdf(x.abs()), uniform.icdf(x.abs()))
        torch.testing.assert_close(ours.variance, uniform.variance)
        assert kl_divergence(ours, uniform).abs() < 1e-6


def test_values_at_and_beyond_the_ends():
    distribution = TruncatedNormal(torch.tensor([0.2, -9.0, 0.2]), 1.0, torch.tensor([0.0, 0.0, -INF]), 1.0)
    unchecked = TruncatedNormal(distribution.loc, distribution.scale, distribution.low, 1.0, validate_args=False)
    assert distribution.log_prob(torch.tensor(1.0)).isfinite().all()
    assert (unchecked.log_prob(torch.tensor(1.5)) == -INF).all()
    assert (unchecked.log_prob(torch.tensor(-INF)) == -INF).all()
    assert (unchecked.cdf(torch.tensor(1.5)) == 1).all()
    assert unchecked.cdf(torch.tensor(-0.1))[:2].tolist() == [0, 0]
    assert (unchecked.cdf(torch.tensor(-INF)) == 0).all()
    assert torch.equal(distribution.icdf(torch.tensor(0.0)), distribution.low)
    assert torch.equal(distribution.icdf(torch.tensor(1.0)), distribution.high)


def test_gradients_at_the_ends():
    """The distribution function rises with the density, and falls with an end's, also at the ends."""
    loc = torch.tensor([0.3, -9.0, 0.1], dtype=torch.float64)
    scale = torch.tensor([0.5, 1.0, 40.0], dtype=torch.float64)
    low, high = torch.zeros_like(loc).requires_grad_(), torch.ones_like(loc).requires_grad_()
    distribution = TruncatedNormal(loc, scale, low, high, validate_args=False)
    density_low = distribution.log_prob(low.detach()).exp().detach()
    density_high = distribution.log_prob(high.detach()).exp().detach()
    for value, expected in [(0.0, (density_low, -density_low, 0 * loc)), (1.0, (density_high, 0 * loc, -density_high))]:
        x = torch.full_like(loc, value).requires_grad_()
        slopes = torch.autograd.grad(distribution.cdf(x).sum(), (x, low, high))
        for slope, truth in zip(slopes, expected):
            torch.testing.assert_close(slope, truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "loc, scale, low, high",
    [(0.3, 0.7, 0.0, 1.0), (-6.0, 1.0, 0.0, 2.0), (9.0, 1.0, -INF, 2.0), (0.2, 30.0, 0.0, 1.0), (-2.0, 0.8, 0.0, INF)],
)
@pytest.mark.parametrize("statistic", ["log_prob", "cdf", "icdf", "rsample", "mean", "variance", "stddev", "entropy"])
def test_gradients_agree_with_finite_differences(loc, scale, low, high, statistic):
    ends = (low, high)
    numbers = [loc, scale, *(end for end in ends if math.isfinite(end))]
    parameters = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in numbers]
    argument = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)

    def evaluate(argument, loc, scale, *finite):
        finite = iter(finite)
        ends_now = [next(finite) if math.isfinite(end) else torch.full_like(loc, end) for end in ends]
        distribution = TruncatedNormal(loc, scale, *ends_now)
        if statistic in ("log_prob", "cdf", "icdf"):
            return getattr(distribution, statistic)(argument)
        if statistic == "rsample":
            torch.manual_seed(0)
            return distribution.rsample((5,))
        return distribution.entropy() if statistic == "entropy" else getattr(distribution, statistic)

    assert gradcheck(evaluate, (argument, *parameters), atol=1e-7, rtol=1e-5)


@settings(deadline=None, max_examples=100)
@given(
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    width=st.floats(-3, 3).map(lambda exponent: 10**exponent),
    low=st.floats(-10, 10),
    place=st.floats(-40, 41),
    log_scale=st.floats(-6, 6),
)
@pytest.mark.no_cover
def test_everything_is_finite_in_values_and_gradients(data, dtype, width, low, place, log_scale):
    # Ends in whole float32 numbers, so that the interval is the one meant.
    low, high = (torch.tensor(end).item() for end in (low, low + width))
    numbers = (low + place * width, width * 10**log_scale, low, high)
    parameters = [torch.tensor(number, dtype=dtype, requires_grad=True) for number in numbers]
    distribution = TruncatedNormal(*parameters)
    low, high = distribution.low, distribution.high
    fraction = data.draw(st.sampled_from([0.0, 1.0]) | st.floats(0, 1))
    value = torch.minimum(torch.maximum(low + fraction * (high - low), low), high).detach().requires_grad_()
    u = torch.tensor(fraction, dtype=dtype)
    statistics = {
        "log_prob": distribution.log_prob(value),
        "cdf": distribution.cdf(value),
        "icdf": distribution.icdf(u),
        "rsample": distribution.rsample((3,)),
        "mean": distribution.mean,
        "mode": distribution.mode,
        "variance": distribution.variance,
        "stddev": distribution.stddev,
        "entropy": distribution.entropy(),
        "divergence": kl_divergence(distribution, dist.Uniform(low, high)),
    }
    for name, statistic in statistics.items():
        gradients = torch.autograd.grad(statistic.sum(), (value, *parameters), allow_unused=True, retain_graph=True)
        assert statistic.isfinite().all(), name
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients), name
    for name in ("icdf", "rsample", "mean", "mode"):
        assert ((low <= statistics[name]) & (statistics[name] <= high)).all(), name
    assert 0 <= statistics["cdf"] <= 1
    slack = 1 + 64 * torch.finfo(dtype).eps
    assert 0 < statistics["variance"] <= (high - low) ** 2 / 12 * slack
    assert statistics["entropy"] <= (high - low).log() + 64 * torch.finfo(dtype).eps * (1 + (high - low).log().abs())


@settings(deadline=None, max_examples=50)
@given(
    place=st.floats(-40, 41),
    log_scale=st.floats(-6, 6),
    pair=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_quantiles_rise(place, log_scale, pair):
    distribution = TruncatedNormal(torch.tensor(place, dtype=torch.float64), 10**log_scale, 0.0, 1.0)
    x = distribution.icdf(torch.tensor(pair, dtype=torch.float64))
    # Where the two branches of the quantile meet, by no more than rounding.
    assert x[0] <= x[1] * (1 + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "loc, scale, low, high",
    [(0.3, 0.5, 0.0, 1.0), (-9.0, 1.0, 0.0, 1.0), (40.0, 1.0, -INF, 1.0), (0.2, 1e3, 0.0, 1.0), (-3.0, 1.0, 0.0, INF)],
)
def test_samples_follow_the_distribution(loc, scale, low, high, dtype):
    torch.manual_seed(1)
    distribution = TruncatedNormal(torch.tensor(loc, dtype=dtype), scale, low, high)
    samples = distribution.sample((20_000,))
    assert ((samples >= low) & (samples <= high)).all() and samples.dtype == dtype and not samples.requires_grad
    exact = TruncatedNormal(torch.tensor(loc, dtype=torch.float64), scale, low, high)
    # Uniform if the samples follow the distribution; tests of cdf are above.
    assert scipy.stats.kstest(exact.cdf(samples.double().clamp(low, high)).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("loc, scale, low, high", [(0.3, 0.5, 0.0, 1.0), (-8.0, 1.0, 0.0, 1.0), (0.2, 5.0, 0.0, 1.0)])
def test_pathwise_gradients_are_unbiased(loc, scale, low, high):
    """The mean of dx/dtheta and of d(x²)/dtheta over samples, against the derivatives of the exact moments."""
    torch.manual_seed(2)
    numbers, count = (loc, scale, low, high), 200_000
    each = [torch.full((count,), number, dtype=torch.float64, requires_grad=True) for number in numbers]
    x = TruncatedNormal(*each).rsample()
    one = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in numbers]
    distribution = TruncatedNormal(*one)
    for moment, exact in [(x, distribution.mean), (x**2, distribution.mean**2 + distribution.variance)]:
        slopes = torch.autograd.grad(moment.sum(), each, retain_graph=True)
        for slope, truth in zip(slopes, torch.autograd.grad(exact, one, retain_graph=True)):
            standard_error = slope.std() / math.sqrt(count)
            assert (slope.mean() - truth).abs() < 5 * standard_error


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_cuda_as_on_the_cpu(dtype):
    distribution = sweep(0.0, 1.0, dtype)
    moved = TruncatedNormal(distribution.loc.cuda(), distribution.scale.cuda(), 0.0, 1.0)
    u = torch.linspace(0.01, 0.99, len(distribution.loc), dtype=dtype)
    tolerance = {"rtol": 1e-5 if dtype == torch.float32 else 1e-11, "atol": 1e-5 if dtype == torch.float32 else 1e-11}
    torch.testing.assert_close(moved.icdf(u.cuda()).cpu(), distribution.icdf(u), **tolerance)
    for statistic in ("mean", "variance"):
        torch.testing.assert_close(getattr(moved, statistic).cpu(), getattr(distribution, statistic), **tolerance)
    loc = moved.loc.clone().requires_grad_()
    sample = TruncatedNormal(loc, moved.scale, moved.low, moved.high).rsample((7,))
    assert sample.is_cuda and sample.dtype == dtype
    assert torch.autograd.grad(sample.sum(), loc)[0].isfinite().all()


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_truncated_normal_guide(elbo, double):
    """A normal likelihood and a truncated normal prior: the posterior is truncated normal, in the bulk and a tail."""
    prior = TruncatedNormal(torch.tensor([0.5, 0.5, 0.0]), 1.0, 0.0, 1.0)
    observed, noise = torch.tensor([0.6, -1.5, 2.5]), 0.5
    precision = 1 + noise**-2
    posterior = TruncatedNormal((prior.loc + observed * noise**-2) / precision, precision**-0.5, 0.0, 1.0)

    def model():
        with pyro.plate("elements", 3):
            x = pyro.sample("x", prior)
            pyro.sample("y", dist.Normal(x, noise), obs=observed)

    def guide():
        loc = pyro.param("loc", torch.full((3,), 0.5))
        scale = pyro.param("scale", torch.full((3,), 1.0), constraint=constraints.positive)
        with pyro.plate("elements", 3):
            pyro.sample("x", TruncatedNormal(loc, scale, 0.0, 1.0))

    fit(model, guide, elbo(num_particles=50, vectorize_particles=True, max_plate_nesting=1), 150, 0.2)
    fitted = TruncatedNormal(pyro.param("loc").detach(), pyro.param("scale").detach(), 0.0, 1.0)
    recovers(fitted, posterior, 0.1)
