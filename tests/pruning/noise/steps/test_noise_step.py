# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch.distributions import Uniform, kl_divergence

from pyro_bmrs.distributions import TruncatedNormal
from pyro_bmrs.distributions.numerics.truncated_quantile import truncated_quantile
from pyro_bmrs.pruning.noise.steps import noise_step
from pyro_bmrs.pruning.noise.steps.noise_step import LogUniforms, NoiseStep

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
    priors = LogUniforms.of(ends(loc).exp(), ends(loc), loc.dtype)
    return noise_step.noise_step(uniform, torch.stack([loc, log_scale]), priors, sites, weights)


def _use_torch(monkeypatch):
    """What computes on other devices than the CPU."""
    monkeypatch.setattr(noise_step, "_is_numpys", lambda *args: False)


def draw(uniform, loc, log_scale):
    return step(uniform, loc, log_scale).values[0]


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


@pytest.mark.parametrize("probability", [1e-7, 1e-3, 0.3, 0.5, 0.9, 0.9999])
def test_draws_are_quantiles_with_their_derivatives(probability):
    loc, log_scale = parameters()
    low, high = ends(loc)
    uniform = torch.full_like(loc, probability).detach()
    fast = draw(uniform, loc, log_scale).log()
    exact = truncated_quantile(uniform, loc, log_scale.exp(), low, high)
    torch.testing.assert_close(fast, exact, rtol=1e-7, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(fast.sum(), (loc, log_scale)), torch.autograd.grad(exact.sum(), (loc, log_scale))
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_draws_for_many_examples_share_the_parameters():
    loc, log_scale = parameters()
    uniform = torch.rand(5, len(loc), dtype=DOUBLE)
    together = draw(uniform, loc, log_scale)
    apart = torch.stack([draw(row, loc, log_scale) for row in uniform])
    assert torch.equal(together, apart)
    for one, other in zip(
        torch.autograd.grad(together.sum(), (loc, log_scale)), torch.autograd.grad(apart.sum(), (loc, log_scale))
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("probability", [0.0, 2.0**-53, 2.0**-26, 0.5, 1 - 2.0**-25, 1 - 2.0**-53])
def test_draws_and_gradients_are_finite_and_inside(dtype, probability):
    scales = torch.linspace(-40.0, 40.0, 41, dtype=dtype)
    locs = torch.tensor([-1e6, -1e3, -20.0, -1.0, 0.0, 1e-3, 1e3, 1e6], dtype=dtype)
    grid = torch.cartesian_prod(locs, scales)
    loc, log_scale = grid[:, 0].clone().requires_grad_(), grid[:, 1].clone().requires_grad_()
    low, high = ends(loc).exp()
    values, divergences, *_ = step(torch.full(loc.shape, probability, dtype=DOUBLE), loc, log_scale)
    assert ((values[0] >= low) & (values[0] <= high)).all()
    assert divergences.isfinite().all()
    for gradient in torch.autograd.grad((values[0] + divergences).sum(), (loc, log_scale)):
        assert gradient.isfinite().all()


def test_many_draws_are_made_in_parts(monkeypatch):
    loc, log_scale = parameters()
    uniform = torch.rand(3, 5, len(loc), dtype=DOUBLE)
    whole = draw(uniform, loc, log_scale)
    monkeypatch.setattr(noise_step, "_NUM_TOGETHER", 2 * len(loc))
    parts = draw(uniform, loc, log_scale)
    assert torch.equal(whole, parts)
    for one, other in zip(
        torch.autograd.grad(whole.sum(), (loc, log_scale)), torch.autograd.grad(parts.sum(), (loc, log_scale))
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("library", ["NumPy", "torch"])
def test_sites_have_gradients_of_their_own(library, monkeypatch):
    if library == "torch":
        _use_torch(monkeypatch)
    loc, log_scale = parameters()
    uniform, sites = torch.rand(len(loc), dtype=DOUBLE), [slice(10), slice(10, 12), slice(12, None)]
    values = step(uniform, loc, log_scale, sites).values
    assert [len(value) for value in values] == [10, 2, len(loc) - 12]
    whole = torch.autograd.grad(draw(uniform, loc, log_scale).sum(), (loc, log_scale))
    part = torch.autograd.grad(values[1].sum(), (loc, log_scale))
    for one, other in zip(whole, part):
        assert torch.equal(one[10:12], other[10:12])
        assert (other[:10] == 0).all() and (other[12:] == 0).all()


def test_both_libraries_compute_the_same(monkeypatch):
    """On a CPU the arithmetic is NumPy's, elsewhere torch's."""
    loc, log_scale = parameters()
    uniform = torch.rand(len(loc), dtype=DOUBLE)

    def compute():
        drawn = step(uniform, loc, log_scale)
        values = [*drawn.values, drawn.divergence, drawn.log_normaliser]
        return [*values, *torch.autograd.grad(sum(value.sum() for value in values), (loc, log_scale))]

    numpy = compute()
    _use_torch(monkeypatch)
    for one, other in zip(numpy, compute()):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_weighted_divergences():
    loc, log_scale = parameters()
    weights = torch.rand_like(loc)
    uniform = torch.rand(len(loc), dtype=DOUBLE)
    with_weights = step(uniform, loc, log_scale, weights=weights.detach())
    apart = step(uniform, loc, log_scale)
    assert apart.weighted is None
    torch.testing.assert_close(with_weights.weighted, apart.divergence @ weights)
    # Whatever else is differentiated beside it.
    for values in (0, 1):
        sums = [
            2 * weighted + values * (step.values[0].sum() + step.divergence.sum())
            for step, weighted in ((with_weights, with_weights.weighted), (apart, apart.divergence @ weights))
        ]
        for one, other in zip(*(torch.autograd.grad(total, (loc, log_scale), retain_graph=True) for total in sums)):
            torch.testing.assert_close(one, other)


def test_a_precision_that_numpy_has_not():
    half = torch.bfloat16
    loc, log_scale = torch.tensor([[-12.0, -3.0, -0.5, 0.0], [1.0, 0.0, -2.0, -5.0]], dtype=half)
    uniform = torch.tensor([0.1, 0.5, 0.3, 0.9])
    found, exact = step(uniform, loc, log_scale), step(uniform, loc.double(), log_scale.double())
    assert found.values[0].dtype == found.divergence.dtype == half
    torch.testing.assert_close(found.values[0].double(), exact.values[0], rtol=0.01, atol=0.0)
    torch.testing.assert_close(found.divergence.double(), exact.divergence, rtol=0.05, atol=0.05)
