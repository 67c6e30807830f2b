# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Priors of models, against SciPy and what they say in words."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import betabinom

from pyro_bmrs import ReductionError
from pyro_bmrs.search import beta_binomial
from pyro_bmrs.search.groups import Groups
from pyro_bmrs.search.probabilities.model_prior import independent, read_model_prior, subset_sums
from tests.search.regression import every_model

GROUPS = Groups(("a", "b", "c", "d"), {}, ("always",))
EVERY = torch.tensor(every_model(4))
ODDS = torch.tensor([0.3, -1.0, 0.0, 2.0], dtype=torch.double)


def test_sizes_have_the_probabilities_of_scipy():
    prior = read_model_prior(GROUPS, torch.zeros(4, dtype=torch.double), beta_binomial(0.7, 2.5), None)
    of_sizes = [prior.log_prob(EVERY[(~EVERY).sum(-1) == kept]).exp().sum().item() for kept in range(5)]
    np.testing.assert_allclose(of_sizes, betabinom.pmf(range(5), 4, 0.7, 2.5), rtol=1e-10)


@pytest.mark.parametrize("by_size", [None, beta_binomial(1, 4)])
@pytest.mark.parametrize("heredity", [None, {"a": "d"}, {"d": ["a", "c"], "b": "a"}])
def test_all_models_listed_are_as_each_alone(by_size, heredity):
    prior = read_model_prior(GROUPS, ODDS, by_size, heredity)
    torch.testing.assert_close(prior.of_all(), prior.log_prob(EVERY))
    assert prior.is_product == (by_size is None and heredity is None)


def test_a_group_goes_with_what_it_needs():
    prior = read_model_prior(GROUPS, ODDS, None, {"d": ["a", "c"], "b": "always"})
    allowed = prior.log_prob(EVERY) > -math.inf
    assert torch.equal(allowed, EVERY[:, 3] | ~(EVERY[:, 0] | EVERY[:, 2]))
    assert torch.equal(independent(ODDS).log_prob(EVERY), subset_sums(ODDS))


@pytest.mark.parametrize(
    ("by_size", "heredity", "message"),
    [
        ("even", None, "model_prior is 'even'; give pyro_bmrs.search.beta_binomial"),
        (None, {"e": "a"}, "the space has no group 'e'"),
        (None, {"a": ["e"]}, "the space has no group 'e'"),
        (None, {"always": "a"}, "'always' always stays, but .'a'., which it needs, may go"),
    ],
)
def test_what_is_no_prior_is_told(by_size, heredity, message):
    with pytest.raises(ReductionError, match=message):
        read_model_prior(GROUPS, ODDS, by_size, heredity)


@pytest.mark.parametrize("a", [0.0, -1.0, math.nan])
def test_parameters_are_positive(a):
    with pytest.raises(ReductionError, match="a of beta_binomial is a finite number above 0"):
        beta_binomial(a, 1.0)
