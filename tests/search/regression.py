# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Conjugate linear regression with correlated covariates, of which every reduced model is known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoMultivariateNormal,
)
from torch import Tensor

from tests.exact_guides import put_posterior

NOISE = 0.7
PRIOR_SCALE = 1.0
BIAS_SCALE = 2.0


def model(x: Tensor, y: Tensor | None = None) -> None:
    bias = pyro.sample("bias", dist.Normal(x.new_tensor(0.3), BIAS_SCALE))
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(x.shape[1]), PRIOR_SCALE).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(bias + (x * weights).sum(-1), NOISE), obs=y)


@dataclass
class Regression:
    """A problem: the data and the exact posterior of bias and weights, in this order, in a guide."""

    x: Tensor
    y: Tensor
    guide: AutoMultivariateNormal

    def exact(self, reduced: np.ndarray, loc: float, scale: float) -> tuple[float, np.ndarray, np.ndarray]:
        """
        Log evidence, posterior mean and posterior covariance by NumPy where some weights have another normal prior.

        A scale of 0 fixes them at ``loc``.
        """
        design = np.column_stack([np.ones(len(self.x)), self.x.numpy()])
        where = np.concatenate([[False], reduced])
        prior_loc = np.where(where, loc, np.r_[0.3, np.zeros(len(reduced))])
        prior_variance = np.where(where, scale, np.r_[BIAS_SCALE, np.full(len(reduced), PRIOR_SCALE)]) ** 2
        covariance = (design * prior_variance) @ design.T + NOISE**2 * np.eye(len(design))
        error = self.y.numpy() - design @ prior_loc
        log_det = np.linalg.slogdet(covariance)[1]
        log_evidence = -0.5 * (error @ np.linalg.solve(covariance, error) + log_det + len(error) * np.log(2 * np.pi))
        gain = prior_variance[:, None] * np.linalg.solve(covariance, design).T
        posterior = np.diag(prior_variance) - gain @ design * prior_variance
        return log_evidence, prior_loc + gain @ error, posterior

    def delta_evidence(self, reduced: np.ndarray, loc: float, scale: float) -> float:
        """The change in log evidence with the reduction of some weights."""
        return self.exact(reduced, loc, scale)[0] - self.exact(np.zeros_like(reduced), loc, scale)[0]


def regression(num_weights: int, seed: int = 0, num_rows: int = 50) -> Regression:
    """Covariates that share two causes, half of them without effect; in double precision."""
    torch.set_default_dtype(torch.double)
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(num_rows, 2, generator=generator) @ torch.randn(2, num_weights, generator=generator)
    x = 0.8 * causes + torch.randn(num_rows, num_weights, generator=generator)
    weights = torch.randn(num_weights, generator=generator) * torch.linspace(0, 1, num_weights).gt(0.5) * 0.4
    y = 0.5 + x @ weights + NOISE * torch.randn(num_rows, generator=generator)
    return Regression(x, y, exact_guide(x, y))


def exact_guide(x: Tensor, y: Tensor) -> AutoMultivariateNormal:
    design = torch.cat([torch.ones_like(x[:, :1]), x], -1)
    prior_loc = torch.cat([x.new_tensor([0.3]), x.new_zeros(x.shape[1])])
    prior_scale = torch.cat([x.new_tensor([BIAS_SCALE]), x.new_full((x.shape[1],), PRIOR_SCALE)])
    precision = design.T @ design / NOISE**2 + torch.diag(prior_scale**-2)
    loc = torch.linalg.solve(precision, design.T @ y / NOISE**2 + prior_loc / prior_scale**2)
    pyro.clear_param_store()
    posterior = dist.MultivariateNormal(loc, precision_matrix=precision)
    return put_posterior(AutoMultivariateNormal(model), posterior, x, y)


def every_model(count: int) -> np.ndarray:
    """Which of so many groups are reduced in each of the 2^count models; bit i of a model's index is group i."""
    return (np.arange(2**count)[:, None] >> np.arange(count)) & 1 == 1


ZERO = torch.tensor(0.0, dtype=torch.double)


PRIORS = [dist.Delta(ZERO), dist.Normal(ZERO, 1e-3), dist.Normal(ZERO + 0.1, 0.3)]


def fitted(guide, problem, steps=30):
    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(steps):
        svi.step(problem.x, problem.y)
    return guide
