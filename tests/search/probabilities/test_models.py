# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pyro_bmrs.search.probabilities.model_prior import independent, subset_sums
from pyro_bmrs.search.probabilities.models import IndependentModels, ListedModels


def listed(delta_evidence: torch.Tensor, log_odds: torch.Tensor) -> ListedModels:
    count = len(log_odds)
    none, ones = torch.zeros(count, dtype=torch.bool), torch.ones(count, dtype=torch.double)
    return ListedModels(delta_evidence, independent(log_odds), none, torch.arange(count), ones, ones)


@pytest.mark.parametrize("odds", [0.0, 1.3])
def test_independent_groups_are_as_all_their_models_listed(odds):
    alone = torch.randn(7, dtype=torch.double)
    log_odds = torch.full_like(alone, odds)
    models, others = IndependentModels(alone, independent(log_odds)), listed(subset_sums(alone), log_odds)
    assert models.num_models == others.num_models == 128
    torch.testing.assert_close(models.inclusion_probability, others.inclusion_probability)
    for found, expected in zip(models.top(128), others.top(128)):
        torch.testing.assert_close(found, expected)
    assert models.top(128).probability.sum().item() == pytest.approx(1.0)
    assert len(models.top(5).reduced) == 5


def test_probabilities_are_those_of_numpy():
    delta, log_odds = torch.randn(8, dtype=torch.double) * 3, torch.tensor([0.5, -1.0, 2.0], dtype=torch.double)
    models = listed(delta, log_odds)
    states = np.array([[index >> bit & 1 for bit in range(3)] for index in range(8)])
    weight = np.exp(delta.numpy() + states @ log_odds.numpy())
    probability = weight / weight.sum()
    order = np.argsort(-probability)
    top = models.top(8)
    np.testing.assert_array_equal(top.reduced.numpy(), states[order] == 1)
    np.testing.assert_allclose(top.probability, probability[order], rtol=1e-12)
    np.testing.assert_allclose(models.inclusion_probability, probability @ (1 - states), rtol=1e-12)


def test_the_best_of_2_to_the_thousand_models_come_at_once():
    alone = torch.linspace(-30, 30, 1000, dtype=torch.double)
    models = IndependentModels(alone, independent(torch.zeros_like(alone)))
    top = models.top(50)
    cost = alone.abs().sort().values[:12]
    costs = sorted(sum(c) for r in range(13) for c in itertools.combinations(cost.tolist(), r))[:50]
    expected = torch.nn.functional.logsigmoid(alone.abs()).sum() - torch.tensor(costs, dtype=torch.double)
    torch.testing.assert_close(top.probability.log(), expected)
    assert models.num_models == 2**1000


def test_a_group_that_cannot_be_reduced_keeps_its_prior_in_every_model():
    alone = torch.tensor([0.0, -math.inf], dtype=torch.double)
    models = IndependentModels(alone, independent(torch.zeros_like(alone)))
    assert models.inclusion_probability.tolist() == [0.5, 1.0]
    top = models.top(10)
    assert top.reduced.tolist() == [[False, False], [True, False]]
    assert top.probability.tolist() == [0.5, 0.5]
    assert top.delta_evidence.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["independent", "listed"])
def test_models_are_drawn_as_often_as_they_are_probable(kind):
    alone = torch.tensor([0.3, -0.5, 1.0], dtype=torch.double)
    log_odds = torch.zeros_like(alone)
    models = (
        IndependentModels(alone, independent(log_odds))
        if kind == "independent"
        else listed(subset_sums(alone), log_odds)
    )
    drawn = models.sample(40_000)
    index = drawn.long() @ 2 ** torch.arange(3)
    share = torch.bincount(index, minlength=8) / len(drawn)
    expected = torch.softmax(subset_sums(alone), 0)
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / len(drawn)).sqrt()).all()
