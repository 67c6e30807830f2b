# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Predictions without each observation, against regressions that were fitted without it."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_bmrs import ReductionError, search_models
from tests.search.regression import BIAS_SCALE, NOISE, PRIOR_SCALE, regression

POINT = {"weights": dist.Delta(torch.tensor(0.0, dtype=torch.double))}


@pytest.fixture(scope="module")
def problem():
    yield regression(4, seed=1, num_rows=30)
    torch.set_default_dtype(torch.float)


def left_out(problem, reduced: np.ndarray) -> float:
    """The sum of the log densities of each observation given all others, by NumPy."""
    design = np.column_stack([np.ones(len(problem.x)), problem.x.numpy()])
    variance = np.r_[BIAS_SCALE, np.where(reduced, 0.0, PRIOR_SCALE)] ** 2
    covariance = (design * variance) @ design.T + NOISE**2 * np.eye(len(design))
    error = problem.y.numpy() - 0.3
    precision = np.linalg.inv(covariance)
    weight = np.diag(precision)
    return float(stats.norm(0, 1 / np.sqrt(weight)).logpdf(precision @ error / weight).sum())


def test_models_are_compared_by_what_they_predict_of_an_observation_without_it(problem):
    space = search_models(problem.guide, POINT)
    table = space.compare(3, num_samples=2000)
    exact = [left_out(problem, row.numpy()) for row in space.top(3).reduced]
    found = {int(name.split(":")[0]): value for name, value in table["elpd_loo"].items()}
    assert [found[rank] for rank in (1, 2, 3)] == pytest.approx(exact, abs=0.3)
    assert table["weight"].sum() == pytest.approx(1.0, abs=1e-3)
    assert table.index[0].startswith(f"{1 + int(np.argmax(exact))}: without ")


def test_what_cannot_be_compared_is_told(problem):
    space = search_models(problem.guide, POINT)
    with pytest.raises(ReductionError, match="nothing to compare 1 models with"):
        space.compare(1)
    with pytest.raises(ReductionError, match="cannot compare these models by 'guessing'"):
        space.compare(2, num_samples=100, method="guessing")
