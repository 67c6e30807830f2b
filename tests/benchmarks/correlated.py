# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A posterior whose elements hang together, of any size: what a search is timed on."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal


def weights_model(size: int) -> None:
    pyro.sample("weights", dist.Normal(torch.zeros(size), 1.0).to_event(1))


@torch.no_grad()
def correlated_guide(size: int, rows: int) -> AutoMultivariateNormal:
    """The posterior of a regression whose covariates share causes; a third of the weights have an effect."""
    torch.set_default_dtype(torch.double)
    causes = torch.randn(rows, max(2, size // 4)) @ torch.randn(max(2, size // 4), size) / size**0.5
    x = torch.randn(rows, size) + causes
    weights = torch.randn(size) * (torch.rand(size) < 1 / 3)
    y = x @ weights + torch.randn(rows)
    root = torch.linalg.cholesky(torch.linalg.inv(x.T @ x + torch.eye(size)))
    guide = AutoMultivariateNormal(weights_model)
    guide(size)
    guide.loc.copy_(root @ (root.T @ (x.T @ y)))
    guide.scale = root.diagonal().clone()
    guide.scale_tril = root / guide.scale.unsqueeze(-1)
    return guide
