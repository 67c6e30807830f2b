# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The evidence of whole models, from draws that are near their posterior or not."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs.integration.ends import conditioned, integrate_model, moments
from tests import conjugate

X, Y = conjugate.data()
PRIOR = conjugate.prior(4)


def near(loc: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
    draws = loc + scale * torch.randn(300, 4, dtype=torch.float64)
    return {"first": draws[:, :2], "rest": draws[:, 2:]}


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 0.1), (1.0, 0.02), (-0.5, 1.0)])
def test_the_evidence_of_a_regression_from_draws_that_are_off(shift, scale):
    exact = float(conjugate.log_evidence(X, Y, *PRIOR))
    start = near(conjugate.exact_posterior(X, Y, *PRIOR).mean + shift, scale)
    found = integrate_model(conjugate.model, (X, Y), {}, [start])
    assert found.trusted
    assert found.value == pytest.approx(exact, abs=max(0.02, 3 * found.standard_error))


def test_the_better_of_two_starts_is_taken():
    posterior = conjugate.exact_posterior(X, Y, *PRIOR)
    far, close = near(posterior.mean + 40.0, 1e-3), near(posterior.mean, 0.1)
    found = integrate_model(conjugate.model, (X, Y), {}, [far, close])
    assert found.value == pytest.approx(float(conjugate.log_evidence(X, Y, *PRIOR)), abs=0.03)


def test_draws_are_of_the_posterior():
    posterior = conjugate.exact_posterior(X, Y, *PRIOR)
    found = integrate_model(conjugate.model, (X, Y), {}, [near(posterior.mean, 0.1)])
    draws = torch.cat(list(found.draws(4000).values()), -1)
    torch.testing.assert_close(draws.mean(0), posterior.mean, atol=0.02, rtol=0.0)
    torch.testing.assert_close(draws.std(0), posterior.stddev, atol=0.01, rtol=0.1)


def test_draws_near_a_reduced_posterior_by_conditioning_are_exact_for_a_normal():
    posterior = conjugate.exact_posterior(X, Y, *PRIOR)
    full = integrate_model(conjugate.model, (X, Y), {}, [near(posterior.mean, 0.1)], num_draws=20_000)

    def at_a_point(x, y):
        first = pyro.sample("first", dist.Delta(x.new_zeros(2), event_dim=1))
        with pyro.plate("rest_plate", 2):
            rest = pyro.sample("rest", dist.Normal(x.new_tensor(0.2), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ torch.cat([first, rest]), conjugate.NOISE), obs=y)

    values = conditioned(full, at_a_point, 20_000)
    assert values is not None
    assert not values["first"].any()
    exact = conjugate.exact_posterior(X[:, 2:], Y, PRIOR[0][2:], PRIOR[1][2:])
    torch.testing.assert_close(values["rest"].mean(0), exact.mean, atol=0.03, rtol=0.0)


def eight_schools(y, errors):
    """Rubin (1981), with the priors of Gelman et al.; theta as deviations from the mean it shares."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
        pyro.sample("y", dist.Normal(effect, errors), obs=y)


def test_a_funnel_is_integrated_in_the_coordinates_that_suit_it():
    """The effects integrate out in closed form; mean and spread are left for a grid."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    mean, log_spread = (
        torch.linspace(-30, 40, 701, dtype=torch.float64),
        torch.linspace(-12, 8, 2001, dtype=torch.float64),
    )
    spread = log_spread.exp()
    scale = (errors.double() ** 2 + spread[:, None] ** 2).sqrt()
    likelihood = dist.Normal(mean[:, None, None], scale).log_prob(y.double()).sum(-1)
    prior = dist.Normal(0.0, 5.0).log_prob(mean)[:, None] + (dist.HalfCauchy(5.0).log_prob(spread) + log_spread)
    exact = float(torch.logsumexp((likelihood + prior).flatten(), 0)) + math.log(0.1 * 0.01)
    start = {
        "mean": 4 + torch.randn(200),
        "spread": (1 + 0.3 * torch.randn(200)).exp(),
        "effect": 5 + 3 * torch.randn(200, 8),
    }
    found = integrate_model(eight_schools, (y, errors), {}, [start])
    assert found.trusted
    assert found.value == pytest.approx(exact, abs=max(0.05, 3 * found.standard_error))


def test_moments_of_draws_that_are_all_alike_can_be_drawn_from():
    loc, covariance = moments(torch.full((10, 2), 3.0))
    assert torch.equal(loc, torch.full((2,), 3.0, dtype=torch.float64))
    torch.linalg.cholesky(covariance)


def barely_a_covariance():
    """The matrix is a covariance for correlations between -1 and 1 alone, which the prior does not know."""
    correlation = pyro.sample("correlation", dist.Normal(0.0, 1.0))
    covariance = torch.eye(2) + correlation * torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance), obs=torch.tensor([0.2, -0.3]))


def test_draws_at_which_a_density_is_no_number_stop_no_others_and_are_told():
    grid = torch.linspace(-1, 1, 20_001, dtype=torch.float64)[1:-1]
    quadratic = (0.2**2 + 0.3**2 + 2 * 0.06 * grid) / (1 - grid**2)
    log_density = -math.log(2 * math.pi) - 0.5 * (1 - grid**2).log() - 0.5 * quadratic
    exact = float((log_density + dist.Normal(0.0, 1.0).log_prob(grid)).logsumexp(0)) + math.log(1e-4)
    found = integrate_model(barely_a_covariance, (), {}, [{"correlation": 0.1 * torch.randn(100)}])
    assert found.value == pytest.approx(exact, abs=0.1)
    assert found.unknown > 0.01
    assert not found.trusted
