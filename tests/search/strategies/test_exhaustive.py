# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import evidence, reduce_model, search_models
from pyro_bmrs.search.strategies import exhaustive
from tests.search.regression import PRIOR_SCALE, Regression, every_model, exact_guide, regression

NARROW = [0.0, 1e-6, 1e-3, 0.3]


def reduced_prior(loc: float, scale: float) -> dist.TorchDistribution:
    return dist.Normal(loc, scale) if scale else dist.Delta(torch.tensor(loc, dtype=torch.double))


def in_order_of_index(space, count: int) -> np.ndarray:
    """The evidence of every model, at the model's index."""
    top = space.top(2**count)
    found = np.full(2**count, np.nan)
    found[top.reduced.numpy() @ 2 ** np.arange(count)] = top.delta_evidence.numpy()
    return found


@pytest.mark.parametrize("scale", NARROW)
def test_all_4096_models_are_as_reduced_one_by_one(scale):
    problem = regression(12)
    joint = problem.guide.get_posterior()
    loc, covariance = joint.loc[1:].detach(), joint.covariance_matrix[1:, 1:].detach()
    found = in_order_of_index(search_models(problem.guide, {"weights": reduced_prior(0.1, scale)}), 12)
    states = torch.as_tensor(every_model(12))
    expected = np.zeros(4096)
    for size in range(1, 13):
        index = (states.sum(-1) == size).nonzero().squeeze(-1)
        at = states[index].nonzero()[:, 1].reshape(-1, size)
        posterior = dist.MultivariateNormal(loc[at], covariance[at[:, :, None], at[:, None]])
        prior = dist.Normal(torch.zeros(at.shape), PRIOR_SCALE).to_event(1)
        narrow = torch.full(at.shape, 0.1)
        narrow = dist.Normal(narrow, scale).to_event(1) if scale else dist.Delta(narrow, event_dim=1)
        expected[index] = evidence.log_evidence_change(posterior, prior, narrow)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", NARROW)
def test_all_4096_models_are_as_their_exact_evidences(scale):
    problem = regression(12, seed=1, num_rows=25)
    found = in_order_of_index(search_models(problem.guide, {"weights": reduced_prior(0.1, scale)}), 12)
    full = problem.exact(np.zeros(12, dtype=bool), 0.1, scale)[0]
    expected = [problem.exact(reduced, 0.1, scale)[0] - full for reduced in every_model(12)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.no_cover
def test_all_models_are_as_the_front_door_reduces_them():
    problem = regression(9, seed=2)
    scale = 0.05
    top = search_models(problem.guide, {"weights": reduced_prior(-0.1, scale)}).top(512)
    assert len(top.reduced) == 512
    found = []
    for reduced in top.reduced:
        loc, scales = (torch.where(reduced, *values).double() for values in ((-0.1, 0.0), (scale, PRIOR_SCALE)))
        found.append(reduce_model(problem.guide, {"weights": dist.Normal(loc, scales)}).delta_evidence.item())
    np.testing.assert_allclose(top.delta_evidence.numpy(), found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", NARROW)
def test_any_model_is_a_reduction(scale):
    space = search_models(regression(12, seed=2).guide, {"weights": reduced_prior(-0.1, scale)})
    top = space.top(4096)
    for index in torch.randint(4096, (25,)).tolist():
        reduction = space.reduction(top.reduced[index])
        assert reduction.delta_evidence.item() == pytest.approx(top.delta_evidence[index].item(), abs=1e-9)


def test_points_and_normals_in_groups_of_several_sites():
    problem = regression(6, seed=3)
    groups = {"three": {"weights": [0, 3, 4]}, "bias and one": {"bias": ..., "weights": 1}, "one": {"weights": 5}}
    zero = torch.tensor(0.0, dtype=torch.double)
    space = search_models(
        problem.guide,
        {"weights": dist.Normal(zero, 0.01), "bias": dist.Delta(zero)},
        groups=groups,
        strategy="exhaustive",
    )
    joint = problem.guide.get_posterior()
    members = {"three": [1, 4, 5], "bias and one": [0, 2], "one": [6]}
    scale = torch.tensor([2.0] + 6 * [1.0], dtype=torch.double)
    loc = torch.tensor([0.3] + 6 * [0.0], dtype=torch.double)
    top = space.top(8)
    for reduced, found in zip(top.reduced, top.delta_evidence):
        chosen = [i for name, on in zip(space.groups, reduced) for i in members[name] if on]
        # The point in the limit, by the density of a posterior at the observations that the reductions are.
        expected = normal_evidence(joint, loc, scale, torch.tensor(chosen, dtype=torch.long))
        assert found.item() == pytest.approx(expected, abs=1e-6)


def normal_evidence(joint, loc, scale, chosen) -> float:
    """The bias nearly fixed, the weights at 0.01: brute force by precisions and determinants, in NumPy."""
    if not len(chosen):
        return 0.0
    mean, covariance = joint.mean[chosen].detach().numpy(), joint.covariance_matrix[chosen][:, chosen].detach().numpy()
    p, r = scale[chosen].numpy() ** -2, np.where(chosen.numpy() == 0, 1e-5, 0.01) ** -2.0
    m = loc[chosen].numpy()
    q = np.linalg.inv(covariance)
    s = q + np.diag(r - p)
    pull = q @ mean - p * m
    constants = 0.5 * (np.linalg.slogdet(q)[1] + np.log(r / p).sum() - np.linalg.slogdet(s)[1])
    return constants - 0.5 * (mean @ q @ mean - p @ m**2 - pull @ np.linalg.solve(s, pull))


@pytest.mark.parametrize("batch", [1, 100, 2**30])
def test_how_many_models_go_together_does_not_matter(monkeypatch, batch):
    root = torch.randn(9, 9, dtype=torch.double)
    arguments = root @ root.T, torch.randn(9, dtype=torch.double), torch.randn(5, dtype=torch.double), [1, 3, 2, 1, 2]
    expected = exhaustive.evidence_of_all(*arguments)
    monkeypatch.setattr(exhaustive, "_BATCH", batch)
    counts = []
    torch.testing.assert_close(exhaustive.evidence_of_all(*arguments, counts.append), expected)
    assert sum(counts) == 32


def test_a_nearly_singular_posterior_keeps_its_digits():
    # Two covariates that are the same but for one part in 10^4: their weights are correlated to 1 - 10^-8 or so.
    problem = regression(4, seed=5)
    x = problem.x.clone()
    x[:, 1] = x[:, 0] + 1e-4 * x[:, 1]
    near = Regression(x, problem.y, exact_guide(x, problem.y))
    found = in_order_of_index(search_models(near.guide, {"weights": reduced_prior(0.0, 0.0)}), 4)
    expected = [near.delta_evidence(reduced, 0.0, 0.0) for reduced in every_model(4)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)
