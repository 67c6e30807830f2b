# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import Saliency
from tests.pruning.criteria.guided import encoder, mlp


@pytest.mark.parametrize("build", [mlp, encoder])
@pytest.mark.parametrize("kind", ["taylor", "fisher"])
def test_saliencies_are_means_over_examples_of_gradients(build, kind):
    net, guide = build()
    shape = (7, 3) if build is mlp else (7, 5, 8)
    x, y = torch.randn(shape), torch.randint(2, (7,))
    scores = Saliency([(x[:4], y[:4]), (x[4:], y[4:])], kind=kind).scores(net, guide)
    means = guide.mean_noise()
    gradients = {name: [] for name in means}
    net.eval()
    for i in range(7):
        noise = {name: mean.clone().requires_grad_() for name, mean in means.items()}
        loss = F.cross_entropy(poutine.condition(net, data=noise)(x[i : i + 1]), y[i : i + 1])
        for name, gradient in zip(noise, torch.autograd.grad(loss, list(noise.values()))):
            gradients[name].append(gradient)
    for name, mean in means.items():
        g = torch.stack(gradients[name])
        expected = (mean * g.mean(0)).abs() if kind == "taylor" else 0.5 * mean**2 * g.square().mean(0)
        torch.testing.assert_close(scores[name], expected, rtol=1e-4, atol=1e-8)


def test_taylor_saliency_is_the_first_order_of_the_loss():
    net, guide = mlp()
    x, y = torch.randn(50, 3), torch.randint(2, (50,))
    scores = Saliency([(x, y)]).scores(net, guide)["0"]
    means = guide.mean_noise()

    def loss(scale, unit):
        noise = {name: mean.double() for name, mean in means.items()}
        noise["0"][unit] *= scale
        return F.cross_entropy(poutine.condition(net.double(), data=noise)(x.double()), y)

    changes = torch.stack([(loss(1 - 1e-4, unit) - loss(1.0, unit)) / 1e-4 for unit in range(6)])
    torch.testing.assert_close(scores.double(), changes.abs().detach(), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("build", [mlp, encoder])
def test_inputs_may_be_arguments_and_keyword_arguments(build):
    net, guide = build()
    x, y = torch.randn((4, 3) if build is mlp else (4, 5, 8)), torch.randint(2, (4,))
    expected = Saliency([(x, y)]).scores(net, guide)
    for inputs in ((x,), {"input": x}):
        for name, score in Saliency([(inputs, y)]).scores(net, guide).items():
            torch.testing.assert_close(score, expected[name])


def test_saliency_leaves_the_mode_of_the_network():
    net, guide = mlp()
    net.train()
    net[1].eval()
    Saliency([(torch.randn(2, 3), torch.tensor([0, 1]))]).scores(net, guide)
    assert net.training and not net[1].training


def test_mistakes():
    net, guide = mlp()
    with pytest.raises(ReductionError, match="'hessian'"):
        Saliency([], kind="hessian")
    with pytest.raises(ReductionError, match="no example"):
        Saliency([]).scores(net, guide)
