# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Which strategy is taken, and that either finds what there is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.search.probabilities.model_prior import independent
from pyro_bmrs.search.strategies.normal_search import search_normal
from tests import conjugate
from tests.search.regression import every_model
from tests.search.spaces import REDUCED, normal_space, reduced_to

pytestmark = pytest.mark.usefixtures("double")


def even(odds: float = 0.0):
    return independent(torch.full((4,), odds, dtype=torch.float64))


@pytest.mark.parametrize("kind", REDUCED)
def test_models_counted_through_are_as_their_exact_evidences(exact_guide, kind):
    guide, x, y = exact_guide()
    models, strategy = search_normal(normal_space(guide, kind), even(), "auto", 16, False)
    assert strategy == "exhaustive" and models.num_models == 16
    states = torch.tensor(every_model(4))
    evidence = torch.stack([conjugate.log_evidence(x, y, *reduced_to(kind, reduced)) for reduced in states])
    torch.testing.assert_close(models.delta_evidence, evidence - evidence[0], rtol=0, atol=1e-8)
    alone = evidence[2 ** torch.arange(4)] - evidence[0]
    torch.testing.assert_close(models.alone, alone, rtol=0, atol=1e-8)


@pytest.mark.parametrize("odds", [0.0, 1.5, -1.5])
def test_a_greedy_search_of_few_groups_knows_all_models(exact_guide, odds):
    space = normal_space(exact_guide()[0], "normal")
    counted, _ = search_normal(space, even(odds), "exhaustive", 16, False)
    searched, strategy = search_normal(space, even(odds), "greedy", 15, False)
    assert strategy == "greedy" and searched.num_models == 16
    one, other = counted.top(16), searched.top(16)
    assert torch.equal(one.reduced, other.reduced)
    torch.testing.assert_close(one.delta_evidence, other.delta_evidence, rtol=0, atol=1e-8)
    torch.testing.assert_close(one.probability, other.probability, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(counted.alone, searched.alone, rtol=0, atol=1e-8)


def test_too_many_models_to_count_are_told_with_the_ways_out(exact_guide):
    space = normal_space(exact_guide()[0], "normal")
    with pytest.raises(ReductionError, match=r"4 groups make 2\^4 = 16 models, more than max_models=15.*greedy"):
        search_normal(space, even(), "exhaustive", 15, False)


@pytest.mark.parametrize("strategy", ["exhaustive", "greedy", "sample"])
def test_a_covariance_that_is_singular_is_told(exact_guide, strategy):
    space = normal_space(exact_guide()[0], "point")
    # The third coefficient is twice the first.
    rows = space.rows.clone()
    rows[2] = 2 * rows[0]
    with pytest.raises(ReductionError, match="singular to rounding"):
        search_normal(replace(space, rows=rows), even(50.0), strategy, 16, False)
