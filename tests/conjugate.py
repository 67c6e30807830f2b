# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Conjugate linear regression, whose posterior and log evidence are known exactly."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

NOISE = 0.7


def data(num_rows: int = 40, num_columns: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64)
    x[:, 1] += 0.8 * x[:, 0]  # correlated covariates give a correlated posterior
    coefficients = torch.tensor([1.0, -0.5, 0.0, 0.1, 0.3, 0.0], dtype=torch.float64)[:num_columns]
    return x, x @ coefficients + NOISE * torch.randn(num_rows, generator=generator, dtype=torch.float64)


def log_evidence(x: Tensor, y: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """log N(y; X m, X S X' + noise² I), with independent normal priors on the coefficients."""
    covariance = (x * prior_scale**2) @ x.T + NOISE**2 * torch.eye(len(y), dtype=x.dtype)
    return torch.distributions.MultivariateNormal(x @ prior_loc, covariance).log_prob(y)


def exact_posterior(x: Tensor, y: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> dist.MultivariateNormal:
    precision = x.T @ x / NOISE**2 + torch.diag(prior_scale**-2)
    loc = torch.linalg.solve(precision, x.T @ y / NOISE**2 + prior_loc / prior_scale**2)
    return dist.MultivariateNormal(loc, precision_matrix=precision)


def model(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Two sites, so that a joint guide packs more than one."""
    first = pyro.sample("first", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("rest_plate", x.shape[1] - 2):
        rest = pyro.sample("rest", dist.Normal(x.new_tensor(0.2), 2.0))
    loc = x @ torch.cat([first, rest])
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(loc, NOISE), obs=y)


def prior(num_columns: int) -> tuple[Tensor, Tensor]:
    loc = torch.full((num_columns,), 0.2, dtype=torch.float64)
    scale = torch.full((num_columns,), 2.0, dtype=torch.float64)
    loc[:2], scale[:2] = 0.0, 1.0
    return loc, scale
