# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Units that a network ties together are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import attach_noise, coupled_units, noise_sites
from pyro_bmrs.pruning.compaction.coupling.ties import channel_ties
from pyro_bmrs.pruning.compaction.modules.scaling import Scale
from tests.pruning.networks import make


@pytest.mark.parametrize("name", ["mlp-tanh", "lenet-5", "transformer"])
def test_a_chain_ties_nothing(name: str) -> None:
    net, inputs = make(name)
    assert coupled_units(attach_noise(net), inputs) == []


def test_a_residual_sum_ties_its_summands() -> None:
    net, inputs = make("resnet")
    groups = coupled_units(attach_noise(net), inputs)
    stem = ["conv1", "layer1.0.conv2"]
    second = ["layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"]
    assert sorted(groups) == sorted(
        [[(name, unit) for name in names] for names, size in ((stem, 6), (second, 8)) for unit in range(size)]
    )


def test_a_grouped_convolution_ties_the_channels_at_one_place() -> None:
    net, inputs = make("grouped")
    groups = coupled_units(attach_noise(net), inputs)
    inputs_of_groups = [[("0", unit), ("0", unit + 4)] for unit in range(4)]
    # What a depthwise convolution makes of a channel goes with it.
    outputs = [[("2", unit), ("2", unit + 6), ("5", unit), ("5", unit + 6)] for unit in range(6)]
    assert sorted(groups) == sorted(inputs_of_groups + outputs)


def test_a_flattening_ties_the_pixels_of_a_channel() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), Scale(torch.ones(12), 1), nn.Linear(12, 2))
    ties = channel_ties(net, torch.ones(1, 1, 3, 3)).tied
    assert sorted(sorted(tie.of("in")["3"]) for tie in ties) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert sorted(tie.of("out")["0"] for tie in ties) == [[0], [1], [2]]


def test_concatenation_ties_nothing() -> None:
    class Concatenated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.last = nn.Linear(3, 4), nn.Linear(3, 2), nn.Linear(6, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.last(torch.cat([self.one(inputs).relu(), self.other(inputs).relu()], 1))

    net = attach_noise(Concatenated())
    assert set(noise_sites(net)) == {"one", "other"}
    assert coupled_units(net, torch.ones(1, 3)) == []


def test_leaves_the_network_as_it_is() -> None:
    net, inputs = make("resnet")
    attach_noise(net).train().requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    coupled_units(net, inputs)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert net.training and not any(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("inputs", [torch.ones(1, 1, 8, 8), (), {"pictures": torch.ones(1, 3, 8, 8)}])
def test_example_inputs_that_do_not_fit(inputs: Any) -> None:
    with pytest.raises(ReductionError, match="example_inputs"):
        coupled_units(attach_noise(make("resnet")[0]), inputs)


class Chunked(nn.Module):
    """Channels that are split, one half of which goes through a layer, and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(12, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        one, other = self.first(images).relu().chunk(2, 1)
        return self.head(self.last(torch.cat([one, other, self.part(other).relu()], 1)).relu())


class Unflattened(nn.Module):
    """Channels that become two dimensions, one of which the next layer mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.next, self.last = nn.Linear(5, 16), nn.Linear(4, 6), nn.Linear(24, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.next(self.first(inputs).relu().unflatten(1, (4, 4))).relu().flatten(1))


class Rotated(nn.Module):
    """Positions that turn pairs of channels, one in each half."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 2)
        self.register_buffer("angles", torch.rand(3, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.first(tokens)
        turned = torch.cat([-features[..., 4:], features[..., :4]], -1)
        return self.last(features * self.angles.cos() + turned * self.angles.sin())


def test_halves_that_are_turned_are_tied_by_pairs() -> None:
    net = nn.Sequential(Rotated(), Scale(torch.ones(2), -1), nn.Linear(2, 2))
    net[0].first = nn.Sequential(nn.Linear(5, 8), Scale(torch.ones(8), -1))
    ties = channel_ties(net, torch.randn(2, 3, 5)).tied
    turned = sorted(tie.of("through")["0.first.1"] for tie in ties if "0.first.1" in tie.of("through"))
    assert turned == [[unit, unit + 4] for unit in range(4)]
    assert [tie.obstacle for tie in ties] == [None] * 6


def test_what_is_divided_is_tied_by_its_places_or_goes_in_whole_parts() -> None:
    assert [group for group in groups_of(Chunked(), (2, 3, 4, 4)) if group[0][0] == "first"] == [
        [("first", unit), ("first", unit + 4)] for unit in range(4)
    ]
    # The next layer is given one of each part.
    assert groups_of(Unflattened(), (2, 5)) == [[("first", unit + 4 * part) for part in range(4)] for unit in range(4)]


def groups_of(net: nn.Module, shape: tuple[int, ...]) -> list[list[tuple[str, int]]]:
    return sorted(coupled_units(attach_noise(net, "first"), torch.randn(shape)))
