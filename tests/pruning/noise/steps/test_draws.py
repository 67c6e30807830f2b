# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from pyro_bmrs.distributions.numerics.truncated_quantile import truncated_quantile
from pyro_bmrs.pruning.noise.steps import draws
from tests.pruning.noise.steps.many_units import DOUBLE, draw, ends, parameters, step


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
    monkeypatch.setattr(draws, "_NUM_TOGETHER", 2 * len(loc))
    parts = draw(uniform, loc, log_scale)
    assert torch.equal(whole, parts)
    for one, other in zip(
        torch.autograd.grad(whole.sum(), (loc, log_scale)), torch.autograd.grad(parts.sum(), (loc, log_scale))
    ):
        assert torch.equal(one, other)


def exact(uniform, loc, log_scale):
    """Of parameters of lower precision, what is nothing but rounded once."""
    loc, log_scale = (part.detach().double().requires_grad_() for part in (loc, log_scale))
    low, high = ends(loc.detach().float()).exp().double().log()
    values = truncated_quantile(uniform.double(), loc, log_scale.exp(), low, high).exp()
    return values, torch.autograd.grad(values.sum(), (loc, log_scale))


@pytest.mark.parametrize("is_many", [False, True])
@pytest.mark.parametrize("probability", [2.0**-24, 2.0**-12, 0.3, 0.5, 0.9, 1 - 2.0**-24])
def test_draws_in_single_precision_are_those_of_double_rounded(probability, is_many, monkeypatch):
    loc, log_scale = (part.detach() for part in parameters(torch.float32))
    if is_many:
        # Of many draws derivatives are in single precision, where no interval is in the tail or short.
        start = torch.maximum(-20.0 - loc, loc) / log_scale.exp()
        kept = (start < draws._TAIL) & (log_scale.exp() * draws._SHORT < 20.0)
        loc, log_scale = loc[kept], log_scale[kept]
        monkeypatch.setattr(draws, "_NUM_TOGETHER", len(loc))
    loc.requires_grad_(), log_scale.requires_grad_()
    uniform = torch.full((3, len(loc)) if is_many else loc.shape, probability)
    values = draw(uniform, loc, log_scale)
    whole, slopes = exact(torch.full(loc.shape, probability), loc, log_scale)
    torch.testing.assert_close(values.double(), whole.expand(values.shape), rtol=1.2 * 2.0**-24, atol=0.0)
    found = torch.autograd.grad(values[0].sum() if is_many else values.sum(), (loc, log_scale))
    for one, other, size in zip(found, slopes, (1.0, log_scale.detach().exp())):
        # Of the logarithm, to the rounding of 1 and of the scale.
        error = (one.double() - other).abs() / (whole * size)
        assert (error < 1e-6).all() if is_many else (error < 3e-5).all()


def test_draws_without_mkl(monkeypatch):
    loc, log_scale = (part.detach() for part in parameters())
    inside = (loc >= -20.0) & (loc <= 0.0)
    uniform = torch.rand(50, int(inside.sum()), dtype=DOUBLE)
    with_it = draw(uniform, loc[inside], log_scale[inside])
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    torch.testing.assert_close(draw(uniform, loc[inside], log_scale[inside]).log(), with_it.log(), rtol=1e-7, atol=1e-9)


def test_draws_have_the_distribution():
    """The share of many draws below the quantiles, as no formula of the quantiles is wrong in the same way."""
    loc, log_scale = torch.tensor([[-3.0, 0.5, -19.0, 0.0], [0.0, 1.0, 2.5, -5.0]], dtype=DOUBLE)
    logs = draw(torch.rand(40_000, 4, dtype=DOUBLE), loc, log_scale).log()
    places = (torch.tensor([[-3.5], [-1.0], [-0.01]], dtype=DOUBLE) - loc) / log_scale.exp()
    low, high = ((end - loc) / log_scale.exp() for end in ends(loc))
    normal = torch.special.ndtr
    shares = (normal(places) - normal(low)) / (normal(high) - normal(low))
    found = torch.stack([(logs < place * log_scale.exp() + loc).double().mean(0) for place in places])
    torch.testing.assert_close(found, shares, rtol=0.0, atol=4 * 0.5 / 200)
