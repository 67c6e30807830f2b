# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Layers that keep units for their size compute what they do without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning import attach_noise, compact_gated, compaction_report, noise_sites
from tests.pruning.compaction.gated import difference, random_gates
from tests.pruning.networks import make


def rounded(name: str, multiple: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    """A compact network without rounding, and one with it."""
    net, inputs = make(name, torch.float64)
    attach_noise(net)
    gates, sites = random_gates(net, 1), noise_sites(net)
    return compact_gated(net, gates, sites, inputs), compact_gated(net, gates, sites, inputs, round_to=multiple), inputs


def sizes(net: nn.Module) -> list[int]:
    layers = [module for module in net.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return [layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels for layer in layers[:-1]]


@pytest.mark.parametrize(
    ("name", "multiple"),
    [("mlp-relu", 4), ("lenet-5", 4), ("resnet", 2), ("grouped", 4), ("vit", 4), ("transformer", 8)],
)
def test_sizes_are_multiples_and_outputs_the_same(name: str, multiple: int) -> None:
    exact, even, inputs = rounded(name, multiple)
    assert difference(exact(inputs), even(inputs)) <= 1e-12
    if name not in ("vit", "transformer"):  # whose heads are in rows of queries, keys and values
        for size, other, whole in zip(sizes(exact), sizes(even), sizes(make(name)[0]), strict=True):
            assert other == min(-(-size // multiple) * multiple, whole)
    assert sum(sizes(even)) > sum(sizes(exact))
    units = compaction_report(even).units
    back = units[units["fate"] == "masked"]
    assert (back["gate"] == 0).all() and back["reason"].str.contains(f"multiple of {multiple}").any()


def test_those_come_back_for_which_the_evidence_speaks_most() -> None:
    net = attach_noise(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
    sites, gates = noise_sites(net), {"0": torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0])}
    means, inputs = {"0": torch.arange(8.0)}, torch.randn(2, 3)

    def masked(**evidence: Any) -> list[int]:
        small = compact_gated(net, gates, sites, inputs, importance=means, round_to=4, **evidence)
        assert small[0].out_features == 4
        return [unit for _, unit in compaction_report(small).masked.index]

    # In favour of removal; without it, the mean of the posterior decides.
    evidence = {"0": torch.tensor([0.0, 3.0, 1.0, 7.0, 2.0, 0.0, 9.0, 9.0])}
    assert masked(delta_evidence=evidence) == [2, 4]
    assert masked() == [6, 7]
