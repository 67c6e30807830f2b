# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Uniform, kl_divergence

from pyro_bmrs.distributions import TruncatedNormal
from pyro_bmrs.distributions.truncated_quantile import truncated_quantile
from pyro_bmrs.pruning import noise_step
from pyro_bmrs.pruning.noise_step import draw_log_normal, log_uniform_divergence

DOUBLE = torch.float64


def parameters(dtype=DOUBLE):
    """Log-locations inside the interval, at its ends and far outside, at log-scales from sharp to flat."""
    locs = torch.tensor(
        [-1e3, -60.0, -21.0, -20.0, -19.9, -10.0, -0.3, -0.01, 0.0, 0.01, 0.2, 0.5, 5.0, 1e3], dtype=dtype
    )
    log_scales = torch.tensor([-9.0, -5.0, -3.0, -1.0, 0.0, 1.0, 2.0, 4.0], dtype=dtype)
    loc, log_scale = (grid.flatten() for grid in torch.meshgrid(locs, log_scales, indexing="ij"))
    return loc.requires_grad_(), log_scale.requires_grad_()


def ends(loc):
    return torch.stack([torch.full_like(loc, -20.0), torch.zeros_like(loc)]).detach()


def test_divergences_are_those_of_the_general_rule():
    loc, log_scale = parameters()
    low, high = ends(loc)
    fast, normaliser = log_uniform_divergence(loc, log_scale, ends(loc))
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
    single, _ = log_uniform_divergence(loc, log_scale, ends(loc))
    double, _ = log_uniform_divergence(loc.double(), log_scale.double(), ends(loc.double()))
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("probability", [1e-7, 1e-3, 0.3, 0.5, 0.9, 0.9999])
def test_draws_are_quantiles_with_their_derivatives(probability):
    loc, log_scale = parameters()
    low, high = ends(loc)
    uniform = torch.full_like(loc, probability).detach()
    fast = draw_log_normal(uniform, loc, log_scale, ends(loc).exp()).log()
    exact = truncated_quantile(uniform, loc, log_scale.exp(), low, high)
    torch.testing.assert_close(fast, exact, rtol=1e-7, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(fast.sum(), (loc, log_scale)), torch.autograd.grad(exact.sum(), (loc, log_scale))
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_draws_for_many_examples_share_the_parameters():
    loc, log_scale = parameters()
    uniform = torch.rand(5, len(loc), dtype=DOUBLE)
    together = draw_log_normal(uniform, loc, log_scale, ends(loc).exp())
    apart = torch.stack([draw_log_normal(row, loc, log_scale, ends(loc).exp()) for row in uniform])
    assert torch.equal(together, apart)
    for one, other in zip(
        torch.autograd.grad(together.sum(), (loc, log_scale)), torch.autograd.grad(apart.sum(), (loc, log_scale))
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("probability", [2.0**-26, 0.5, 1 - 2.0**-25])
def test_draws_and_gradients_are_finite_and_inside(dtype, probability):
    scales = torch.linspace(-40.0, 40.0, 41, dtype=dtype)
    locs = torch.tensor([-1e6, -1e3, -20.0, -1.0, 0.0, 1e-3, 1e3, 1e6], dtype=dtype)
    loc, log_scale = (grid.flatten().requires_grad_() for grid in torch.meshgrid(locs, scales, indexing="ij"))
    units = torch.stack([torch.full_like(loc, math.exp(-20)), torch.ones_like(loc)]).detach()
    draw = draw_log_normal(torch.full(loc.shape, probability, dtype=DOUBLE), loc, log_scale, units.double())
    divergence, _ = log_uniform_divergence(loc, log_scale, units.log())
    assert ((draw >= units[0]) & (draw <= units[1])).all()
    assert divergence.isfinite().all()
    for gradient in torch.autograd.grad((draw + divergence).sum(), (loc, log_scale)):
        assert gradient.isfinite().all()


def test_both_libraries_compute_the_same(monkeypatch):
    """On a CPU the arithmetic is NumPy's, elsewhere torch's."""
    loc, log_scale = parameters()
    uniform = torch.rand(len(loc), dtype=DOUBLE)

    def compute():
        draw = draw_log_normal(uniform, loc, log_scale, ends(loc).exp())
        values = [draw, *log_uniform_divergence(loc, log_scale, ends(loc))]
        return [*values, *torch.autograd.grad(sum(value.sum() for value in values), (loc, log_scale))]

    numpy = compute()
    monkeypatch.setattr(noise_step, "_arrays", lambda *tensors: (torch, list(tensors)))
    for one, other in zip(numpy, compute()):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
