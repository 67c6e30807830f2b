# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A network with noise whose posterior is set, not trained."""

from __future__ import annotations

import torch
from torch import nn

from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    attach_noise,
)


def mlp(locs):
    """A network whose first units are the less needed the smaller their log-location."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    guide = AutoTruncatedLogNormal(attach_noise(net))
    with torch.no_grad():
        guide.noise_locs.copy_(torch.tensor(locs))
        guide.noise_log_scales.copy_(torch.where(guide.noise_locs < -5, 2.5, -3.0))
    return net, guide


def kept(guide):
    return {name: noise.kept.tolist() for name, noise in guide.noise.items()}
