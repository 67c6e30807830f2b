# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import truncnorm, uniform

from pyro_bmrs import ReductionError
from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.pruning.criteria.evidence.unit_profile import UnitProfile, places

LOW = math.exp(-20)


def profile(polynomial, means, prior):
    """Of units whose log likelihood is one polynomial of the noise, known at the places and at the mean."""
    at = places(torch.tensor(means, dtype=torch.double), prior)

    def value(noise):
        return torch.from_numpy(polynomial(noise.numpy()))

    slope = torch.from_numpy(np.broadcast_to(polynomial.deriv()(at.mean.numpy()), len(means)).copy())
    return UnitProfile(at, value(at.noise) - value(at.mean).unsqueeze(-1), slope)


def units(count, low=LOW, high=1.0):
    return LogUniform(torch.full((count,), low).double(), torch.full((count,), high).double())


@pytest.mark.parametrize(("low", "high"), [(LOW, 1.0), (0.5, 3.0)])
@pytest.mark.parametrize("coefficients", [[0.0, 7.0], [2.0, 30.0, -3.0], [-40.0, 30.0, -3.0, 0.5], [1.0, -30.0, 2.0]])
def test_cubic_polynomials_that_rise_or_fall_are_met(low, high, coefficients):
    means = [low + share * (high - low) for share in (1e-5, 0.001, 0.29, 0.31, 0.5, 0.85, 0.95, 0.9999)]
    noise = torch.linspace(low, high, 50).double().expand(len(means), 50)
    polynomial = np.polynomial.Polynomial(coefficients)
    found = profile(polynomial, means, units(len(means), low, high))(noise)
    expected = torch.from_numpy(polynomial(noise.numpy()) - polynomial(np.array(means))[:, None])
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_a_mean_at_an_end_is_moved_inside():
    at = places(torch.tensor([0.0, LOW, 1.0]), LogUniform(torch.full((3,), LOW), torch.ones(3)))
    assert ((at.mean > LOW) & (at.mean < 1)).all()
    assert torch.allclose(at.mean, torch.tensor([0.0, 0.0, 1.0]), atol=2e-6)
    found = UnitProfile(at, at.noise - at.mean.unsqueeze(-1), torch.ones(3))
    noise = torch.linspace(LOW, 1, 20).expand(3, 20)
    torch.testing.assert_close(found(noise), noise - at.mean.unsqueeze(-1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("peak", "mean"), [(0.05, 0.2), (0.3, 0.2), (0.05, 0.7), (0.75, 0.7), (0.9, 0.7)])
def test_a_parabola_with_its_peak_off_the_mean(peak, mean):
    polynomial = np.polynomial.Polynomial([0.0, 2 * peak, -1.0])
    noise = torch.linspace(LOW, 1, 50).double().unsqueeze(0)
    found = profile(polynomial, [mean], units(1))(noise)
    expected = torch.from_numpy(polynomial(noise.numpy()) - polynomial(mean))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_cliff_is_not_overshot():
    """Below the mean a curve that falls stays between its values."""
    at = places(torch.tensor([0.7]).double(), units(1))
    found = UnitProfile(at, torch.tensor([[-1300.0, -3.0, 1.0]]).double(), torch.tensor([2.0]).double())
    values = found(torch.linspace(LOW, 0.7, 200).double().unsqueeze(0))
    assert values.min() >= -1300 and values.max() <= 1e-9
    assert (values.diff() >= -1e-9).all()


# Gentle and steep, peaked between the ends and at them.
PARABOLAS = [(0.0, 0.5), (3.0, 0.8), (300.0, 0.8), (1e5, 0.95), (50.0, 1.5), (200.0, 0.0)]
# Truncated normals of the logarithm; one of infinite scale is uniform.
DISTRIBUTIONS = {
    "prior": (LOW, 1.0, 0.0, math.inf),
    "BMRS_U": (LOW, 2.0**-8, 0.0, math.inf),
    "upper": (1e-3, 0.9, 0.0, math.inf),
    "broad": (LOW, 1.0, -20.0, 3.0),
    "narrow": (LOW, 1.0, -0.2, 0.01),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_mean_likelihood_is_an_integral(name):
    """By Gauss and Legendre, over the logarithm of the noise, with SciPy's densities."""
    low, high, loc, scale = DISTRIBUTIONS[name]
    ends = math.log(low), math.log(high)
    if math.isinf(scale):
        distribution, density = LogUniform(*torch.tensor([[low], [high]]).double()), uniform(ends[0], ends[1] - ends[0])
    else:
        distribution = TruncatedLogNormal(*torch.tensor([[loc], [scale], [low], [high]]).double())
        density = truncnorm(*[(end - loc) / scale for end in ends], loc, scale)
    for height, peak in PARABOLAS:
        polynomial = np.polynomial.Polynomial([0.0, 2 * height * peak, -height])
        best, at = min(max(peak, low), high), min(max(peak, 0.2), 0.99)
        marks = np.concatenate(
            [np.linspace(*ends, 12), math.log(best) + np.linspace(-0.1, 0.1, 41), density.ppf([0.5])]
        )
        marks = np.unique(np.clip(marks, *ends))
        heights = density.logpdf(marks) + polynomial(np.exp(marks))

        nodes, weights = np.polynomial.legendre.leggauss(100)
        left, width = marks[:-1, None], np.diff(marks)[:, None]
        t = left + 0.5 * width * (1 + nodes)
        top = heights.max()
        total = (0.5 * width * weights * np.exp(density.logpdf(t) + polynomial(np.exp(t)) - top)).sum()
        expected = math.log(total) + top - polynomial(at)
        found = profile(polynomial, [at], units(1)).log_mean_likelihood(distribution)
        assert float(found) == pytest.approx(expected, rel=1e-4, abs=2e-3)


def test_a_reduced_prior_that_is_all_but_a_point():
    """A millionth of a nat wide in the logarithm, where no even grid would find it; and a point itself."""
    polynomial = np.polynomial.Polynomial([0.0, 900.0, -500.0])
    found = profile(polynomial, [0.9, 0.6], units(2))
    expected = torch.tensor([polynomial(LOW) - polynomial(mean) for mean in (0.9, 0.6)]).double()
    low, one = torch.tensor(LOW).double(), torch.ones(()).double()
    narrow = TruncatedLogNormal(low.log(), 1e-6, low, one).expand((2,))
    torch.testing.assert_close(found.log_mean_likelihood(narrow), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.log_mean_likelihood(dist.Delta(low)), expected, rtol=0, atol=1e-9)


def test_nothing_is_lost_in_the_tails():
    """A unit worth a million nats: neither end overflows, and the mean is of what the peak is worth."""
    polynomial = np.polynomial.Polynomial([-1e6, 2e6, -1e6])
    prior = units(1)
    found = float(profile(polynomial, [0.99], prior).log_mean_likelihood(prior))
    # Half a normal of scale 1 / sqrt(2e6) at the upper end of an interval of 20.
    expected = math.log(math.sqrt(math.pi / 1e6) / 2 / 20) - float(polynomial(0.99))
    assert found == pytest.approx(expected, abs=0.01)


def test_a_reduced_prior_without_quantiles_is_refused():
    prior = units(1)
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(1, 2)), dist.Uniform(torch.full((1, 2), LOW), torch.ones(1, 2))
    )
    with pytest.raises(ReductionError, match="MixtureSameFamily.*quantiles"):
        profile(np.polynomial.Polynomial([0.0, 1.0]), [0.5], prior).log_mean_likelihood(mixture)
