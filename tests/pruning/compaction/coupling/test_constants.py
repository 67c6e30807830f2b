# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What layers are given that does not depend on the network's input, and biases that take it over."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.compaction.coupling.constants import constant_inputs
from pyro_bmrs.pruning.compaction.modules.scaling import Scale
from pyro_bmrs.pruning.layers import absorb, can_absorb

nan = torch.nan


@pytest.mark.parametrize(
    "between, constant",
    [
        (nn.Identity(), 0.0),
        (nn.ReLU(), 0.0),
        (nn.Tanh(), 0.0),
        (nn.Sigmoid(), 0.5),
        (nn.ELU(), 0.0),
        (nn.Softmax(-1), nan),
    ],
)
def test_a_pruned_unit_behind_an_activation(between: nn.Module, constant: float) -> None:
    net = nn.Sequential(nn.Linear(3, 2), Scale(torch.tensor([0.0, 1.0]), -1), between, nn.Linear(2, 1))
    found = constant_inputs(net, ["3"], torch.randn(4, 3))["3"]
    assert torch.allclose(found, torch.tensor([constant, nan]), equal_nan=True)


class Sum(nn.Module):
    """A residual sum of which one summand is pruned, and a product of which one factor is."""

    def __init__(self, is_product: bool) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 1)
        self.scale, self.is_product = Scale(torch.tensor([0.0, 1.0]), -1), is_product

    def forward(self, inputs: Tensor) -> Tensor:
        one, other = self.scale(self.one(inputs)), self.other(inputs)
        return self.last(one * other if self.is_product else one + other)


@pytest.mark.parametrize("is_product, constant", [(False, nan), (True, 0.0)])
def test_sums_and_products(is_product: bool, constant: float) -> None:
    found = constant_inputs(Sum(is_product), ["last"], torch.randn(4, 3))["last"]
    assert torch.allclose(found, torch.tensor([constant, nan]), equal_nan=True)


def test_a_unit_that_is_silent_on_the_examples_is_no_constant() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    net[0].bias.data[:] = -100.0
    assert constant_inputs(net, ["2"], torch.randn(4, 3))["2"].isnan().all()


def test_a_constant_that_differs_between_places_is_none() -> None:
    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.arange(8.0).reshape(4, 2))
            self.scale, self.last = Scale(torch.zeros(2), -1), nn.Linear(2, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.last(self.scale(inputs) + self.positions)

    assert constant_inputs(Positioned(), ["last"], torch.randn(3, 4, 2))["last"].isnan().all()


def test_tokens_have_no_nan_and_are_no_constants() -> None:
    net = nn.Sequential(nn.Embedding(5, 2), Scale(torch.tensor([0.0, 1.0]), -1), nn.Linear(2, 1))
    found = constant_inputs(net, ["2"], torch.tensor([[1, 1]]))["2"]
    assert torch.equal(found.isnan(), torch.tensor([False, True]))


class Batch(UserDict[str, Tensor]):
    """Inputs as a tokenizer returns them."""


class Graph:
    """Inputs as attributes of an object."""

    def __init__(self, **tensors: Tensor) -> None:
        self.store = [tensors]
        self.itself = self

    @property
    def nodes(self) -> Tensor:
        return self.store[0]["nodes"]


@pytest.mark.parametrize("inputs", [{"nodes": torch.ones(2, 3)}, Batch(nodes=torch.ones(2, 3)), [torch.ones(2, 3)]])
def test_inputs_of_any_kind_are_no_constants(inputs: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 1)

        def forward(self, nodes: Any) -> Tensor:
            return self.last(nodes.nodes if isinstance(nodes, Graph) else nodes)

    assert constant_inputs(Net(), ["last"], inputs)["last"].isnan().all()
    assert constant_inputs(Net(), ["last"], Graph(nodes=torch.ones(2, 3)))["last"].isnan().all()


@pytest.mark.parametrize(
    "reader, shape",
    [
        (nn.Linear(4, 3), (2, 4)),
        (nn.Linear(4, 3, bias=False), (2, 5, 4)),
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
        (nn.Conv1d(4, 2, 3, padding=1, padding_mode="circular", bias=False), (2, 4, 6)),
        (nn.Conv2d(4, 4, 1, groups=4), (2, 4, 2, 2)),
    ],
)
def test_a_bias_takes_over_constants(reader: Any, shape: tuple[int, ...]) -> None:
    inputs, constants = torch.randn(shape), torch.tensor([0.5, nan, -2.0, nan])
    dim = -1 if isinstance(reader, nn.Linear) else 1
    constant = torch.tensor([0, 2])
    index = [1] * inputs.dim()
    index[dim] = 2
    inputs = inputs.index_copy(
        dim, constant, constants[constant].reshape(index).expand_as(inputs.index_select(dim, constant))
    )
    expected = reader(inputs)
    assert can_absorb(reader)
    absorb(reader, [0, 2], constants)
    assert torch.allclose(reader(inputs.index_fill(dim, constant, 0.0)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "reader", [nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding="same"), nn.ConvTranspose2d(2, 2, 2)]
)
def test_no_bias_takes_over_constants_beside_padded_zeros(reader: nn.Module) -> None:
    assert not can_absorb(reader)
