# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Variational inference with truncated guides recovers posteriors that are known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import constraints, kl_divergence

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal, TruncatedNormal

LOW, HIGH = math.exp(-20), 1.0


@pytest.fixture(autouse=True)
def fresh_parameters():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def fit(model, guide, elbo, steps, rate):
    optimiser = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": rate}, "gamma": 0.01 ** (1 / steps)}
    )
    svi = SVI(model, guide, optimiser, elbo)
    losses = []
    for _ in range(steps):
        losses.append(svi.step())
        optimiser.step()
    return losses


def recovers(fitted, posterior, tolerance):
    assert (fitted.mean - posterior.mean).abs().max() < tolerance * posterior.stddev.max()
    assert (fitted.stddev / posterior.stddev - 1).abs().max() < tolerance
    assert kl_divergence(fitted, posterior).max() < tolerance**2


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_truncated_normal_guide(elbo):
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


def test_a_truncated_log_normal_guide():
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


def test_the_mean_field_elbo_uses_the_exact_divergence():
    prior = LogUniform(LOW, HIGH).expand([4]).to_event(1)
    loc = torch.tensor([-3.0, -25.0, 1.0, -10.0])

    def model():
        pyro.sample("x", prior)

    def guide():
        pyro.sample("x", TruncatedLogNormal(loc, 0.8, LOW, HIGH).to_event(1))

    losses = {TraceMeanField_ELBO().loss(model, guide) for _ in range(3)}
    assert len(losses) == 1
    exact = kl_divergence(TruncatedLogNormal(loc, 0.8, LOW, HIGH), LogUniform(LOW, HIGH)).sum()
    assert losses.pop() == pytest.approx(exact.item(), rel=1e-12)


def test_gradients_of_the_two_elbos_agree():
    prior = LogUniform(LOW, HIGH)

    def model():
        with pyro.plate("units", 3):
            x = pyro.sample("x", prior)
            pyro.sample("y", dist.Normal(x, 0.3), obs=torch.tensor([0.2, 0.5, 0.9]))

    def guide():
        loc = pyro.param("loc", torch.tensor([-1.0, -24.0, 3.0]))
        scale = pyro.param("scale", torch.tensor([0.5, 1.0, 1.0]), constraint=constraints.positive)
        with pyro.plate("units", 3):
            pyro.sample("x", TruncatedLogNormal(loc, scale, LOW, HIGH))

    gradients = []
    for elbo in (Trace_ELBO, TraceMeanField_ELBO):
        pyro.set_rng_seed(1)
        pyro.clear_param_store()
        draws = []
        for _ in range(60):
            elbo(num_particles=100, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(model, guide)
            unconstrained = [pyro.param(name).unconstrained() for name in ("loc", "scale")]
            draws.append(torch.cat([value.grad for value in unconstrained]))
            for value in unconstrained:
                value.grad = None
        gradients.append(torch.stack(draws))
    difference = gradients[0].mean(0) - gradients[1].mean(0)
    error = ((gradients[0].var(0) + gradients[1].var(0)) / 60).sqrt()
    assert (difference.abs() < 5 * error).all()
