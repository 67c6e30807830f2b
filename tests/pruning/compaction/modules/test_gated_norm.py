# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Where channels cannot be taken out, a norm over the others stands, and keeps its place in files."""

from __future__ import annotations

import torch
from torch import nn

from pyro_bmrs.pruning.compaction.architecture import describe, rebuild
from pyro_bmrs.pruning.compaction.modules.gated_norm import GatedNorm
from pyro_bmrs.pruning.compaction.saved import fit_shapes


def test_a_norm_of_what_is_kept_times_its_factors() -> None:
    norm = nn.LayerNorm(4)
    gated = GatedNorm(norm, torch.tensor([0.5, 0.0, 1.0, 2.0]), -1)
    input = torch.randn(3, 4)
    kept = input[:, [0, 2, 3]]
    expected = (kept - kept.mean(-1, keepdim=True)) / (kept.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(gated(input)[:, [0, 2, 3]], expected * torch.tensor([0.5, 1.0, 2.0]))
    assert not gated(input)[:, 1].any()
    assert gated.weight is norm.weight and "3 of 4 channels" in repr(gated)


def test_uneven_groups_are_exported() -> None:
    gated = GatedNorm(nn.GroupNorm(2, 4), torch.tensor([0.5, 0.0, 1.0, 2.0]), -3)
    images = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(torch.export.export(gated, (images,)).module()(images), gated(images))


def test_in_files() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4))
    gated = nn.Sequential(net[0], GatedNorm(net[1], torch.tensor([0.5, 0.0, 1.0, 2.0]), -1))
    other = rebuild(nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4)), describe(net, gated))
    fit_shapes(other, gated.state_dict())
    other.load_state_dict(gated.state_dict())
    input = torch.randn(3, 2)
    torch.testing.assert_close(other(input), gated(input), rtol=0, atol=0)
