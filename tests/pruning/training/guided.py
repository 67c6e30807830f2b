# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A network with noise, and what its posterior diverges."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributions import kl_divergence

from pyro_bmrs.pruning import attach_noise

NUM_EXAMPLES = 500


def network(outputs=3):
    torch.manual_seed(0)
    return attach_noise(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, outputs)))


def divergences(guide):
    return {name: kl_divergence(guide.noise_posterior(name), noise.unit_prior) for name, noise in guide.noise.items()}


def all_but_certain(guide):
    """A posterior so narrow that each draw is its mean."""
    guide.noise_locs.data.fill_(-0.5)
    guide.noise_log_scales.data.fill_(-12.0)
