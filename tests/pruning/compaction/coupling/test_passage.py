# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What the rules say of an operation is what it does: a mark on one channel's elements is found where the rule has them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from pyro_bmrs.pruning.compaction.coupling.flow import ChannelFlow
from pyro_bmrs.pruning.compaction.coupling.passage import NONE, compressed

# Operations on what a convolution puts out, shape (2, 8, 4, 4).
FOLLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sum": lambda images: images + images.flip(0),
    "max-pool": lambda images: F.max_pool2d(images, 2),
    "average": lambda images: images.mean((2, 3)),
    "pad": lambda images: F.pad(images, (1, 1, 0, 0, 2, 0)),
    "cat": lambda images: torch.cat([images[:, 4:], images[:, :4]], 1),
    "stack": lambda images: torch.stack(images.unbind(1), -1),
    "upsample": lambda images: F.interpolate(images, scale_factor=2.0),
    "transpose": lambda images: images.flatten(2).transpose(1, 2).contiguous(),
    "shuffle": lambda images: F.channel_shuffle(images, 2),
    "unshuffle": lambda images: F.pixel_unshuffle(images, 2),
    "index": lambda images: images[:, torch.tensor([3, 1, 6])],
    "roll": lambda images: images.roll(1, 1),
    "pack": lambda images: pack_padded_sequence(images.flatten(2).transpose(1, 2), torch.tensor([16, 3]), True).data,
    "repeat": lambda images: images.repeat_interleave(2, 1),
    "reflection": lambda images: F.pad(images, (1, 1, 1, 1), mode="reflect"),
}
STOPPED: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda images: images.softmax(1),
    "mean": lambda images: images.mean(1),
    "max": lambda images: images.amax(1),
    "group-norm": lambda images: F.group_norm(images, 2),
    "sort": lambda images: images.sort(1).values,
    "fft": lambda images: torch.fft.fft(images, dim=1).real,
    "matrices": lambda images: images.flatten(2) @ images.flatten(2).transpose(1, 2),
}


class After(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.operation = nn.Conv2d(1, 8, 1), operation

    def forward(self, images: Tensor) -> Tensor:
        self.result = self.operation(self.first(images))
        return self.result.sum()


def followed(operation: Callable[[Tensor], Tensor]) -> tuple[set[int], set[tuple[int, ...]], Tensor]:
    """Which channels cannot be taken out, which are tied, and which the elements of the operation's result are of."""
    net = After(operation)
    flow = ChannelFlow(net)
    flow.follow(torch.randn(2, 1, 4, 4))
    assert all("needs all its channels" in obstacle for obstacle in flow.obstacles.values())
    begin, _ = flow.begins["first", "out"]
    pairs = {tuple(sorted(pair)) for pairs in flow.pairs for pair in (pairs - begin).tolist()}
    channels = flow.of(net.result)
    return {number - begin for number in flow.obstacles}, pairs, torch.where(channels >= 0, channels - begin, NONE)


@pytest.mark.parametrize("name", FOLLOWED)
def test_elements_are_of_the_channels_that_they_are_computed_from(name):
    obstacles, pairs, channels = followed(FOLLOWED[name])
    assert not obstacles and not pairs
    marks = torch.zeros(2, 8, 4, 4)
    for channel in range(8):
        marks[:, channel] = 1.0
        marked = FOLLOWED[name](marks) != 0
        marks[:, channel] = 0.0
        assert torch.equal(channels == channel, marked)


@pytest.mark.parametrize("name", STOPPED)
def test_what_needs_all_channels_is_noted(name):
    obstacles, _, _ = followed(STOPPED[name])
    assert obstacles == set(range(8))


def test_pixels_are_of_channels_that_go_together():
    _, pairs, channels = followed(lambda images: F.pixel_shuffle(images, 2))
    assert compressed(channels).flatten().tolist() == [0, 4]
    assert pairs == {(4 * part, 4 * part + place) for part in range(2) for place in range(1, 4)}


def test_halves_of_a_gate_are_tied():
    _, pairs, channels = followed(lambda images: F.glu(images, 1))
    assert pairs == {(place, place + 4) for place in range(4)}
    assert compressed(channels).flatten().tolist() == list(range(4))


@pytest.mark.parametrize("operation", [torch.sum, torch.softmax])
def test_what_is_stacked_and_put_together_goes_together(operation):
    obstacles, pairs, channels = followed(
        lambda images: operation(torch.stack([images[:, :4], images[:, 4:]], 1), dim=1)
    )
    assert not obstacles and pairs == {(place, place + 4) for place in range(4)}
    assert compressed(channels).flatten().tolist() == list(range(4))


def test_a_largest_of_some_channels_is_of_those():
    obstacles, pairs, channels = followed(lambda images: images.unflatten(1, (4, 2)).amax(2))
    assert not obstacles and pairs == {(2 * pair, 2 * pair + 1) for pair in range(4)}
    assert compressed(channels).flatten().tolist() == [0, 2, 4, 6]


def test_a_gate_of_one_channel_stays_and_ties_none():
    obstacles, pairs, _ = followed(lambda images: images[:, 2:] * images[:, 1:2].sigmoid())
    assert obstacles == {1} and not pairs


def test_channels_whose_neighbours_are_added_up_go_together_behind_a_padding():
    _, pairs, _ = followed(lambda images: F.local_response_norm(images, 3))
    assert pairs == {(0, channel) for channel in range(1, 8)}


@pytest.mark.parametrize("operation", [torch.linalg.vector_norm, torch.sum], ids=["norm", "sum"])
def test_nothing_is_added_by_what_is_zero(operation):
    obstacles, pairs, _ = followed(lambda images: operation(images, dim=1, keepdim=True))
    assert not obstacles and not pairs


def test_what_does_not_differ_is_compressed():
    channels = torch.arange(3).reshape(1, 3, 1).expand(2, 3, 4)
    assert torch.equal(compressed(channels), channels[:1, :, :1])
    assert compressed(torch.full((2, 3), NONE)).shape == (1, 1)
