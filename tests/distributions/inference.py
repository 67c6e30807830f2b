# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Fits of truncated guides."""

import pyro
import torch
from pyro.infer import SVI
from torch.distributions import kl_divergence


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
