# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Parameters and multiply-accumulate operations, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_bmrs.pruning.compaction.reporting.cost import compare_costs, cost
from tests.pruning.networks import make


@pytest.mark.parametrize(
    "net, shape, macs",
    [
        (nn.Linear(10, 5), (3, 10), 3 * 10 * 5),
        (nn.Conv2d(2, 4, 3), (1, 2, 10, 10), 4 * 2 * 9 * 64),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (1, 4, 8, 8), 8 * 2 * 9 * 16),
        (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5), 2 * 4 * 9 * 9),
    ],
)
def test_multiply_accumulate_operations_of_one_layer(net: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    table = cost(net, torch.randn(shape))
    assert table["macs"].tolist() == [macs]
    assert table["parameters"].tolist() == [sum(parameter.numel() for parameter in net.parameters())]


def test_attention_counts_its_products() -> None:
    net, inputs = make("vit")
    table = cost(net, inputs)
    # Scores and sums of values: of 5 tokens with 5 tokens, in 12 features, of 2 examples.
    assert table.loc["blocks.0.attn", "macs"] == 2 * 2 * 5 * 5 * 12
    assert table["parameters"].sum() == sum(parameter.numel() for parameter in net.parameters())


def test_a_module_is_counted_without_those_in_it() -> None:
    class Both(nn.Linear):
        """A layer with another in it."""

        def __init__(self) -> None:
            super().__init__(3, 3)
            self.inner = nn.Linear(3, 2, bias=False)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.inner(super().forward(inputs))

    table = cost(nn.Sequential(Both()), torch.ones(1, 3))
    assert table.loc["0"].tolist() == [12, 9] and table.loc["0.inner"].tolist() == [6, 6]
    assert table.index.tolist() == ["0", "0.inner"]


def test_a_view_of_a_parameter_as_what_a_module_is_given() -> None:
    class Token(nn.Module):
        """A class token, of which a layer is given as many as there are examples."""

        def __init__(self) -> None:
            super().__init__()
            self.token, self.frozen = nn.Parameter(torch.ones(1, 3)), nn.Parameter(torch.ones(2), requires_grad=False)
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.layer(self.token.expand(len(inputs), -1)) + inputs

    net = Token()
    assert cost(net, torch.ones(5, 2, requires_grad=True)).loc["layer", "macs"] == 5 * 3 * 2
    assert [parameter.requires_grad for parameter in net.parameters()] == [True, False, True, True]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_products_of_recurrent_layers(kind: type[nn.Module]) -> None:
    before = torch.backends.mkldnn.enabled
    gates = 4 if kind is nn.LSTM else 3
    table = cost(nn.Sequential(kind(3, 5)), torch.ones(7, 2, 3))
    assert table.loc["0", "macs"] == 7 * 2 * gates * 5 * (3 + 5) and torch.backends.mkldnn.enabled is before


def test_side_by_side() -> None:
    before = cost(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.ones(1, 4))
    after = cost(nn.Sequential(nn.Linear(4, 2), nn.Identity(), nn.Linear(2, 1)), torch.ones(1, 4))
    table = compare_costs(before, after)
    assert table.loc["0"].tolist() == [15, 10, 12, 8]
    # One that is gone, and one that is new.
    assert table.loc["1"].tolist() == [8, 0, 6, 0] and table.loc["2"].tolist() == [0, 3, 0, 2]
