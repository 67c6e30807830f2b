# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from tests.pruning.noise.steps.many_units import DOUBLE, draw, parameters, step, use_torch


@pytest.mark.parametrize("library", ["NumPy", "torch"])
def test_sites_have_gradients_of_their_own(library, monkeypatch):
    if library == "torch":
        use_torch(monkeypatch)
    loc, log_scale = parameters()
    uniform, sites = torch.rand(len(loc), dtype=DOUBLE), [slice(10), slice(10, 12), slice(12, None)]
    values = step(uniform, loc, log_scale, sites).values
    assert [len(value) for value in values] == [10, 2, len(loc) - 12]
    whole = torch.autograd.grad(draw(uniform, loc, log_scale).sum(), (loc, log_scale))
    part = torch.autograd.grad(values[1].sum(), (loc, log_scale))
    for one, other in zip(whole, part):
        assert torch.equal(one[10:12], other[10:12])
        assert (other[:10] == 0).all() and (other[12:] == 0).all()


@pytest.mark.parametrize("are_inside", [False, True])
def test_both_libraries_compute_the_same(are_inside, monkeypatch):
    """On a CPU the arithmetic is NumPy's, elsewhere torch's."""
    loc, log_scale = parameters()
    if are_inside:
        loc = loc.detach().clamp(-19.0, -0.1).requires_grad_()
    uniform = torch.rand(3, len(loc), dtype=DOUBLE)

    def compute():
        drawn = step(uniform, loc, log_scale)
        values = [*drawn.values, drawn.divergence, drawn.log_normaliser]
        return [*values, *torch.autograd.grad(sum(value.sum() for value in values), (loc, log_scale))]

    numpy = compute()
    use_torch(monkeypatch)
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
