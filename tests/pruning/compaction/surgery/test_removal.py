# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Channels that are multiplied by 0 go, where what is behind them can do without."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.compaction.coupling.ties import Channel
from pyro_bmrs.pruning.compaction.modules.scaling import Scale, scales_of
from pyro_bmrs.pruning.compaction.surgery.removal import LAST, remove_channels
from pyro_bmrs.pruning.examples import Outputs


def gated(*factors: float, dim: int = 1) -> Scale:
    return Scale(torch.tensor(factors, dtype=torch.float64), dim)


def without(net: nn.Module, *shape: int, **merits: list[float]) -> tuple[nn.Module, dict[Channel, str]]:
    """The network after removal, which computes the same, and leaves the other as it was."""
    net = net.double().eval()
    inputs = torch.randn(shape, dtype=torch.float64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    importance = {name: torch.tensor(merits.get(name, [1.0] * len(s.factor))) for name, s in scales_of(net).items()}
    smaller, left = remove_channels(net, list(scales_of(net)), inputs, Outputs(net, inputs), importance)
    torch.testing.assert_close(smaller(inputs), net(inputs), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    return smaller, left


def test_rows_before_and_columns_behind() -> None:
    net = nn.Sequential(nn.Linear(3, 4), gated(0.0, 1.0, 2.0, 0.0), nn.ReLU(), nn.Linear(4, 2)).double()
    smaller, left = without(net, 5, 3)
    assert not left
    assert torch.equal(smaller[0].weight, net[0].weight[1:3]) and torch.equal(smaller[0].bias, net[0].bias[1:3])
    assert torch.equal(smaller[3].weight, net[3].weight[:, 1:3]) and torch.equal(smaller[3].bias, net[3].bias)
    assert smaller[1].factor.tolist() == [1.0, 2.0]


def test_a_constant_goes_into_the_next_bias() -> None:
    net = nn.Sequential(nn.Linear(3, 2), gated(0.0, 1.0), nn.Sigmoid(), nn.Linear(2, 2)).double()
    smaller, _ = without(net, 5, 3)
    torch.testing.assert_close(smaller[3].bias, net[3].bias + 0.5 * net[3].weight[:, 0])


def test_a_constant_that_no_bias_can_take_over_is_left_and_named() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), gated(0.0, 1.0), nn.Sigmoid(), nn.Conv2d(2, 1, 3, padding=1))
    smaller, left = without(net, 1, 1, 4, 4)
    assert smaller[0].out_channels == 2
    (reason,) = left.values()
    assert "3 is given a constant" in reason and "pads with zeros" in reason


def test_what_is_tied_to_kept_channels_is_left_and_named() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
            self.gate, self.other_gate = gated(0.0, 0.0, 1.0), gated(0.0, 1.0, 0.0)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.last(self.gate(self.one(inputs)) + self.other_gate(self.other(inputs)))

    smaller, left = without(Residual(), 4, 3)
    assert smaller.one.out_features == smaller.other.out_features == smaller.last.in_features == 2
    assert left == dict.fromkeys(
        (Channel("gate", "through", 1), Channel("other_gate", "through", 2)),
        "they are tied to channels that are kept",
    )


def test_the_best_of_a_layer_that_would_vanish_stays() -> None:
    net = nn.Sequential(nn.Linear(3, 3), gated(0.0, 0.0, 0.0), nn.Linear(3, 2))
    smaller, left = without(net, 4, 3, **{"1": [1.0, 3.0, 2.0]})
    assert smaller[0].out_features == 1
    assert left == {Channel("1", "through", 1): LAST}


def test_parts_lose_the_same_of_each_or_nothing() -> None:
    def net(*factors: float) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 6), gated(*factors), nn.Unflatten(1, (2, 3)), nn.Linear(3, 2), nn.Flatten())

    smaller, left = without(net(0.0, 1.0, 1.0, 0.0, 1.0, 1.0), 4, 3)
    assert (smaller[0].out_features, smaller[2].unflattened_size, smaller[3].in_features) == (4, (2, 2), 2)
    assert left == {}
    smaller, left = without(net(0.0, 1.0, 1.0, 1.0, 0.0, 1.0), 4, 3)
    assert smaller[0].out_features == 6
    reason = "they are tied to channels that are kept"
    assert left == {Channel("1", "through", 0): reason, Channel("1", "through", 4): reason}


def test_without_zeros_it_is_the_same_network() -> None:
    net = nn.Sequential(nn.Linear(3, 2), gated(0.5, 1.0), nn.Linear(2, 2)).double()
    inputs = torch.randn(2, 3, dtype=torch.float64)
    assert remove_channels(net, ["1"], inputs, Outputs(net, inputs), {}) == (net, {})
