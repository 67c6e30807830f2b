# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bmrs import ReductionWarning, search_models
from pyro_bmrs.search.strategies.exhaustive import evidence_of_all
from pyro_bmrs.search.strategies.greedy import Observed, Sweep, climb, climb_from_several, starts
from tests.search.regression import regression


def observed(sizes: list[int], seed: int) -> Observed:
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    root = torch.randn(count, count + 2, generator=generator, dtype=torch.double)
    residual = 2 * torch.randn(count, generator=generator, dtype=torch.double)
    constants = torch.randn(len(sizes), generator=generator, dtype=torch.double)
    label = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return Observed(root @ root.T / count, residual, constants, label)


def all_scores(problem: Observed) -> Tensor:
    sizes = torch.bincount(problem.label).tolist()
    return evidence_of_all(problem.covariance, problem.residual, problem.constants, sizes)


def index(reduced: Tensor) -> int:
    return int((reduced * 2 ** torch.arange(len(reduced))).sum())


SIZES = [[1] * 6, [2, 1, 3, 1, 2], [1], [4, 4]]


@pytest.mark.parametrize("sizes", SIZES)
def test_changes_and_scores_are_those_of_the_enumeration(sizes):
    problem = observed(sizes, seed=len(sizes))
    scores = all_scores(problem)
    for model in range(2 ** len(sizes)):
        reduced = torch.tensor([model >> group & 1 == 1 for group in range(len(sizes))])
        sweep = Sweep(problem, reduced)
        torch.testing.assert_close(sweep.score, scores[model])
        neighbours = torch.tensor([model ^ (1 << group) for group in range(len(sizes))])
        torch.testing.assert_close(sweep.changes(), scores[neighbours] - scores[model], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("sizes", SIZES)
def test_flips_lead_where_a_fresh_start_would(sizes):
    problem = observed(sizes, seed=1)
    sweep = Sweep(problem, torch.zeros(len(sizes), dtype=torch.bool))
    for group in torch.randint(len(sizes), (50,)).tolist():
        sweep.flip(group)
    fresh = Sweep(problem, sweep.reduced)
    torch.testing.assert_close(sweep.changes(), fresh.changes(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(sweep.score, fresh.score, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("sizes", [[1] * 6, [2, 1, 3, 1, 2], [4, 4]])
def test_the_best_pair_is_that_of_the_enumeration(sizes, monkeypatch):
    monkeypatch.setattr("pyro_bmrs.search.strategies.greedy._BATCH", 20)
    problem = observed(sizes, seed=2)
    scores = all_scores(problem)
    count = len(sizes)
    for model in range(2**count):
        reduced = torch.tensor([model >> group & 1 == 1 for group in range(count)])
        gain, one, other = Sweep(problem, reduced).best_pair()
        pairs = [model ^ (1 << i) ^ (1 << j) for i in range(count) for j in range(i)]
        assert gain == pytest.approx((scores[pairs].max() - scores[model]).item(), abs=1e-9)
        assert scores[model ^ (1 << one) ^ (1 << other)].item() - scores[model].item() == pytest.approx(gain, abs=1e-9)


def correlated_problem(seed: int, count: int = 14) -> Observed:
    """Variable selection among covariates that share causes: the points at 0 of a regression's weights."""
    problem = regression(count, seed=seed, num_rows=40)
    posterior = problem.guide.get_posterior()
    covariance = posterior.covariance_matrix[1:, 1:].detach()
    return Observed(covariance, -posterior.mean[1:].detach(), torch.zeros(count), torch.arange(count))


def test_on_at_least_95_of_100_correlated_problems_climbs_alone_end_at_the_best_of_all_models(monkeypatch):
    monkeypatch.setattr("pyro_bmrs.search.strategies.greedy._MOST_KICKS", 0)
    found = 0
    for seed in range(100):
        problem = correlated_problem(seed)
        found += bool(climb_from_several(problem).score > all_scores(problem).max() - 1e-9)
    assert found >= 95


# Of these, climbs from nothing, everything and what is better alone end up to 2.4 nats below the best.
@pytest.mark.parametrize(("causes", "seed"), [(3, 4), (5, 0), (5, 1), (5, 4)])
def test_climbs_from_around_their_best_find_the_best_where_few_causes_are_shared(causes, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(60, causes), (causes, 18), (60, 18), (causes,), (60,)]
    shared, loadings, noise, effects, rest = (
        torch.randn(shape, generator=generator, dtype=torch.double) for shape in shapes
    )
    x, y = shared @ loadings + 0.2 * noise, shared @ effects + 0.5 * rest
    covariance = torch.linalg.inv(x.T @ x / 0.25 + torch.eye(18).double())
    zero = torch.zeros(18, dtype=torch.double)
    problem = Observed(covariance, -covariance @ x.T @ y / 0.25, zero, torch.arange(18))
    best = all_scores(problem).max()
    alone = max(float(climb(problem, start).score) for start in starts(problem))
    assert float(best) - alone > 0.1
    assert float(climb_from_several(problem).score) == pytest.approx(float(best), abs=1e-8)


def test_a_climb_ends_where_no_flip_and_no_pair_of_flips_helps():
    problem = observed([1, 2, 1, 3, 1, 1, 2, 1], seed=3)
    scores = all_scores(problem)
    for start in torch.rand(10, 8) < 0.5:
        end = index(climb(problem, start).reduced)
        flips = [1 << group for group in range(8)]
        assert all(scores[end ^ one ^ other] <= scores[end] + 1e-9 for one in flips for other in flips)


def test_the_models_around_the_optimum_of_a_search_are_as_in_the_exhaustive_search():
    problem = regression(16, seed=4)
    prior = {"weights": dist.Normal(0.0, 0.01)}
    whole = search_models(problem.guide, prior, prior_log_odds=0.5)
    space = search_models(problem.guide, prior, prior_log_odds=0.5, strategy="greedy")
    assert (whole.strategy, space.strategy) == ("exhaustive", "greedy")
    assert (whole.num_models, space.num_models) == (2**16, 2**12)
    top, found = whole.top(2**16), space.top(2**12)
    assert torch.equal(top.reduced[0], found.reduced[0])
    place = {index(reduced): number for number, reduced in enumerate(top.reduced)}
    chosen = torch.tensor([place[index(reduced)] for reduced in found.reduced])
    torch.testing.assert_close(found.delta_evidence, top.delta_evidence[chosen], atol=1e-9, rtol=0)
    share = top.probability[chosen].sum()
    torch.testing.assert_close(found.probability * share, top.probability[chosen])
    torch.testing.assert_close(space.delta_evidence["weights"], whole.delta_evidence["weights"])
    with pytest.warns(ReductionWarning, match="inclusion probabilities are those beside the best"):
        inclusion = space.inclusion_probability["weights"]
    torch.testing.assert_close(inclusion, whole.inclusion_probability["weights"], atol=0.05, rtol=0)
    assert space.inclusion_error["weights"].isnan().all() and not whole.inclusion_error["weights"].any()


def test_beyond_max_models_they_are_drawn():
    problem = regression(6)
    prior = {"weights": dist.Delta(torch.tensor(0.0))}
    assert search_models(problem.guide, prior, max_models=64).strategy == "exhaustive"
    assert search_models(problem.guide, prior, max_models=63, num_steps=10).strategy == "sample"
