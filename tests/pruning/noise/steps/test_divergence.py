# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch.distributions import Uniform, kl_divergence

from pyro_bmrs.distributions import TruncatedNormal
from tests.pruning.noise.steps.many_units import DOUBLE, ends, parameters, step


def divergence(loc, log_scale):
    """And the log of the normaliser; of a step without draws."""
    none = step(torch.empty(0, len(loc), dtype=DOUBLE), loc, log_scale)
    return none.divergence, none.log_normaliser


def test_divergences_are_those_of_the_general_rule():
    loc, log_scale = parameters()
    low, high = ends(loc)
    fast, normaliser = divergence(loc, log_scale)
    posterior = TruncatedNormal(loc, log_scale.exp(), low, high)
    exact = kl_divergence(posterior, Uniform(low, high))
    torch.testing.assert_close(normaliser, -posterior.log_prob(posterior.mode), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(fast, exact, rtol=1e-12, atol=1e-13)
    weights = torch.rand_like(loc)
    for one, other in zip(
        torch.autograd.grad((fast * weights).sum(), (loc, log_scale)),
        torch.autograd.grad((exact * weights).sum(), (loc, log_scale)),
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_divergences_in_single_precision():
    loc, log_scale = parameters(torch.float32)
    single, _ = divergence(loc, log_scale)
    double, _ = divergence(loc.double(), log_scale.double())
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)
