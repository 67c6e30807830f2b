# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_bmrs.pruning import attach_noise, compact_gated, compaction_report, noise_sites
from tests.pruning.noise.places import places

GATES = {
    "sigmoid": torch.sigmoid,
    "softplus": nn.functional.softplus,
    "hardsigmoid": nn.functional.hardsigmoid,
    "silu": nn.functional.silu,
    "none": lambda gate: gate,
    "about one": lambda gate: 1 + torch.tanh(gate),
    "doubled": lambda gate: 2.0 * torch.sigmoid(gate) - 0.5,
}


class Halves(nn.Module):
    """Gates and what they are for out of one layer, as in SwiGLU."""

    def __init__(self, way):
        super().__init__()
        self.way, self.act, self.drop = way, nn.SiLU(), nn.Dropout()
        self.glu = nn.GLU()
        self.up, self.down = nn.Linear(5, 8), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.up(x)
        if self.way == "chunk":
            gate, value = hidden.chunk(2, dim=-1)
            return self.down(self.drop(self.act(gate) * value))
        if self.way == "function":
            value, gate = torch.chunk(hidden, chunks=2, dim=-1)
            return self.down(value * nn.functional.gelu(gate))
        if self.way == "glu":
            return self.down(nn.functional.glu(hidden))
        if self.way == "module":
            return self.down(self.drop(self.glu(hidden)))
        if self.way == "no activation":
            one, other = hidden.chunk(2, dim=-1)
            return self.down(one * other)
        if self.way == "sum":
            one, other = hidden.chunk(2, dim=-1)
            return self.down(self.act(one) + other)
        one, other = hidden.chunk(2, dim=0)
        return self.down((self.act(one) * other)[:, :4])


@pytest.mark.parametrize("way", ["chunk", "function", "glu", "module"])
def test_a_gate_and_what_it_is_for_are_one_unit(way):
    net = Halves(way).double().eval()
    assert places(net) == {"up": ("down", "input", 4, 1)}
    gates = {"up": torch.tensor([0.5, 0.0, 0.0, 1.0])}
    weight = net.up.weight.detach().clone()
    small = compact_gated(net, gates, noise_sites(net), torch.randn(4, 5).double())
    assert compaction_report(small).units["fate"].tolist() == ["kept", "removed", "removed", "kept"]
    assert small.up.out_features == 4 and small.down.in_features == 2
    # Of either half the same rows are left.
    torch.testing.assert_close(small.up.weight, weight[[0, 3, 4, 7]], rtol=0, atol=0)


@pytest.mark.parametrize("way", ["no activation", "sum", "examples"])
def test_other_halves_are_no_gates(way):
    net = attach_noise(nn.Sequential(Halves(way), nn.Linear(3, 2)), "0.up")
    assert noise_sites(net)["0.up"].noise.num_units == 8


class Gated(nn.Module):
    """A layer for the gates, one for what they are for; some norm each unit of the product."""

    def __init__(self, gate, is_normed=False):
        super().__init__()
        self.value, self.gate, self.act = nn.Linear(5, 4), nn.Linear(5, 4), gate
        self.norm, self.drop = (nn.BatchNorm1d(4) if is_normed else nn.Identity()), nn.Dropout()
        self.down = nn.Linear(4, 3)

    def forward(self, x):
        return self.down(self.drop(self.norm(self.value(x) * self.act(self.gate(x)))))


@pytest.mark.parametrize("is_normed", [False, True])
@pytest.mark.parametrize("gate", GATES)
def test_a_gate_and_what_it_is_for_go_together_whatever_the_gate_is_at_zero(gate, is_normed):
    torch.manual_seed(0)
    net, x = Gated(GATES[gate], is_normed).double().eval(), torch.randn(6, 5).double()
    product = net.norm(net.value(x) * net.act(net.gate(x)))
    kept = torch.tensor([1.0, 0.0, 0.0, 0.5]).double()
    expected = net.down(product * kept)
    assert places(net) == {"value": ("down", "input", 4, 1)}
    small = compact_gated(net, {"value": kept}, noise_sites(net), x)
    assert compaction_report(small).units["fate"].tolist() == ["kept", "removed", "removed", "kept"]
    assert small.value.out_features == small.gate.out_features == small.down.in_features == 2
    torch.testing.assert_close(small(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate", [nn.Sigmoid(), nn.SiLU()])
def test_behind_the_module_of_a_gate_there_is_noise_already(gate):
    assert places(Gated(gate)) == {"gate": ("act", "output", 4, 1)}


class Excited(nn.Module):
    """Channels of an image that are multiplied by what is made of their means."""

    def __init__(self, gate):
        super().__init__()
        self.first, self.squeeze = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 1)
        self.excite, self.gate, self.last = nn.Conv2d(2, 4, 1), gate, nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(x * self.gate(self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu())))


@pytest.mark.parametrize(("gate", "is_default"), [(torch.sigmoid, False), (nn.Sigmoid(), True), (torch.tanh, True)])
def test_no_noise_before_a_gate_that_lets_half_of_it_through_at_zero(gate, is_default):
    assert ("excite" in noise_sites(attach_noise(Excited(gate)))) == is_default
