# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Units go in the order of what speaks for it, tied ones together, and never the last of a layer."""

from __future__ import annotations

import torch
from torch import nn

from pyro_bmrs.pruning import attach_noise, noise_sites
from pyro_bmrs.pruning.selection.order import removal_order, rescue, unit_groups


def mlp() -> nn.Module:
    return attach_noise(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)))


class Residual(nn.Module):
    """A branch that may go as a whole, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        return self.last(x + self.branch(x))


UNITS = [("0", 0), ("0", 1), ("2", 0), ("2", 1), ("2", 2)]


def test_every_unit_stands_alone_where_nothing_says_that_it_is_tied() -> None:
    assert unit_groups(mlp()) == [[unit] for unit in UNITS]


def test_units_that_a_grouped_convolution_ties_are_one_group() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 3, 1))
    groups = unit_groups(attach_noise(net, "0"), torch.ones(1, 1, 2, 2))
    assert groups == [[("0", 0), ("0", 2)], [("0", 1), ("0", 3)]]
    assert sorted(unit for group in unit_groups(net, torch.ones(1, 1, 2, 2)) for unit in group) == sorted(
        unit for group in unit_groups(net) for unit in group
    )


def test_what_speaks_for_tied_units_is_added() -> None:
    net = mlp()
    margins = {"0": torch.tensor([1.0, 2.0]), "2": torch.tensor([-4.0, 1.5, 0.0])}
    groups = [[("0", 0), ("2", 0)], [("0", 1)], [("2", 1), ("2", 2)]]
    assert removal_order(net, margins, groups) == [
        ([("0", 1)], 2.0),
        ([("2", 1), ("2", 2)], 1.5),
        ([("0", 0), ("2", 0)], -3.0),
    ]


def test_of_scores_that_only_rank_the_mean_of_tied_units_counts() -> None:
    """A lone unit of 0.6 stays where tied ones of 0.3 go, however many they are."""
    net = mlp()
    margins = {"0": torch.tensor([-0.3, -0.6]), "2": torch.tensor([-0.3, -0.3, -0.2])}
    groups = [[("0", 0), ("2", 0), ("2", 1)], [("0", 1)], [("2", 2)]]
    order = removal_order(net, margins, groups, adds=False)
    assert [group for group, _ in order] == [groups[2], groups[0], groups[1]]
    assert [group for group, _ in removal_order(net, margins, groups)] == [groups[2], groups[1], groups[0]]


def test_units_that_are_gone_have_no_place_in_the_order() -> None:
    net = mlp()
    noise_sites(net)["2"].noise.kept[1:] = False
    margins = {"0": torch.tensor([1.0, 2.0]), "2": torch.tensor([-4.0, 9.0, 9.0])}
    groups = [[("0", 0), ("2", 1)], [("0", 1)], [("2", 0)], [("2", 2)]]
    assert removal_order(net, margins, groups) == [([("0", 1)], 2.0), ([("0", 0)], 1.0), ([("2", 0)], -4.0)]


def test_the_last_to_go_of_a_layer_stays() -> None:
    order = [[("0", 1)], [("2", 2)], [("0", 0)], [("2", 0)], [("2", 1)]]
    assert rescue(mlp(), order, order) == ([[("0", 1)], [("2", 2)], [("2", 0)]], [("2", 1), ("0", 0)])
    assert rescue(mlp(), order, order[:2]) == (order[:2], [])


def test_what_is_tied_to_a_unit_that_stays_stays_too() -> None:
    order = [[("0", 1)], [("2", 2)], [("2", 1)], [("0", 0), ("2", 0)]]
    going, stays = rescue(mlp(), order, order)
    assert going == [[("0", 1)], [("2", 2)], [("2", 1)]] and stays == [("0", 0), ("2", 0)]
    # Since the first of the tied units stays for its own layer, no other of the second layer has to.
    assert rescue(mlp(), order, [order[0], order[3]]) == ([order[0]], [("0", 0)])


def test_a_block_may_go_as_a_whole() -> None:
    net = attach_noise(Residual(), kinds=("units", "block"))
    (block,) = (name for name, site in noise_sites(net).items() if site.kind == "block")
    order = [[("first", 0)], [(block, 0)], [("first", 1)]]
    assert rescue(net, order, order) == (order[:2], [("first", 1)])
