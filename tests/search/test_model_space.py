# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy
import math
import pickle

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, AutoNormalMessenger

from pyro_bmrs import Reduction, search_models
from tests.search.regression import PRIORS, ZERO, model, regression


@pytest.mark.parametrize("prior", PRIORS)
def test_the_best_model_is_a_reduction_that_goes_on(prior):
    problem = regression(6, seed=3)
    space = search_models(problem.guide, {"weights": prior})
    best = space.best
    assert isinstance(best, Reduction)
    assert space.reduced["weights"].any()
    assert best.delta_evidence.item() == pytest.approx(space.top(1).delta_evidence.item(), abs=1e-9)
    # The ELBO of an exact posterior is the log evidence, at every draw.
    elbo = -Trace_ELBO().loss(model, problem.guide, problem.x, problem.y)
    reduced_elbo = -Trace_ELBO().loss(best.model, best.guide, problem.x, problem.y)
    assert reduced_elbo - elbo == pytest.approx(best.delta_evidence.item(), abs=1e-6)
    draws = Predictive(best.model, guide=best.guide, num_samples=10, return_sites=("weights", "y"))(problem.x)
    assert draws["y"].shape == (10, len(problem.x))
    if isinstance(prior, dist.Delta):
        assert (draws["weights"].reshape(10, 6)[:, space.reduced["weights"]] == 0).all()
    svi = SVI(best.model, best.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert all(math.isfinite(svi.step(problem.x, problem.y)) for _ in range(3))
    summary = best.summary()
    assert (summary["reduced_sd"][~space.reduced["weights"].numpy()] > 0.01).all()


def test_the_best_model_of_a_messenger_has_points_beside_what_stays():
    def model():
        with pyro.plate("units", 3):
            pyro.sample("weights", dist.Normal(0.0, 1.0))

    guide = AutoNormalMessenger(model)
    guide()
    with torch.no_grad():
        guide.locs.weights.copy_(torch.tensor([0.0, 2.0, 0.01]))
    best = search_models(guide, {"weights": dist.Delta(torch.tensor(0.0))}).best
    draws = Predictive(best.model, guide=best.guide, num_samples=50)()["weights"]
    assert (draws[:, [0, 2]] == 0).all()
    assert draws[:, 1].mean().item() == pytest.approx(2.0, abs=0.1)


def test_if_nothing_is_better_reduced_the_best_is_the_full_model():
    problem = regression(3)
    space = search_models(problem.guide, {"weights": dist.Delta(torch.tensor(5.0))})
    assert not space.reduced["weights"].any()
    assert space.best.delta_evidence.item() == pytest.approx(0.0, abs=1e-9)
    assert "the best reduces nothing" in repr(space)


def test_tables_and_texts():
    problem = regression(12, seed=3)
    space = search_models(problem.guide, {"weights": dist.Delta(ZERO)})
    table = space.table(6)
    assert list(table.columns) == ["reduced", "num_reduced", "delta_evidence", "probability"]
    assert list(table.index) == [1, 2, 3, 4, 5, 6]
    assert table["probability"].is_monotonic_decreasing
    assert (space.table(4096)["probability"].sum()) == pytest.approx(1.0)
    summary = space.summary()
    assert list(summary.index) == [f"weights[{i}]" for i in range(12)]
    columns = ["group", "mean", "sd", "delta_evidence", "inclusion_probability", "reduced", "source"]
    assert list(summary.columns) == columns
    assert summary["reduced"].sum() == table["num_reduced"].iloc[0]
    assert isinstance(summary, pd.DataFrame) and not summary.isna().any().any()
    assert "12 groups, 4,096 models, exhaustive" in repr(space)
    assert "<table" in space._repr_html_()


def test_draws_of_the_average_are_arviz_data():
    problem = regression(4)
    space = search_models(problem.guide, {"weights": dist.Delta(ZERO)})
    data = space.to_arviz(num_samples=500)
    assert data.posterior["weights"].shape == (1, 500, 4)
    assert data.posterior["bias"].shape == (1, 500)
    models = data["models"]
    assert models["delta_evidence"].values == pytest.approx(space.top(100).delta_evidence.numpy())
    assert models["reduced"].sel(model=1, group=space.groups[0]) == space.top(1).reduced[0, 0]
    assert (data["evidence"]["weights"].values == space.delta_evidence["weights"].numpy()).all()
    assert (data["inclusion_probability"]["weights"].values == space.inclusion_probability["weights"].numpy()).all()
    average = space.average()["weights"]
    error = average.stddev / math.sqrt(500)
    assert (
        abs(data.posterior["weights"].mean(("chain", "draw")).values - average.mean.numpy()) < 5 * error.numpy()
    ).all()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("take", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_a_copy_answers_all_that_the_original_does(exact_guide, kind, take):
    guide, x, y = exact_guide(kind)
    zero = dist.Delta(x.new_tensor(0.0))
    space = search_models(guide, {"first": zero}, args=(x, y), check=1)
    twin = take(space)
    assert guide.model is not None
    assert repr(twin) == repr(space)
    pd.testing.assert_frame_equal(twin.table(), space.table())
    pd.testing.assert_frame_equal(twin.summary(), space.summary())
    assert torch.equal(twin.best.delta_evidence, space.best.delta_evidence)
    assert twin.best.guide(x, y).keys() == space.best.guide(x, y).keys()
    average = take(space.average())
    for name, posterior in space.average().items():
        torch.testing.assert_close(average[name].mean, posterior.mean)
    assert dict(twin.to_arviz(5).posterior.sizes)["draw"] == 5
