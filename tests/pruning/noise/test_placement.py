# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
from torch import Tensor, nn

from pyro_bmrs.pruning import attach_noise, noise_sites
from tests.pruning.noise.places import (
    LeNet,
    ResNet,
    ViT,
    convolutions,
    encoder,
    mlp,
    places,
)
from tests.pruning.recurrent import Loop, Residual, Tagger


def test_places_after_the_activations_modules_and_batch_norms():
    assert places(mlp()) == {"0": ("1", "output", 4, 1), "2": ("4", "output", 5, 1)}


def test_activations_that_are_functions_put_the_noise_on_the_next_layers_input():
    assert places(LeNet()) == {
        "conv1": ("conv2", "input", 3, 1),
        "conv2": ("fc1", "input", 4, 16),
        "fc1": ("fc2", "input", 7, 1),
    }


def test_noise_goes_past_poolings_to_the_weight_of_the_next_convolution():
    # A convolution by groups has no weights between all the channels.
    assert places(convolutions()) == {
        "0": ("3", "input", 3, 1),
        "3": ("5", "output", 4, 1),
        "6": ("8", "output", 4, 1),
    }


def test_a_shared_activation_is_no_place():
    assert places(ResNet()) == {
        "stem.0": ("stem.3", "output", 4, 1),
        "layers.0.conv1": ("layers.0.conv2", "input", 4, 1),
        "layers.0.conv2": ("layers.0.bn2", "output", 4, 1),
        "layers.1.conv1": ("layers.1.conv2", "input", 6, 1),
        "layers.1.conv2": ("layers.1.bn2", "output", 6, 1),
        "layers.1.downsample.0": ("layers.1.downsample.1", "output", 6, 1),
    }


def test_residual_branches_are_one_unit_each():
    assert places(ResNet(), kinds=["block"]) == {
        "layers.0": ("layers.0.bn2", "output", 1, 1),
        "layers.1": ("layers.1.bn2", "output", 1, 1),
    }
    assert places(ViT(), kinds=["block"]) == {
        "attn": ("attn", "output", 1, 1),
        "mlp.2": ("mlp.2", "output", 1, 1),
    }


def test_heads_and_hidden_units_of_transformers():
    assert places(ViT()) == {"attn": ("attn.proj", "input", 2, 4), "mlp.0": ("mlp.1", "output", 12, 1)}
    expected = {}
    for layer in ("0.layers.0", "0.layers.1"):
        expected[f"{layer}.self_attn"] = (f"{layer}.self_attn.out_proj", "input", 2, 4)
        expected[f"{layer}.linear1"] = (f"{layer}.linear2", "input", 12, 1)
    assert places(encoder()) == expected


class Counted(nn.Module):
    """A block that cannot be traced, as it counts its examples; all blocks have one activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), activation, nn.Conv2d(4, 4, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).reshape(len(images), 4, 1, 1)


def test_convolutions_that_cannot_be_traced_have_noise_and_a_shared_activation_has_none():
    activation = nn.ReLU()
    net = nn.Sequential(Counted(activation), Counted(activation))
    assert places(net) == {"0.body.0": ("0.body.3", "input", 4, 1), "1.body.0": ("1.body.3", "input", 4, 1)}


class Counter(nn.Module):
    """Of which no part can be traced but its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.first(images).relu().reshape(len(images), 4, -1).mean(-1))


def test_a_weight_of_as_many_blocks_as_units_makes_no_router() -> None:
    assert places(Counter()) == {"first": ("first", "output", 4, 1)}


class Packs(nn.Module):
    """Cannot be traced: it asks for lengths."""

    def __init__(self, norm=8):
        super().__init__()
        self.rnn, self.norm, self.last = nn.GRU(4, 8, num_layers=2), nn.LayerNorm(norm), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.norm(self.rnn(x[: int(x.sum())])[0]))


def test_hidden_units_by_layer_and_direction():
    net = Tagger(nn.LSTM, num_layers=2, bidirectional=True)
    parts = ["rnn.l0", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse"]
    assert places(net) == {"first": ("first", "output", 6, 1)} | dict.fromkeys(parts, ("rnn", "output", 8, 1))
    assert [f"rnn.{site.part.name}" for site in noise_sites(net).values() if site.part] == parts


@pytest.mark.parametrize(
    ("net", "names", "found"),
    [
        (Tagger(), None, ["first", "rnn"]),
        (Loop(nn.RNNCell), None, ["cell"]),
        # What is tied to a residual stream, and what a norm needs, can be named.
        (Residual(), None, ["first"]),
        (Residual(), ["rnn"], ["rnn"]),
        (
            nn.ModuleDict({"a": nn.GRU(4, 8, num_layers=2), "b": nn.LSTM(8, 8, num_layers=2)}),
            None,
            ["a.l0", "a.l1", "b.l0"],
        ),
        (Packs(), None, ["rnn.l0"]),
        (Packs(5), None, ["rnn.l0", "rnn.l1"]),
        (Packs(), ["rnn.l1"], ["rnn.l1"]),
        (Packs(), [nn.GRU], ["rnn.l0", "rnn.l1"]),
    ],
)
def test_where_hidden_units_have_noise(net, names, found):
    assert list(noise_sites(attach_noise(net, names))) == found
