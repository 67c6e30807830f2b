# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Streams are what many layers add to and read through norms alone, with all that has their channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bmrs.pruning.streams.streams import Side, Stream, find_streams

WIDTH, VOCABULARY = 6, 9
TOKENS = torch.arange(8).reshape(2, 4)


class Decoder(nn.Module):
    """A block behind an embedding, before a head that may have its weight."""

    def __init__(self, *, is_post: bool = False, ends_in_norm: bool = True, is_tied: bool = False) -> None:
        super().__init__()
        self.is_post, self.ends_in_norm = is_post, ends_in_norm
        self.embed, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.randn(1, 5, WIDTH))
        self.norm, self.last_norm = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.up, self.down, self.scale = nn.Linear(WIDTH, 7), nn.Linear(7, WIDTH), nn.Parameter(torch.ones(WIDTH))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if is_tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.embed(tokens) + self.position[:, : tokens.shape[1]]
        given = stream if self.is_post else self.norm(stream)
        stream = stream + self.attention(given, given, given)[0]
        stream = stream + self.scale * self.down(F.gelu(self.up(self.norm(stream))))
        return self.head(self.last_norm(stream) if self.ends_in_norm else stream)


class Merging(nn.Module):
    """Two pixels side by side become one of twice the channels, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(1, 4, 1), nn.LayerNorm(4)
        self.mix, self.merged, self.last = nn.Linear(4, 4), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.embed(images).flatten(2).transpose(1, 2)
        pixels = pixels + self.mix(self.norm(pixels))
        return self.last(self.merged(torch.cat([pixels[:, ::2], pixels[:, 1::2]], -1)))


def only(net: nn.Module, inputs: Tensor = TOKENS) -> Stream:
    (stream,) = find_streams(net, inputs)
    return stream


@pytest.mark.parametrize("is_tied", [False, True])
def test_all_that_has_the_channels(is_tied: bool) -> None:
    stream = only(Decoder(is_tied=is_tied))
    assert stream.num_units == WIDTH and stream.writers == ["embed", "attention", "down"]
    assert [norm.name for norm in stream.norms] == ["norm", "last_norm"]
    readers = {side.name for side in stream.units if side.side == "in"}
    parameters = {(side.name, side.dim) for side in stream.units if side.side == "parameter"}
    assert readers == {"attention", "up", "head"} and parameters == {("position", 2), ("scale", 0)}
    assert all(torch.equal(units, torch.arange(WIDTH)) for units in stream.units.values())


@pytest.mark.parametrize(("is_post", "ends_in_norm"), [(True, True), (False, False)])
def test_none_that_is_read_past_the_norms(is_post: bool, ends_in_norm: bool) -> None:
    assert not find_streams(Decoder(is_post=is_post, ends_in_norm=ends_in_norm), TOKENS)


def test_none_that_the_network_returns() -> None:
    net = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH))
    assert not find_streams(net, TOKENS)
    assert only(nn.Sequential(*net, nn.Linear(WIDTH, 1))).num_units == WIDTH


def test_a_channel_may_be_at_several_places_of_a_norm() -> None:
    stream = only(Merging(), torch.randn(1, 1, 2, 2))
    assert {norm.name: norm.units for norm in stream.norms} == {"norm": (0, 1, 2, 3), "merged": (0, 1, 2, 3) * 2}
    assert torch.equal(stream.units[Side("last", "in", 0)], torch.arange(4).repeat(2))


def test_stages_of_images() -> None:
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
            self.up, self.down = nn.Linear(width, 5), nn.Linear(5, width)

        def forward(self, images: Tensor) -> Tensor:
            features = self.norm(self.depthwise(images).movedim(1, -1))
            return images + self.down(self.up(features).relu()).movedim(-1, 1)

    net = nn.Sequential(nn.Conv2d(1, 4, 1), Block(4), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    net = nn.Sequential(*net, nn.LayerNorm(4), nn.Linear(4, 2))
    stream = only(net, torch.randn(2, 1, 5, 5))
    assert Side("1.depthwise", "through", 0) in stream.units and stream.writers == ["0", "1.down"]


def images(module: nn.Module) -> nn.Module:
    pooled = nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), module, *pooled, nn.LayerNorm(4), nn.Linear(4, 2))


def test_grouped_convolutions_stand_in_the_way() -> None:
    streams = find_streams(images(nn.Conv2d(4, 4, 1, groups=2)), torch.randn(2, 1, 3, 3))
    assert all("0" not in stream.writers for stream in streams)


@pytest.mark.parametrize("pooling", [nn.Identity(), nn.MaxPool2d(2)])
def test_group_norms_are_norms(pooling: nn.Module) -> None:
    stream = only(images(nn.Sequential(nn.GroupNorm(2, 4), pooling)), torch.randn(2, 1, 4, 4))
    assert [(norm.name, norm.dim) for norm in stream.norms] == [("2.0", -3), ("6", -1)]


class Added(nn.Module):
    """A residual sum with what the network is given, or with positions that are computed."""

    def __init__(self, *, is_given: bool) -> None:
        super().__init__()
        self.embed = nn.Identity() if is_given else nn.Linear(WIDTH, WIDTH)
        self.norm, self.mix, self.last = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.is_given = is_given

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.embed(tokens)
        if not self.is_given:
            tokens = tokens + torch.arange(WIDTH).sin()
        return self.last(self.norm(tokens + self.mix(self.norm(tokens))))


@pytest.mark.parametrize("is_given", [True, False])
def test_what_is_added_to_numbers_of_no_channel_stays(is_given: bool) -> None:
    # Expanded, so that some of its numbers are at one place in memory.
    assert find_streams(Added(is_given=is_given), torch.randn(2, 1, WIDTH).expand(2, 3, WIDTH)) == []


class Split(nn.Module):
    """Each part of the channels goes its own way, the last of them smaller, as in EdgeNeXt; then all meet a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.one, self.other = nn.Linear(3, 8), nn.Linear(3, 3), nn.Linear(3, 3)
        self.norm, self.last, self.first_norm = nn.LayerNorm(8), nn.Linear(8, 2), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        one, other, rest = self.first_norm(x).chunk(3, -1)
        mixed = torch.cat([self.one(one), self.other(other), rest], -1)
        # The weight without its layer.
        return F.linear(self.norm(x + mixed), self.last.weight, self.last.bias)


def test_split_channels_go_from_each_part_and_a_weight_is_read_like_its_layer() -> None:
    stream = only(Split(), torch.randn(4, 3))
    assert stream.num_units == 3 and stream.layers == {"embed", "one", "other"}
    assert [norm.units for norm in stream.norms] == [(0, 1, 2, 0, 1, 2, 0, 1)] * 2
    assert torch.equal(stream.units[Side("last", "in", 0)], torch.arange(8) % 3)
