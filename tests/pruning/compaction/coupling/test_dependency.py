# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Multiplications take part in torch-pruning's graph, and lose their factors with their channels."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.coupling.dependency import dependency_graph, torch_pruning
from pyro_bmrs.pruning.compaction.modules.scaling import Scale


def chain(dim: int | None = -1) -> nn.Sequential:
    factor = torch.tensor([0.0, 1.0, 2.0, 3.0]) if dim is not None else torch.ones(1)
    return nn.Sequential(nn.Linear(3, 4), Scale(factor, dim), nn.ReLU(), nn.Linear(4, 2))


def test_a_multiplication_goes_with_the_layers_around_it() -> None:
    net = chain()
    graph = dependency_graph(net, torch.ones(1, 3))
    scale = net[1]
    group = graph.get_pruning_group(scale, graph.get_pruner_of_module(scale).prune_out_channels, [0, 2])
    group.prune()
    assert scale.factor.tolist() == [1.0, 3.0]
    assert net[0].out_features == net[3].in_features == 2
    assert net(torch.ones(5, 3)).shape == (5, 2)


def test_a_multiplication_by_one_factor_has_no_channels() -> None:
    net = chain(None)
    graph = dependency_graph(net, torch.ones(1, 3))
    pruner = graph.get_pruner_of_module(net[1])
    assert pruner.get_out_channels(net[1]) is None
    graph.get_pruning_group(net[0], torch_pruning().prune_linear_out_channels, [1]).prune()
    assert net[1].factor.tolist() == [1.0] and net[3].in_features == 3


def test_frozen_parameters_are_seen() -> None:
    net = chain().requires_grad_(False)
    assert net[3] in dependency_graph(net, torch.ones(1, 3)).module2node
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_training_goes_on_as_before() -> None:
    net = chain().append(nn.BatchNorm1d(2)).train()
    before = net[-1].running_mean.clone()
    dependency_graph(net, torch.ones(2, 3))
    assert net.training and torch.equal(net[-1].running_mean, before)


def test_a_network_that_cannot_be_followed() -> None:
    class Raises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(self.layer(inputs).numpy())

    with pytest.raises(ReductionError, match="torch-pruning cannot follow"):
        dependency_graph(Raises(), torch.ones(1, 2))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match=r"pyro_bmrs\[pruning\]"):
        torch_pruning()
