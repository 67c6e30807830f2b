# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models drawn at random, against all models counted through."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import ReductionWarning, search_models
from pyro_bmrs.search import beta_binomial
from pyro_bmrs.search.groups import Groups
from pyro_bmrs.search.probabilities.model_prior import independent, read_model_prior
from pyro_bmrs.search.strategies.exhaustive import evidence_of_all
from pyro_bmrs.search.strategies.greedy import Observed, climb, climb_from_several, starts
from pyro_bmrs.search.strategies.sampling import exchangeable_pairs, visit
from pyro_bmrs.search.strategies.walks import IndependentWalk, SweptWalk
from tests.search.regression import every_model, regression

POINT = {"weights": dist.Delta(torch.tensor(0.0, dtype=torch.double))}
PRIORS = {
    "even": {},
    "size": {"model_prior": beta_binomial(1, 3), "prior_log_odds": 0.7},
    "heredity": {"heredity": {"weights[7]": ["weights[0]", "weights[1]"], "weights[6]": "weights[5]"}},
}


@pytest.fixture(scope="module")
def problem():
    yield regression(8, seed=3)
    torch.set_default_dtype(torch.float)


@pytest.mark.parametrize("prior", PRIORS)
def test_inclusion_probabilities_are_within_their_errors_and_models_as_probable(problem, prior):
    whole = search_models(problem.guide, POINT, **PRIORS[prior])
    drawn = search_models(problem.guide, POINT, strategy="sample", num_steps=100, **PRIORS[prior])
    assert (whole.strategy, drawn.strategy) == ("exhaustive", "sample")
    exact, found = (space.inclusion_probability["weights"] for space in (whole, drawn))
    error = drawn.inclusion_error["weights"]
    assert 0 < error.max() < 0.05
    assert ((found - exact).abs() < 5 * error + 1e-3).all()
    best, other = whole.top(1), drawn.top(1)
    assert torch.equal(best.reduced, other.reduced)
    torch.testing.assert_close(best.delta_evidence, other.delta_evidence, atol=1e-8, rtol=0)
    torch.testing.assert_close(best.probability, other.probability, rtol=0.1, atol=0)
    assert 0.8 < float(drawn.top(2**8).probability.sum()) <= 1 + 1e-9
    assert "inclusion_error" in drawn.summary() and "inclusion_error" not in whole.summary()


def test_the_average_over_models_drawn_is_that_over_all(problem):
    whole = search_models(problem.guide, POINT).average()["weights"]
    drawn = search_models(problem.guide, POINT, strategy="sample", num_steps=100).average()["weights"]
    torch.testing.assert_close(drawn.mean, whole.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.stddev, whole.stddev, atol=0.02, rtol=0)


def test_the_best_of_a_design_of_few_factors_is_found_where_a_climb_misses_it():
    """Sixteen covariates that are three causes but for a little noise; the climb ends 0.97 nats below the best."""
    generator = torch.Generator().manual_seed(6)
    causes, loadings, noise, effects, rest = (
        torch.randn(shape, generator=generator).double() for shape in [(60, 3), (3, 16), (60, 16), (3,), (60,)]
    )
    x, y = causes @ loadings + 0.2 * noise, causes @ effects + 0.5 * rest
    covariance = torch.linalg.inv(x.T @ x / 0.25 + torch.eye(16).double())
    zero = torch.zeros(16, dtype=torch.double)
    observed = Observed(covariance, -covariance @ x.T @ y / 0.25, zero, torch.arange(16))
    evidence = evidence_of_all(observed.covariance, observed.residual, zero, [1] * 16)
    climbed = max((climb(observed, start) for start in starts(observed)), key=lambda sweep: float(sweep.score))
    assert float(evidence.max() - climbed.score) == pytest.approx(0.97, abs=0.01)
    # From around it they find the best.
    assert float(climb_from_several(observed).score) == pytest.approx(float(evidence.max()), abs=1e-8)
    alike = covariance.abs() / covariance.diagonal().sqrt() / covariance.diagonal().sqrt().unsqueeze(-1)
    begin = [~climbed.reduced, climbed.reduced]
    found = visit(
        lambda at: SweptWalk(observed, at), begin, independent(zero), exchangeable_pairs(alike), zero, num_steps=150
    )
    assert float(found.delta_evidence.max()) == pytest.approx(float(evidence.max()), abs=1e-8)
    kept = ~torch.tensor(every_model(16))
    exact = torch.softmax(evidence, 0) @ kept.double()
    assert ((found.inclusion_probability - exact).abs() < 5 * found.inclusion_error + 0.01).all()


def test_walks_that_do_not_agree_say_so():
    # Of three groups that need each other all stay or all go, which no flip of one or two can do.
    alone, groups = torch.zeros(3, dtype=torch.double), Groups(("a", "b", "c"), {})
    circle = {"a": ["b", "c"], "b": ["c", "a"], "c": ["a", "b"]}
    prior = read_model_prior(groups, torch.zeros_like(alone), None, circle)
    apart, none = [torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)], torch.zeros(0, dtype=torch.long)
    with pytest.warns(ReductionWarning, match="walks through the models do not agree: inclusion .* known to 0.1"):
        visit(lambda at: IndependentWalk(alone, at), apart, prior, (none, none), alone, 20)


def test_groups_are_exchanged_with_those_that_they_are_most_alike():
    alike = torch.eye(6).roll(1, 0) + torch.eye(6).roll(-1, 0) + 0.01 * torch.rand(6, 6)
    pairs = set(zip(*(side.tolist() for side in exchangeable_pairs(alike))))
    assert {(number, number + 1) for number in range(5)} | {(0, 5)} <= pairs
    assert all(one < other for one, other in pairs)
    assert all(not len(side) for side in exchangeable_pairs(torch.zeros(1, 1)))
