# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks with noise whose posterior is set, not trained."""

from __future__ import annotations

import torch
from torch import nn

from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    attach_noise,
)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    return attach_noise(net.to(dtype))


def fitted(dtype=torch.float64):
    """Noise as after a fit: needed units, units back at their prior, and some between."""
    net = network(dtype)
    guide = AutoTruncatedLogNormal(net)
    with torch.no_grad():
        guide.noise_locs.copy_(torch.tensor([0.1, -0.02, -3.0, -10.0, -12.0, -25.0, 0.0, -1.0, -5.0, -20.0, -8.0]))
        guide.noise_log_scales.copy_(torch.tensor([-4.0, -3.0, -1.0, 2.0, 4.0, 2.5, -5.0, 0.0, 1.0, 0.5, 3.0]))
    return net, guide


def guided(net, **options):
    torch.manual_seed(0)
    attach_noise(net, **options)
    guide = AutoTruncatedLogNormal(net)
    guide.noise_locs.data.copy_(-torch.rand(len(guide.noise_locs)))
    return net, guide


def mlp():
    return guided(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)))


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return guided(
        nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 2))
    )
