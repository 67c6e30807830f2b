# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Residual branches go as a whole, where the sum can do without them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_bmrs.pruning import attach_noise, compaction_report, noise_sites
from pyro_bmrs.pruning.compaction.compact import compact_gated
from pyro_bmrs.pruning.compaction.modules.bypass import Bypass, Zeros
from tests.pruning.compaction.gated import difference, with_noise_at
from tests.pruning.networks import make


def without(name: str, *pruned: str) -> nn.Module:
    """The compact network, which computes the same."""
    net, inputs = make(name, torch.float64)
    sites = noise_sites(attach_noise(net, kinds=("units", "heads", "block")))
    gates = {site: torch.full((where.noise.num_units,), 0.5) for site, where in sites.items()}
    gates.update({site: torch.zeros(1) for site in pruned})
    small = compact_gated(net, gates, sites, inputs)
    assert difference(with_noise_at(net, gates, inputs), small(inputs)) <= 1e-12
    return small


def test_a_branch_of_a_resnet() -> None:
    small = without("resnet", "layer2.1")
    block = small.layer2[1]
    assert isinstance(block.bn2, Zeros)
    assert all(isinstance(layer, Bypass) for layer in (block.conv1, block.bn1, block.conv2))
    assert not list(block.parameters())
    # The units in the branch went with it.
    sites = compaction_report(small).sites
    assert sites.loc[["layer2.1", "layer2.1.conv1", "layer2.1.conv2"], "removed"].tolist() == [1, 8, 8]


def test_a_branch_that_changes_the_shape_is_masked() -> None:
    small = without("resnet", "layer2.0")
    masked = compaction_report(small).masked
    assert masked.index.tolist() == [("layer2.0", 0)]
    block = small.layer2[0]
    assert not block.bn2.weight.any() and not block.bn2.bias.any()
    # What is in the branch makes no difference, so that one channel is enough.
    assert block.conv1.out_channels == block.conv2.in_channels == 1


@pytest.mark.parametrize("layer", [0, 1])
def test_the_attention_of_a_transformer(layer: int) -> None:
    small = without("transformer", f"encoder.layers.{layer}.dropout1")
    assert isinstance(small.encoder.layers[layer].self_attn, Bypass)


def test_the_hidden_layer_of_a_transformer() -> None:
    small = without("transformer", "encoder.layers.0.dropout2")
    assert not list(small.encoder.layers[0].linear1.parameters())


def test_the_branches_of_a_vit() -> None:
    small = without("vit", "blocks.0.attn.proj.block", "blocks.1.mlp.2.block")
    assert not list(small.blocks[0].attn.parameters()) and not list(small.blocks[0].norm1.parameters())
    assert not list(small.blocks[1].mlp.parameters()) and not list(small.blocks[1].norm2.parameters())
