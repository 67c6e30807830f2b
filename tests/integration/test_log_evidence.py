# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The log evidence of conjugate regressions, from guides that are not their posterior and from draws."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from pyro_bmrs import log_evidence
from pyro_bmrs.arviz_adapter import to_arviz


def regression(dim: int, correlation: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Covariates, observations, and the exact log evidence under standard normal slopes."""
    generator = torch.Generator().manual_seed(dim)
    covariance = (1 - correlation) * torch.eye(dim, dtype=torch.float64) + correlation
    x = torch.randn(100, dim, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).mT
    y = x @ torch.linspace(-1, 1, dim, dtype=torch.float64) + 0.7 * torch.randn(
        100, generator=generator, dtype=torch.float64
    )
    marginal = x @ x.mT + 0.49 * torch.eye(100, dtype=torch.float64)
    return x, y, float(dist.MultivariateNormal(torch.zeros(100, dtype=torch.float64), marginal).log_prob(y))


def model(x, y):
    slopes = pyro.sample("slopes", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slopes, 0.7), obs=y)


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
@pytest.mark.parametrize(("dim", "correlation"), [(2, 0.0), (5, 0.5), (10, 0.9), (20, 0.9)])
def test_conjugate_regressions_from_a_guide_that_was_never_fitted(kind, dim, correlation):
    x, y, exact = regression(dim, correlation)
    guide = kind(model)
    guide(x, y)
    found = log_evidence(model, guide, args=(x, y))
    assert found.trusted
    assert found.value == pytest.approx(exact, abs=max(0.02, 3 * found.standard_error))
    assert found.standard_error < 0.03


def test_from_draws_of_four_chains():
    x, y, exact = regression(3, 0.5)
    precision = x.mT @ x / 0.49 + torch.eye(3, dtype=torch.float64)
    posterior = dist.MultivariateNormal(torch.linalg.solve(precision, x.mT @ y / 0.49), precision_matrix=precision)
    data = to_arviz({"posterior": {"slopes": posterior.sample((4, 250)).numpy()}})
    found = log_evidence(model, data, args=(x, y))
    assert found.value == pytest.approx(exact, abs=max(0.02, 3 * found.standard_error))
