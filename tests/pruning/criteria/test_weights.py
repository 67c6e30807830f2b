# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    Saliency,
    WeightNorm,
    attach_noise,
    in_proportion_to_cost,
    unit_costs,
)


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


def test_weight_norms_are_those_of_rows_filters_and_head_columns():
    net, guide = mlp()
    guide.noise["0"].kept[2] = False
    scores = WeightNorm().scores(net, guide)
    expected = net[0].weight.detach().norm(dim=1)
    expected[2] = 0
    torch.testing.assert_close(scores["0"], expected)
    conv, guide = guided(
        nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(), nn.ConvTranspose2d(3, 4, 2, groups=1), nn.ReLU(), nn.Conv2d(4, 1, 1)
        )
    )
    scores = WeightNorm().scores(conv, guide)
    torch.testing.assert_close(scores["0"], conv[0].weight.detach().flatten(1).norm(dim=1))
    torch.testing.assert_close(scores["2"], conv[2].weight.detach().transpose(0, 1).flatten(1).norm(dim=1))
    net, guide = encoder()
    weight = net[0].layers[0].self_attn.out_proj.weight.detach()
    heads = torch.stack([weight[:, :4].norm(), weight[:, 4:].norm()])
    torch.testing.assert_close(WeightNorm().scores(net, guide)["0.layers.0.self_attn"], heads)


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
    with pytest.raises(ReductionError, match="no noise"):
        unit_costs(nn.Linear(2, 2))


def test_costs_count_weights_and_multiplications():
    net = attach_noise(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 5), nn.ReLU(), nn.Linear(5, 2))
    )
    assert unit_costs(net) == {"0": 18, "3": 48}
    assert unit_costs(net, torch.randn(4, 2, 6, 6)) == {"0": 18 * 16, "3": 48}
    odds = in_proportion_to_cost(net, torch.randn(1, 2, 6, 6), mean=2.0)
    assert odds["0"] / odds["3"] == pytest.approx(6)
    assert (3 * odds["0"] + 5 * odds["3"]) / 8 == pytest.approx(2.0)
    roots = in_proportion_to_cost(net, torch.randn(1, 2, 6, 6), mean=2.0, power=0.5)
    assert roots["0"] / roots["3"] == pytest.approx(6**0.5)
    assert (3 * roots["0"] + 5 * roots["3"]) / 8 == pytest.approx(2.0)
