# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Points from draws of Markov chains, and the evidence of whole models, beside exact answers and ArviZ's kernel density.

All of conjugate regressions. A density that is estimated from draws has none to go by where the data speak against a
point.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_bmrs import log_evidence, reduce_model
from pyro_bmrs.arviz_adapter import to_arviz

NOISE = 0.7
LONGEST_FOR_POINTS, LONGEST_FOR_EVIDENCE = 10.0, 5.0  # seconds of a processor
# In nats, and for points two standard errors where these are more.
LARGEST_ERROR_OF_POINTS, LARGEST_ERROR_OF_EVIDENCE = 0.1, 0.02


class Regression(NamedTuple):
    """Covariates, observations, and what is exact of them under standard normal priors of intercept and slopes."""

    x: Tensor
    y: Tensor
    posterior: dist.MultivariateNormal
    log_evidence: float


def regression(num_slopes: int, correlation: float) -> Regression:
    generator = torch.Generator().manual_seed(num_slopes)
    covariance = (1 - correlation) * torch.eye(num_slopes, dtype=torch.float64) + correlation
    x = torch.randn(100, num_slopes, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).mT
    y = x @ torch.linspace(-1, 1, num_slopes, dtype=torch.float64)
    y = y + NOISE * torch.randn(100, generator=generator, dtype=torch.float64)
    design = torch.cat([torch.ones(100, 1, dtype=torch.float64), x], 1)
    precision = design.mT @ design / NOISE**2 + torch.eye(num_slopes + 1, dtype=torch.float64)
    posterior = dist.MultivariateNormal(
        torch.linalg.solve(precision, design.mT @ y / NOISE**2), precision_matrix=precision
    )
    marginal = design @ design.mT + NOISE**2 * torch.eye(100, dtype=torch.float64)
    exact = dist.MultivariateNormal(torch.zeros(100, dtype=torch.float64), marginal).log_prob(y)
    return Regression(x, y, posterior, float(exact))


def model(x: Tensor, y: Tensor) -> None:
    intercept = pyro.sample("intercept", dist.Normal(x.new_tensor(0.0), 1.0))
    slopes = pyro.sample("slopes", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(intercept + x @ slopes, NOISE), obs=y)


def chains(posterior: dist.MultivariateNormal) -> Tensor:
    """Four chains of 1,000 draws, each of which is correlated with the last by a half; shape (4, 1000, dim)."""
    noise = torch.randn(4, 1000, len(posterior.mean), dtype=torch.float64)
    states = [noise[:, 0]]
    for step in range(1, 1000):
        states.append(0.5 * states[-1] + 0.75**0.5 * noise[:, step])
    return posterior.mean + torch.stack(states, 1) @ posterior.scale_tril.mT


def draws_of(found: Regression) -> tuple[Any, Tensor]:
    drawn = chains(found.posterior)
    groups = {"posterior": {"intercept": drawn[..., 0].numpy(), "slopes": drawn[..., 1:].numpy()}}
    return to_arviz(groups), drawn[..., 1:]


def slopes_at(found: Regression, z: float) -> tuple[Tensor, dist.MultivariateNormal]:
    """A point at a distance from the slopes' posterior, in units of its spread, and this posterior."""
    covariance = found.posterior.covariance_matrix[1:, 1:]
    marginal = dist.MultivariateNormal(found.posterior.mean[1:], covariance)
    away = torch.randn(len(covariance), dtype=torch.float64)
    return marginal.mean + z * marginal.scale_tril @ (away / away.norm()), marginal


@pytest.mark.parametrize("z", [0.0, 3.5, 6.0])
@pytest.mark.parametrize("num_slopes", [1, 5, 20])
def test_points_from_four_thousand_draws(num_slopes: int, z: float, benchmark) -> None:
    pyro.set_rng_seed(0)
    found = regression(num_slopes, 0.5)
    data, slopes = draws_of(found)
    at, posterior = slopes_at(found, z)
    exact = float(posterior.log_prob(at) - dist.Normal(0.0, 1.0).log_prob(at).sum())

    def reduce() -> Any:
        return reduce_model(data, {"slopes": dist.Delta(at, event_dim=1)}, model=model, args=(found.x, found.y))

    start = time.process_time()
    reduction = benchmark.pedantic(reduce, rounds=1)
    seconds = time.process_time() - start
    error = abs(float(reduction.delta_evidence) - exact)
    benchmark.extra_info.update(exact=exact, error=error, standard_error=float(reduction.standard_error))
    assert error <= max(LARGEST_ERROR_OF_POINTS, 2 * float(reduction.standard_error))
    assert reduction.pareto_k < 0.7
    assert seconds < LONGEST_FOR_POINTS
    if num_slopes == 1:
        grid, density = az.kde(slopes.flatten().numpy())
        by_kernels = float(np.log(np.interp(float(at), grid, density))) - float(dist.Normal(0.0, 1.0).log_prob(at))
        benchmark.extra_info.update(error_of_kernels=abs(by_kernels - exact))
        assert z < 4 or abs(by_kernels - exact) > 10 * error


@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("num_slopes", [2, 10, 19])
def test_the_evidence_of_a_regression(num_slopes: int, correlation: float, benchmark) -> None:
    pyro.set_rng_seed(0)
    found = regression(num_slopes, correlation)
    guide = AutoNormal(model)
    guide(found.x, found.y)  # not fitted, so far from the posterior
    start = time.process_time()
    evidence = benchmark.pedantic(log_evidence, args=(model, guide), rounds=1)
    seconds = time.process_time() - start
    error = abs(evidence.value - found.log_evidence)
    benchmark.extra_info.update(error=error, standard_error=evidence.standard_error)
    assert evidence.trusted
    assert error <= LARGEST_ERROR_OF_EVIDENCE
    assert seconds < LONGEST_FOR_EVIDENCE
