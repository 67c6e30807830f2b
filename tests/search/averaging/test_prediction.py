# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Predictions averaged over models, against those of every model by NumPy."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_bmrs import ReductionError, search_models
from tests.exact_guides import put_posterior
from tests.search.regression import NOISE, every_model, model, regression

POINT = {"weights": dist.Delta(torch.tensor(0.0, dtype=torch.double))}
NEW = torch.tensor([[1.0, -0.5, 0.3, 2.0], [0.0, 1.0, 1.0, -1.0]], dtype=torch.double)


@pytest.fixture(scope="module")
def problem():
    yield regression(4, seed=2, num_rows=30)
    torch.set_default_dtype(torch.float)


def exact(problem, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of new observations, over all models by their probabilities, or others."""
    models = every_model(4)
    found = [problem.exact(reduced, 0.0, 0.0) for reduced in models]
    evidence = np.array([log_evidence for log_evidence, *_ in found])
    weights = np.exp(evidence - evidence.max()) if weights is None else weights
    design = np.column_stack([np.ones(len(NEW)), NEW.numpy()])
    means = np.array([design @ loc for _, loc, _ in found])
    variances = np.array([(design @ covariance * design).sum(1) + NOISE**2 for *_, covariance in found])
    share = weights / weights.sum()
    mean = share @ means
    return mean, np.sqrt(share @ (variances + (means - mean) ** 2))


@pytest.mark.parametrize("kind", ["joint", "mean field, refined"])
def test_predictions_are_averaged_over_all_models(problem, kind):
    space = search_models(problem.guide, POINT)
    if kind != "joint":
        pyro.clear_param_store()
        guide = put_posterior(AutoNormal(model), problem.guide.get_posterior(), problem.x, problem.y)
        space = search_models(guide, POINT, refine=True)
    torch.manual_seed(0)
    drawn = space.predictive(1500, return_sites=["y"])(NEW)["y"]
    assert drawn.shape == (1500, 2)
    mean, sd = exact(problem)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * sd.max() / 1500**0.5 + 0.02)
    np.testing.assert_allclose(drawn.std(0), sd, rtol=0.08)


def test_models_are_weighted_by_how_they_predict(problem):
    space = search_models(problem.guide, POINT)
    table = space.compare(4, num_samples=2000)
    weights = np.zeros(16)
    for name, weight in table["weight"].items():
        weights[int(space.top(4).reduced[int(name.split(":")[0]) - 1].long() @ 2 ** torch.arange(4))] = weight
    torch.manual_seed(0)
    drawn = space.predictive(1500, num_models=4, method="stacking", return_sites=["y"])(NEW)["y"]
    mean, sd = exact(problem, weights)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * sd.max() / 1500**0.5)
    np.testing.assert_allclose(drawn.std(0), sd, rtol=0.08)


def hierarchy():
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    local = pyro.sample("local", dist.Normal(weights.sum(), 1.0))
    pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    pyro.sample("y", dist.Normal(local, 0.1), obs=torch.tensor(0.0))


def hierarchical_guide():
    weights = pyro.sample("weights", dist.Normal(torch.tensor([0.0, 3.0]), 0.1).to_event(1))
    pyro.sample("local", dist.Normal(10 * weights[1], 0.1))
    pyro.sample("noise", dist.LogNormal(2.0, 0.1))


@pytest.mark.usefixtures("clean_slate")
def test_sites_that_do_not_depend_on_the_models_are_drawn_given_those_that_do():
    reduced = {"weights": dist.Normal(torch.tensor([0.0, 3.3]), 0.01)}
    space = search_models(hierarchical_guide, reduced, model=hierarchy, groups="site", prior_log_odds=20.0)
    drawn = space.predictive(500, return_sites=["weights", "local", "noise"])()
    # Nearly all of the draws are of the reduced model.
    assert drawn["weights"].reshape(500, 2)[:, 1].mean().item() == pytest.approx(3.3, abs=0.01)
    assert drawn["local"].mean().item() == pytest.approx(33.0, abs=0.1)
    assert drawn["noise"].log().mean().item() == pytest.approx(2.0, abs=0.05)


@pytest.mark.usefixtures("clean_slate")
def test_draws_of_another_language_have_no_model_to_predict_with():
    space = search_models({"b": torch.randn(400, 2)}, dist.Normal(0.0, 0.1), prior={"b": dist.Normal(0.0, 2.0)})
    with pytest.raises(ReductionError, match="predictions run the model.*pass the Pyro model as model="):
        space.predictive()
