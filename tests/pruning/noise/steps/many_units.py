# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Units from sharp to flat, inside their intervals and far outside, and a step of training with them."""

from __future__ import annotations

import torch

from pyro_bmrs.pruning.noise.steps import law
from pyro_bmrs.pruning.noise.steps.law import LogUniforms
from pyro_bmrs.pruning.noise.steps.noise_step import NoiseStep, noise_step

DOUBLE = torch.float64


def parameters(dtype=DOUBLE):
    """Log-locations inside the interval, at its ends and far outside, at log-scales from sharp to flat."""
    locs = torch.tensor(
        [-1e3, -60.0, -21.0, -20.0, -19.9, -10.0, -0.3, -0.01, 0.0, 0.01, 0.2, 0.5, 5.0, 1e3], dtype=dtype
    )
    log_scales = torch.tensor([-9.0, -5.0, -3.0, -1.0, 0.0, 1.0, 2.0, 4.0], dtype=dtype)
    loc, log_scale = torch.cartesian_prod(locs, log_scales).unbind(-1)
    return loc.requires_grad_(), log_scale.requires_grad_()


def ends(loc):
    return torch.stack([torch.full_like(loc, -20.0), torch.zeros_like(loc)]).detach()


def step(uniform, loc, log_scale, sites=(slice(None),), weights=None) -> NoiseStep:
    priors = LogUniforms.of(ends(loc).exp(), loc.dtype)
    return noise_step(uniform, torch.stack([loc, log_scale]), priors, sites, weights)


def use_torch(monkeypatch) -> None:
    """What computes on other devices than the CPU."""
    monkeypatch.setattr(law, "is_numpys", lambda *args: False)


def draw(uniform, loc, log_scale):
    return step(uniform, loc, log_scale).values[0]
