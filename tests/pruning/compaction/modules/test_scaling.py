# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Multiplications stand where the noise acted, and can be taken out again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning import MultiplicativeNoise, attach_noise, detach_noise, noise_sites
from pyro_bmrs.pruning.compaction.modules.scaling import Scale, Scaled, scale_network, scales_of, substitute, unwrap
from tests.pruning.compaction.gated import random_gates, with_noise_at
from tests.pruning.networks import make


@pytest.mark.parametrize("dim, expected", [(1, [[[0.0], [2.0]]]), (-2, [[[0.0], [2.0]]])])
def test_one_factor_for_each_element_along_a_dimension(dim: int, expected: list[list[list[float]]]) -> None:
    assert Scale(torch.tensor([0.0, 2.0]), dim)(torch.ones(1, 2, 1)).tolist() == expected


def test_one_factor_for_all() -> None:
    assert Scale(torch.tensor([3.0]), None)(torch.ones(2, 2)).tolist() == [[3.0, 3.0], [3.0, 3.0]]


@pytest.mark.parametrize("when", ["input", "output"])
def test_before_or_after_a_module(when: str) -> None:
    module, scale, inputs = nn.Bilinear(2, 3, 2), Scale(torch.tensor([0.5, 2.0]), -1), torch.randn(4, 2)
    other = torch.randn(4, 3)
    expected = module(scale(inputs), other) if when == "input" else scale(module(inputs, other))
    assert torch.equal(Scaled(module, scale, when)(inputs, other), expected)


def test_has_the_attributes_of_what_it_multiplies() -> None:
    layer = nn.Linear(2, 3)
    scaled = Scaled(layer, Scale(torch.ones(3), -1), "output")
    assert scaled.weight is layer.weight and scaled.out_features == 3
    assert scaled.module is layer and scaled.when == "output"
    with pytest.raises(AttributeError, match="no attribute 'kernel_size'"):
        _ = scaled.kernel_size
    assert torch.equal(copy.deepcopy(scaled).weight, layer.weight)


@pytest.mark.parametrize("name", ["lenet-5", "resnet", "vit"])
def test_computes_what_the_noise_does_at_given_values(name: str) -> None:
    net, inputs = make(name, torch.float64)
    sites = noise_sites(attach_noise(net, kinds=("units", "heads", "block")))
    gates = random_gates(net, seed=3)
    gates = {name: gate.clamp(max=1.0).double() for name, gate in gates.items()}
    expected = with_noise_at(net, gates, inputs)
    scales = scale_network(detach_noise(net), gates, sites)
    assert scales.keys() == sites.keys() and set(scales.values()) == set(scales_of(net).values())
    torch.testing.assert_close(net(inputs), expected, rtol=1e-12, atol=1e-12)


def test_taken_out_it_leaves_the_network_as_it_was() -> None:
    net, inputs = make("resnet")
    expected, names = net(inputs), [name for name, _ in net.named_modules()]
    sites = noise_sites(attach_noise(net))
    detach_noise(net)
    gates = {name: torch.zeros(site.noise.num_units) for name, site in sites.items()}
    for scale in scale_network(net, gates, sites).values():
        unwrap(net, scale)
    assert torch.equal(net(inputs), expected)
    assert [name for name, _ in net.named_modules()] == names


def test_noise_that_the_network_calls_itself_is_replaced() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise = MultiplicativeNoise(2, name="own")

        def forward(self, inputs: Tensor) -> Tensor:
            return self.noise(inputs)

    net = Own()
    scales = scale_network(net, {"own": torch.tensor([0.0, 1.0])}, noise_sites(net))
    assert net.noise is scales["own"] and net(torch.ones(1, 2)).tolist() == [[0.0, 1.0]]
    unwrap(net, scales["own"])
    assert isinstance(net.noise, nn.Identity)


def test_a_module_that_has_two_names_is_replaced_under_both() -> None:
    layer, other = nn.Linear(2, 2), nn.ReLU()
    net = nn.Sequential(layer, nn.Sequential(layer))
    substitute(net, layer, other)
    assert net[0] is other and net[1][0] is other
