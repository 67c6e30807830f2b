# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Weights that are computed at each call become weights that are held."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
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


class Standardised(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


class Padded(Standardised):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(input, (1, 0, 1, 0)))


class Plain(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.conv2d(input, self.weight, self.bias)


def test_a_weight_that_a_convolution_computes_is_kept_and_its_forward_is_not() -> None:
    net, inputs = nn.Sequential(Standardised(2, 3, 3, stride=2, padding=1)), torch.randn(2, 2, 6, 6)
    plain = copy.deepcopy(net)
    make_plain(plain)
    assert type(plain[0]) is nn.Conv2d and type(net[0]) is Standardised
    assert torch.equal(plain(inputs), net(inputs))


@pytest.mark.parametrize("kind", [Padded, Plain])
def test_a_forward_that_does_more_or_computes_nothing_is_left(kind: type[nn.Conv2d]) -> None:
    net = nn.Sequential(kind(2, 3, 3))
    weight = net[0].weight
    make_plain(net)
    assert type(net[0]) is kind and net[0].weight is weight


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_norms_of_weights_by_hooks(norm: Callable[..., nn.Module]) -> None:
    net, inputs = nn.Sequential(norm(nn.Linear(4, 3))).eval(), torch.randn(5, 4)
    expected = net(inputs)
    make_plain(net)
    assert not net[0]._forward_pre_hooks and sorted(net.state_dict()) == ["0.bias", "0.weight"]
    torch.testing.assert_close(net(inputs), expected)
