# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import pickle

import mpmath as mp
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_bmrs.evidence import ReweightedDistribution, reduce


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def reweighted() -> tuple[ReweightedDistribution, dist.Normal]:
    """A reweighted distribution that is a normal one."""
    q, p, r = (
        dist.Normal(double(1.0, -2.0, 0.0), double(1.0, 0.5, 1e-3)),
        dist.Normal(0.0, 2.0),
        dist.Normal(scalar(0.3), 1.5),
    )
    posterior = reduce(q, p, r, method="quadrature").posterior
    precision = q.scale**-2 + r.scale**-2 - 0.25
    return posterior, dist.Normal((q.loc / q.scale**2 + r.loc / r.scale**2) / precision, precision**-0.5)


def test_moments_and_quantiles() -> None:
    posterior, exact = reweighted()
    torch.testing.assert_close(posterior.mean, exact.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(posterior.variance, exact.variance, rtol=1e-10, atol=0)
    levels = torch.linspace(1e-6, 1 - 1e-6, 101, dtype=torch.float64).unsqueeze(-1).expand(101, 3)
    x = exact.icdf(levels)
    torch.testing.assert_close(posterior.log_prob(x), exact.log_prob(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(posterior.cdf(x), levels, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(posterior.icdf(levels), x, rtol=1e-8, atol=1e-9)
    assert posterior.icdf(torch.tensor(0.5, dtype=torch.float64)).shape == (3,)


def test_draws_are_from_it() -> None:
    posterior, exact = reweighted()
    draws = posterior.sample((4000,))
    for k in range(3):
        test = scipy.stats.kstest(exact.cdf(draws)[:, k].numpy(), "uniform")
        assert test.pvalue > 1e-3


def test_gradients_of_cdf_quantiles_and_moments() -> None:
    def functions(loc: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        q, r = dist.Normal(loc, 0.7), dist.Laplace(scalar(0.0), scale)
        posterior = reduce(q, dist.Cauchy(scalar(0.0), 2.0), r).posterior
        x = scalar(0.4)
        return posterior.cdf(x), posterior.icdf(x), posterior.mean, posterior.variance, posterior.log_prob(x)

    parameters = [scalar(0.8).requires_grad_(), scalar(0.5).requires_grad_()]
    assert torch.autograd.gradcheck(functions, parameters)
    # the value's own gradients: the density, and one over the density
    posterior, _ = reweighted()
    x = double(0.4, -1.0, 1e-4).requires_grad_()
    (slope,) = torch.autograd.grad(posterior.cdf(x).sum(), x)
    torch.testing.assert_close(slope, posterior.log_prob(x).exp(), rtol=1e-9, atol=0)
    level = double(0.4, 0.1, 0.9).requires_grad_()
    (slope,) = torch.autograd.grad(posterior.icdf(level).sum(), level)
    torch.testing.assert_close(slope, (-posterior.log_prob(posterior.icdf(level))).exp(), rtol=1e-7, atol=0)


def test_pathwise_gradients_of_draws() -> None:
    loc = scalar(0.5).requires_grad_()
    posterior = reduce(
        dist.Normal(loc, 1.0), dist.Normal(0.0, 2.0), dist.Normal(scalar(0.0), 1.0), method="quadrature"
    ).posterior
    (slope,) = torch.autograd.grad(posterior.rsample((50,)).mean(), loc)
    torch.testing.assert_close(slope, scalar(1 / 1.75), rtol=1e-8, atol=0)  # every draw moves with the mean


def test_densities_that_pile_up_at_both_ends() -> None:
    # As of a normal on an interval with negative precision: exp(lambda x^2 / 2) on [-1, 1].
    for curvature in (1.0, 50.0, 2000.0):
        scale = scalar(curvature**-0.5)

        class Bowl(dist.Uniform):
            def log_prob(self, value: Tensor) -> Tensor:
                return super().log_prob(value) - dist.Normal(scalar(0.0), scale).log_prob(value)  # noqa: B023

        box = dist.Uniform(scalar(-1.0), scalar(1.0), validate_args=False)
        bowl = Bowl(scalar(-1.0), scalar(1.0))
        log_evidence = reduce(bowl, box, box, method="quadrature").delta_evidence
        posterior = ReweightedDistribution(bowl, box, box, log_evidence)
        with mp.workdps(30):
            mass = mp.quad(lambda x: mp.exp(curvature * (x * x - 1) / 2), [-1, 0, 1])  # noqa: B023
            square = mp.quad(lambda x: x * x * mp.exp(curvature * (x * x - 1) / 2), [-1, 0, 1])  # noqa: B023
            part = mp.quad(lambda x: mp.exp(curvature * (x * x - 1) / 2), [-1, -0.99])  # noqa: B023
        assert posterior.mean.item() == pytest.approx(0, abs=1e-12)
        assert posterior.variance.item() == pytest.approx(float(square / mass), rel=1e-10)
        assert posterior.cdf(scalar(-0.99)).item() == pytest.approx(float(part / mass), rel=1e-9)
        levels = double(1e-9, 0.1, 0.499, 0.501, 0.9, 1 - 1e-9)
        torch.testing.assert_close(posterior.cdf(posterior.icdf(levels)), levels, rtol=1e-9, atol=1e-12)
        draws = posterior.sample((1000,))
        assert ((draws > -1) & (draws < 1)).all()


def test_it_behaves_as_a_pyro_distribution() -> None:
    posterior, _ = reweighted()
    assert posterior.batch_shape == (3,)
    assert posterior.event_shape == ()
    assert posterior.expand([5, 3]).sample((2,)).shape == (2, 5, 3)
    assert posterior.to_event(1).log_prob(torch.zeros(3, dtype=torch.float64)).shape == ()
    assert posterior.support == constraints.real
    assert posterior.mask(torch.tensor([True, False, True])).log_prob(double(0.0, 0.0, 0.0))[1] == 0
    assert posterior.has_rsample
    copy = pickle.loads(pickle.dumps(posterior))
    torch.testing.assert_close(copy.mean, posterior.mean)

    def model() -> Tensor:
        with pyro.plate("elements", 3):
            return pyro.sample("x", posterior)

    assert pyro.poutine.trace(model).get_trace().log_prob_sum().isfinite()


def test_values_outside_its_support_are_refused() -> None:
    q, p, r = dist.Gamma(scalar(2.0), 1.0), dist.HalfCauchy(scalar(1.0)), dist.Uniform(scalar(0.5), scalar(1.0))
    posterior = reduce(q, p, r).posterior
    bounds = posterior.support
    assert (bounds.lower_bound, bounds.upper_bound) == (0.5, 1.0)
    with pytest.raises(ValueError, match="within the support"):
        posterior.log_prob(scalar(1.5))
    assert posterior.cdf(scalar(1.0)).item() == pytest.approx(1)
    assert posterior.cdf(scalar(0.5)).item() == pytest.approx(0, abs=1e-12)


def test_it_keeps_the_evidence_it_is_given() -> None:
    q, p, r = (dist.Normal(scalar(0.0), s) for s in (1.0, 2.0, 1.0))
    exact = scalar(-math.log(7 / 4) / 2 + math.log(2))
    posterior = ReweightedDistribution(q, p, r, exact)
    assert posterior.log_evidence == exact
    total = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    assert torch.trapezoid(posterior.log_prob(total).exp(), total).item() == pytest.approx(1, rel=1e-10)
