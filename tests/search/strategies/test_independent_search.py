# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Independent posteriors under priors of models that are not, against sums over all subsets by NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, init_to_value
from scipy.stats import betabinom

from pyro_bmrs import ReductionError, search_models
from pyro_bmrs.search import beta_binomial
from pyro_bmrs.search.groups import Groups
from pyro_bmrs.search.probabilities.model_prior import independent, read_model_prior
from pyro_bmrs.search.strategies.independent_search import search_independent

ALONE = torch.tensor([0.8, -0.4, 1.5, -2.0, 0.1], dtype=torch.double)
GROUPS = Groups(tuple("abcde"), {})


def prior(kind):
    by_size, heredity = {"size": (beta_binomial(2, 5), None), "heredity": (None, {"c": ["a", "b"]})}[kind]
    return read_model_prior(GROUPS, torch.full_like(ALONE, 0.2), by_size, heredity)


def exact(kind):
    """Inclusion probabilities by the sum over all subsets."""
    total, included = 0.0, np.zeros(5)
    for reduced in itertools.product((False, True), repeat=5):
        kept = ~np.array(reduced)
        weight = np.exp(((ALONE.numpy() + 0.2) * ~kept).sum())
        if kind == "size":
            ways = len(list(itertools.combinations(range(5), int(kept.sum()))))
            weight *= betabinom.pmf(kept.sum(), 5, 2, 5) / ways
        elif kept[2] and not (kept[0] and kept[1]):
            weight = 0.0
        total, included = total + weight, included + weight * kept
    return included / total


@pytest.mark.parametrize("kind", ["size", "heredity"])
def test_inclusion_is_that_of_all_subsets(kind):
    models, strategy = search_independent(ALONE, prior(kind), "auto", 32, False, 10)
    assert strategy == "exhaustive"
    np.testing.assert_allclose(models.inclusion_probability, exact(kind), rtol=1e-10)
    drawn, strategy = search_independent(ALONE, prior(kind), "auto", 31, False, 300)
    assert strategy == "sample"
    np.testing.assert_allclose(drawn.inclusion_probability, exact(kind), atol=0.03)


def test_an_independent_prior_needs_no_search():
    models, strategy = search_independent(ALONE, independent(torch.zeros_like(ALONE)), "auto", 1, False, 10)
    assert strategy == "factorised"
    torch.testing.assert_close(models.inclusion_probability, torch.sigmoid(-ALONE))


def test_what_cannot_be_had_is_told():
    with pytest.raises(ReductionError, match="take strategy='sample'"):
        search_independent(ALONE, prior("size"), "greedy", 32, False, 10)
    with pytest.raises(ReductionError, match="more than max_models=31"):
        search_independent(ALONE, prior("size"), "exhaustive", 31, False, 10)


def two():
    pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_the_average_of_a_dependent_prior_has_the_joint_mass_of_all_models():
    guide = AutoNormal(two, init_scale=0.5, init_loc_fn=init_to_value(values={"w": torch.tensor([0.2, 0.5])}))
    guide()
    space = search_models(guide, dist.Delta(torch.tensor(0.0)), model_prior=beta_binomial(0.3, 0.3))
    average = space.average()["w"]
    top = space.top(4)
    both = top.probability[top.reduced.all(-1)].sum()
    torch.testing.assert_close(average.log_prob(torch.zeros(2)).exp().double(), both, rtol=1e-5, atol=0)
    drawn = average.sample((4000,)) == 0
    assert drawn.all(-1).double().mean().item() == pytest.approx(float(both), abs=0.05)
    # Two elements that are kept or go together are not what two coins would give.
    kept = space.inclusion_probability["w"]
    assert abs(float(both - (1 - kept).prod())) > 0.01
