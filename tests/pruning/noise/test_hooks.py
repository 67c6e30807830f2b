# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

from pyro_bmrs.pruning import AutoTruncatedLogNormal, attach_noise, detach_noise, noise_sites
from tests.pruning.noise.places import (
    LeNet,
    ResNet,
    convolutions,
    places,
)


def at(net, values, x):
    """What the network puts out at values of the noise, 1 where none is given."""
    full = {name: torch.ones(site.noise.num_units) for name, site in noise_sites(net).items()}
    return poutine.condition(net, data=full | values)(x)


@pytest.mark.parametrize("build", [convolutions, LeNet, ResNet])
@pytest.mark.parametrize("kept", [True, False])
def test_noise_on_the_weight_of_a_convolution_is_that_on_the_images(build, kept):
    net = attach_noise(build().double())
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    values = {}
    for name, site in noise_sites(net).items():
        values[name] = torch.rand(site.noise.num_units, dtype=torch.float64).requires_grad_()
        site.noise.kept[0] = kept
    weights = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    by_weight = poutine.condition(net.eval(), data=values)(x)
    # A draw for each example acts on the images.
    by_image = poutine.condition(net, data={name: value.expand(3, -1) for name, value in values.items()})(x)
    torch.testing.assert_close(by_weight, by_image, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(output.square().sum(), [*values.values(), *net.parameters()])
        for output in (by_weight, by_image)
    ]
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_a_convolution_that_fails_keeps_no_noise_on_its_weight():
    net = attach_noise(convolutions())
    AutoTruncatedLogNormal(net)
    with pytest.raises(RuntimeError):
        net[3](torch.ones(2, 5, 4, 4))
    assert "weight" not in vars(net[3]) and net[3].weight is net[3]._parameters["weight"]


def test_noise_on_a_convolution_whose_weight_is_computed():
    net, x, values = convolutions(), torch.randn(2, 1, 28, 28), {"0": torch.rand(3)}
    before = at(attach_noise(net), values, x)
    nn.utils.parametrizations.weight_norm(net[3])
    torch.testing.assert_close(at(net, values, x), before)
    assert places(detach_noise(net))["0"] == ("2", "output", 3, 1)
    torch.testing.assert_close(at(net, values, x), before)


def test_head_noise_multiplies_what_the_output_projection_is_given():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    net = nn.ModuleDict({"attn": attention, "head": nn.Linear(8, 2)})
    attach_noise(net)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).unflatten(-1, (3, 2, 4)).unbind(2)
        heads = F.scaled_dot_product_attention(*(value.transpose(1, 2) for value in (q, k, v))).transpose(1, 2)
        noise = torch.tensor([0.5, 0.25])
        weight = attention.out_proj.weight
        expected = (heads * noise[:, None]).flatten(2) @ weight.T + attention.out_proj.bias
        with poutine.condition(data={"attn": noise}):
            torch.testing.assert_close(attention(x, x, x)[0], expected)
            torch.testing.assert_close(attention.eval()(x, x, x)[0], expected)
    assert attention.out_proj.weight is weight


def test_the_attentions_weight_is_back_after_an_error():
    attention = nn.MultiheadAttention(8, 2)
    AutoTruncatedLogNormal(attach_noise(nn.ModuleDict({"attn": attention, "head": nn.Linear(8, 2)})))
    with pytest.raises(Exception, match="shape|dimension|size"):
        attention(*[torch.randn(2, 5, 9)] * 3)
    assert isinstance(attention.out_proj.weight, nn.Parameter)
