# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    Classification,
    attach_noise,
    compact,
    noise_sites,
)
from pyro_bmrs.pruning.compression.budget import Budget, knapsack, prune_within, within_target


def best_by_force(values, costs, capacity):
    choices = itertools.product([False, True], repeat=len(values))
    return max(
        sum(itertools.compress(values, choice))
        for choice in choices
        if sum(itertools.compress(costs, choice)) <= capacity
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_knapsack_is_the_best_there_is(seed):
    draw = random.Random(seed)
    values = [draw.uniform(0, 10) for _ in range(10)]
    costs = [draw.randint(1, 30) for _ in range(10)]
    capacity = draw.randint(10, 120)
    chosen = knapsack(values, costs, capacity)
    assert sum(itertools.compress(costs, chosen)) <= capacity
    assert sum(itertools.compress(values, chosen)) == pytest.approx(best_by_force(values, costs, capacity))


def test_a_knapsack_of_real_numbers_is_as_good_but_for_rounding():
    draw = random.Random(1)
    values = [draw.uniform(0, 10) for _ in range(12)]
    costs = [draw.uniform(100.0, 3000.0) for _ in range(12)]
    chosen = knapsack(values, costs, 9000.0)
    assert sum(itertools.compress(costs, chosen)) <= 9000.0 * (1 + 12 / 8192)
    assert sum(itertools.compress(values, chosen)) >= best_by_force(values, costs, 9000.0 * (1 - 12 / 8192))


def test_what_costs_less_the_fewer_there_are():
    """Units of two layers, whose weights between them are a product."""
    draw = random.Random(2)
    worth = [draw.uniform(0, 1) for _ in range(80)]

    def measure(items):
        first, second = sum(items[:40]), sum(items[40:])
        return 10 * first + first * second + 2 * second

    target = 0.3 * measure([True] * 80)
    items = within_target(worth, [50.0] * 40 + [42.0] * 40, measure, target)
    assert 0.97 * target <= measure(items) <= target
    assert within_target(worth, [1.0] * 80, lambda items: 5.0, 4.0) is None
    assert within_target(worth, [1.0] * 80, sum, 100) == [True] * 80


@pytest.mark.parametrize(
    "budget",
    [
        {"parameters": 1.5},
        {"parameters": 0.0},
        {"parameters": -3},
        {"macs": math.nan},
        {"macs": math.inf},
        {"latency": True},
        {"latency": "half"},
        {"flops": 0.5},
        {"macs": 0.5, "parameters": 0.5},
        {},
        0.5,
    ],
)
def test_budgets_that_are_none(budget):
    with pytest.raises(ReductionError, match="budget|limit"):
        Budget.of(budget)


def test_shares_and_numbers():
    assert Budget.of({"parameters": 1.0}).target(200.0) == 200
    assert Budget.of({"parameters": 7}).target(200.0) == 7


@pytest.fixture
def fitted():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 60), nn.ReLU(), nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 3))
    model = Classification(attach_noise(net), 500)
    guide = AutoTruncatedLogNormal(model)
    guide.noise_locs.data.uniform_(-1.0, -0.1)
    x = torch.randn(200, 10)
    return model, guide, [(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())]


@pytest.mark.parametrize("kind", ["parameters", "macs"])
def test_a_budget_is_met(fitted, kind):
    model, guide, batches = fitted
    example = batches[0][0][:1]
    budget = Budget.of({kind: 0.25})
    whole = budget.cost(compact(model.net, guide, example), example)
    prune_within(model, guide, batches, budget, budget.target(whole))
    share = budget.cost(compact(model.net, guide, example), example) / whole
    assert 0.24 < share <= 0.25


def test_what_is_worth_most_is_left(fitted):
    """Of units that cost the same, those without which the data lose most: here, the ones that are not switched off."""
    model, guide, batches = fitted
    model.net[2].weight.data[:, ::2] = 0
    example = batches[0][0][:1]
    budget = Budget.of({"parameters": 0.3})
    prune_within(model, guide, batches, budget, budget.target(budget.cost(compact(model.net, guide, example), example)))
    assert not noise_sites(model.net)["0"].noise.kept[::2].any()


def test_a_budget_that_cannot_be_met(fitted):
    model, guide, batches = fitted
    with pytest.raises(ReductionError, match="one unit at each site"):
        prune_within(model, guide, batches, Budget.of({"parameters": 5}), 5)
    assert all(site.noise.kept.all() for site in noise_sites(model.net).values())
