# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Walks of several models at once, beside the sweep of each alone."""

from __future__ import annotations

import pytest
import torch

from pyro_bmrs.search.probabilities.model_prior import subset_sums
from pyro_bmrs.search.strategies.greedy import Observed, Sweep
from pyro_bmrs.search.strategies.walks import IndependentWalk, SweptWalk


def observed(label: list[int]) -> Observed:
    half = torch.randn(len(label), len(label), dtype=torch.double)
    constants = torch.randn(max(label) + 1, dtype=torch.double)
    eye = torch.eye(len(label), dtype=torch.double)
    residual = torch.randn(len(label), dtype=torch.double)
    return Observed(half @ half.mT + 0.3 * eye, residual, constants, torch.tensor(label))


@pytest.mark.parametrize("label", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 2, 2, 3]])
def test_a_walk_knows_what_a_sweep_of_each_model_does(label):
    problem = observed(label)
    count = len(problem.constants)
    walk = SweptWalk(problem, torch.rand(3, count) < 0.5)
    pairs = torch.combinations(torch.arange(count)).unbind(-1)
    for _ in range(210):  # beyond where it is computed anew
        walk.flip(torch.tensor([0, 2]), torch.randint(count, (2,)))
    for number, reduced in enumerate(walk.reduced):
        sweep = Sweep(problem, reduced)
        torch.testing.assert_close(walk.score[number], sweep.score, atol=1e-8, rtol=0)
        torch.testing.assert_close(walk.changes()[number], sweep.changes(), atol=1e-8, rtol=0)
        for found, one, other in zip(walk.pair_changes(*pairs)[number], *pairs):
            twin = Sweep(problem, reduced)
            twin.flip(int(one))
            twin.flip(int(other))
            torch.testing.assert_close(found, twin.score - sweep.score, atol=1e-7, rtol=0)


def test_independent_groups_add_up():
    alone = torch.randn(4, dtype=torch.double)
    walk = IndependentWalk(alone, torch.zeros(2, 4, dtype=torch.bool))
    torch.testing.assert_close(walk.pair_changes(torch.tensor([0]), torch.tensor([3]))[:, 0], alone[[0, 0]] + alone[3])
    walk.flip(torch.tensor([0, 1]), torch.tensor([1, 2]))
    walk.flip(torch.tensor([0]), torch.tensor([3]))
    torch.testing.assert_close(walk.score, subset_sums(alone)[[2 + 8, 4]])
    torch.testing.assert_close(walk.changes()[0], alone * torch.tensor([1.0, -1.0, 1.0, -1.0]))
