# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What stands in the place of a branch has the results that its users take."""

from __future__ import annotations

import torch
from torch import nn

from pyro_bmrs.pruning.compaction.modules.bypass import Bypass, Zeros


def test_returns_its_first_input() -> None:
    inputs = torch.randn(2, 3)
    assert Bypass()(inputs, 3, key=inputs) is inputs
    first, *others = Bypass(3)(inputs)
    assert first is inputs and others == [None, None]


def test_zeros_are_of_the_kind_of_what_is_given() -> None:
    inputs = torch.full((2, 3), torch.nan, dtype=torch.float64)
    assert torch.equal(Zeros()(inputs), torch.zeros(2, 3, dtype=torch.float64))


def test_torchs_encoder_goes_on_without_its_attention() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    net, tokens = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval(), torch.randn(2, 3, 4)
    alone = net.layers[0]
    alone.self_attn, alone.dropout1 = Bypass(2, batch_first=True), Zeros()
    hidden = alone.norm1(tokens)
    expected = alone.norm2(hidden + alone.linear2(alone.linear1(hidden).relu()))
    torch.testing.assert_close(net(tokens), expected)
