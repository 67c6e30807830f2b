# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A regression of few effects among covariates that look alike, for iterated reduction."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from tests.exact_guides import put_posterior

ZERO = dist.Delta(torch.tensor(0.0))


QUICK = {"num_particles": 20, "window": 50, "seed": 1}


# A mean-field guide of this problem lets go of the sixth weight, and only after the refit of the fifth.
TWO_ROUNDS = 6


def regression(seed=TWO_ROUNDS, dtype=torch.float64, num_rows=40):
    """Sparse and correlated: the first and the third of six covariates matter, the others look like them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, 6, generator=generator, dtype=torch.float64)
    x[:, 1] = x[:, 0] + 0.5 * x[:, 1]
    x[:, 3] = x[:, 2] + 0.5 * x[:, 3]
    x[:, 4] = 0.5 * (x[:, 4] + x[:, 0] + x[:, 2])
    y = 0.8 * x[:, 0] + 0.5 * x[:, 2] + 0.5 * torch.randn(num_rows, generator=generator, dtype=torch.float64)
    precision = x.T @ x / 0.25 + torch.eye(6, dtype=torch.float64)
    posterior = dist.MultivariateNormal(torch.linalg.solve(precision, x.T @ y / 0.25), precision_matrix=precision)
    return x.to(dtype), y.to(dtype), posterior


def model(x, y):
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(6), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weights, 0.5), obs=y)


def in_two_sites(x, y):
    first = pyro.sample("first", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("others", 4):
        others = pyro.sample("rest", dist.Normal(x.new_tensor(0.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ torch.cat([first, others]), 0.5), obs=y)


def fitted(kind=AutoNormal, model=model, seed=TWO_ROUNDS, dtype=torch.float64):
    """The guide that SVI would come to: the best normal of its kind."""
    x, y, posterior = regression(seed, dtype)
    pyro.set_rng_seed(0)
    return put_posterior(kind(model), posterior, x, y)
