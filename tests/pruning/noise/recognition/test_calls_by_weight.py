# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Modules that multiply by the weights of their layers without calling them are pruned like others."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    attach_noise,
    compact,
    compact_gated,
    compaction_report,
    detach_noise,
    load_compact,
    noise_sites,
    save_compact,
)
from pyro_bmrs.pruning.noise.recognition.calls_by_weight import CallsByWeight, call_by_weight, multiply_by_weight

WIDTH, HEADS, HIDDEN = 12, 3, 10
TOKENS = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def attend(x: Tensor, weight: Tensor, num_heads: int, qkv_bias: Tensor) -> Tensor:
    batch, length, width = x.shape
    qkv = F.linear(x, weight=weight, bias=qkv_bias)
    queries, keys, values = qkv.view(batch, length, 3, num_heads, width // num_heads).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(batch, length, width)


class Attention(nn.Module):
    """By a function that is given numbers of heads, with biases that are put together, as EVA has them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        heads = attend(x, self.qkv.weight, self.num_heads, bias)
        return F.linear(heads, self.proj.weight, self.proj.bias)


class FeedForward(nn.Module):
    """In a method that the forward calls; its layers are in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        return self.multiplied(x.to(self.layers[0].weight.dtype))

    def multiplied(self, x: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(x, self.layers[0].weight, self.layers[0].bias))
        return F.linear(hidden, self.layers[1].weight, self.layers[1].bias)


class Convolutions(nn.Module):
    """One that is called and one whose weight is used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(5, HIDDEN, 3, padding=1), nn.Conv1d(HIDDEN, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.relu(self.first(x)), self.second.weight, self.second.bias, padding=1).mean(-1)


class Whole(nn.Module):
    """An attention that torch's function computes, which takes the width of the output for the heads'."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.q_proj, self.k_proj = HEADS, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v_proj, self.out_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        made = [self.q_proj, self.k_proj, self.v_proj]
        output, _ = F.multi_head_attention_forward(
            *(x, x, x, WIDTH, self.num_heads, None, torch.cat([layer.bias for layer in made]), None, None, False, 0.0),
            *(self.out_proj.weight, self.out_proj.bias),
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )
        return output.transpose(0, 1)


def network(part: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(part(), nn.Linear(WIDTH, 2)).double().eval()


def pruned(part: type[nn.Module]) -> tuple[nn.Module, AutoTruncatedLogNormal]:
    net = attach_noise(network(part))
    guide = AutoTruncatedLogNormal(net)
    with torch.no_grad():
        guide.noise_locs.sub_(0.5)
    for site in noise_sites(net).values():
        site.noise.kept[::2] = False
    return net, guide


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("part", [Attention, FeedForward, Convolutions])
def test_units_of_layers_whose_weights_are_used_are_taken_out(part):
    net, guide = pruned(part)
    small = compact(net, guide, TOKENS)
    report = compaction_report(small)
    assert len(report.units) and report.masked.empty, report.masked
    torch.testing.assert_close(small(TOKENS), net(TOKENS), rtol=1e-12, atol=1e-12)
    # What is left is the module's own code, on fewer units.
    assert not any(isinstance(vars(module).get("forward"), CallsByWeight) for module in small.modules())
    assert num_parameters(small) < 0.7 * num_parameters(network(part))


class Tied(nn.Module):
    """A code that is decoded by the weight that made it, the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.code, self.bias = nn.Linear(5, 8), nn.Linear(8, 4), nn.Parameter(torch.randn(8))
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.code(F.relu(self.first(x))))
        return self.last(F.relu(F.linear(code, self.code.weight.t(), self.bias)))


def test_factors_around_a_weight_that_is_read_are_in_files_and_exported(tmp_path):
    torch.manual_seed(0)
    original, inputs = Tied(), torch.randn(3, 5)
    net = attach_noise(copy.deepcopy(original))
    gates = {name: torch.linspace(0.5, 1.0, site.noise.num_units) for name, site in noise_sites(net).items()}
    small = compact_gated(net, gates, noise_sites(net), inputs)
    assert isinstance(vars(small)["forward"], CallsByWeight)
    save_compact(small, tmp_path / "net")
    assert torch.equal(load_compact(tmp_path / "net", original)(inputs), small(inputs))
    torch.export.export(small, (inputs,))


class Scanned(nn.Module):
    """Of two layers one has its weight put in another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Conv1d(8, 8, 3, groups=8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x)).transpose(1, 2)
        weight = self.second.weight.squeeze(1)
        return self.last(
            F.relu(F.conv1d(hidden, weight.unsqueeze(1), self.second.bias, groups=hidden.shape[1])).mean(-1)
        )


def test_a_layer_that_nothing_is_called_for_has_no_noise_and_its_channels_go():
    torch.manual_seed(0)
    net, inputs = Scanned().double(), torch.randn(2, 6, 5, dtype=torch.float64)
    attach_noise(net, example_inputs=inputs)
    assert list(noise_sites(net)) == ["first"]
    gates = {"first": torch.tensor([0.0, 1.0] * 4)}
    small = compact_gated(net, gates, noise_sites(net), inputs)
    assert small.second.weight.shape == (4, 1, 3) and small.second.groups == 4


def test_what_cannot_lose_heads_keeps_them_as_zeros():
    net, guide = pruned(Whole)
    assert noise_sites(net)["0"].kind == "heads"
    small = compact(net, guide, TOKENS)
    assert len(compaction_report(small).masked) == 2
    torch.testing.assert_close(small(TOKENS), net(TOKENS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part", [Attention, FeedForward, Convolutions, Whole])
def test_noise_acts_and_is_taken_off(part):
    net = network(part)
    before = net(TOKENS)
    attach_noise(net).train()
    guide = AutoTruncatedLogNormal(net)
    sites = noise_sites(net)
    assert sites and not torch.equal(net(TOKENS), before)
    assert all(site.noise.has_acted for site in sites.values()) and sites.keys() == guide.noise.keys()
    assert torch.equal(detach_noise(net).eval()(TOKENS), before)
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_draw_for_each_example():
    net = attach_noise(network(FeedForward), per_example=True).train()
    guide = AutoTruncatedLogNormal(net)
    one, other = net(TOKENS[:1].expand(2, -1, -1))
    assert guide.noise and not torch.equal(one, other)


def test_a_layer_is_called_once_and_with_the_bias_that_is_given():
    net, calls = network(Attention), []
    call_by_weight(net)
    for layer in (net[0].qkv, net[0].proj):
        layer.register_forward_hook(lambda layer, given, output: calls.append(layer))
    torch.testing.assert_close(net(TOKENS), network(Attention)(TOKENS))
    assert calls == [net[0].qkv, net[0].proj]
    assert net[0].qkv.bias is None and "weight" not in vars(net[0].qkv)
    multiply_by_weight(net)
    assert "forward" not in vars(net[0])


def test_a_layer_that_is_called_is_not_called_twice():
    class Both(FeedForward):
        def multiplied(self, x: Tensor) -> Tensor:
            return self.layers[1](self.layers[0](x)) + F.linear(x, self.layers[0].weight)[..., :1]

    net, calls = network(Both), []
    expected = net(TOKENS)
    call_by_weight(net)
    net[0].layers[0].register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(net(TOKENS), expected) and len(calls) == 2


def test_a_convolution_of_other_settings_is_not_the_layer():
    class Strided(Convolutions):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv1d(F.relu(self.first(x)), self.second.weight, self.second.bias, 2, 1)

    net, calls = network(Strided)[0], []
    expected = net(TOKENS)
    call_by_weight(net)
    net.second.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(net(TOKENS), expected) and not calls


def test_it_is_copied_with_the_network():
    net = network(FeedForward)
    call_by_weight(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].layers[1].weight.zero_()
    assert vars(other[0])["forward"].module is other[0]
    assert not torch.equal(net(TOKENS), other(TOKENS))
