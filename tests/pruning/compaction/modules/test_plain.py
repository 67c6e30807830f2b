# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Weights that are computed at each call become weights that are held."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pyro_bmrs.pruning import Attention
from pyro_bmrs.pruning.compaction.modules.plain import make_plain


@pytest.mark.parametrize("parametrization", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights(parametrization: object) -> None:
    net = nn.Sequential(parametrization(nn.Linear(4, 3)), nn.Tanh(), parametrization(nn.Linear(3, 2))).eval()
    plain, inputs = copy.deepcopy(net), torch.randn(5, 4)
    make_plain(plain)
    assert [type(module) for module in plain] == [nn.Linear, nn.Tanh, nn.Linear]
    assert torch.equal(plain(inputs), net(inputs))
    # Copies of a parametrized module share its class, which stays as it is.
    assert all(isinstance(module.weight, torch.Tensor) for module in (net[0], net[2]))
    assert not isinstance(net[0].weight, nn.Parameter)


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention(options: dict[str, bool]) -> None:
    net = nn.Sequential(nn.MultiheadAttention(4, 2, **options))
    make_plain(net)
    assert type(net[0]) is Attention


def test_attention_of_a_class_of_its_own_may_compute_something_else() -> None:
    class Other(nn.MultiheadAttention):
        pass

    net = nn.Sequential(Other(4, 2))
    make_plain(net)
    assert type(net[0]) is Other
