# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A decision for each element, against the evidence of each prior of that element by NumPy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy.optimize import brentq

from pyro_bmrs import ReductionError, ReductionWarning, prior_sensitivity, sensitivity_by_element
from pyro_bmrs.reduction.families import by_element
from tests.exact_guides import put_posterior
from tests.search.regression import NOISE, model, regression

NULL = dist.Delta(torch.tensor(0.0, dtype=torch.double))


@pytest.fixture(scope="module")
def problem():
    yield regression(4, seed=2, num_rows=30)
    torch.set_default_dtype(torch.float)


def log_evidence(problem, element: int, scale: float) -> float:
    """Where the prior of one weight has another scale; those of the others are 1, and the constant's is 2."""
    design = np.column_stack([np.ones(30), problem.x.numpy()])
    variance = np.array([4.0, 1.0, 1.0, 1.0, 1.0])
    variance[1 + element] = scale**2
    covariance = design * variance @ design.T + NOISE**2 * np.eye(30)
    error = problem.y.numpy() - 0.3
    return float(-0.5 * (error @ np.linalg.solve(covariance, error) + np.linalg.slogdet(covariance)[1]))


def test_the_table_says_for_which_scales_each_decision_holds(problem):
    found = sensitivity_by_element(problem.guide, "weights", grid=np.geomspace(0.1, 30, 40), against=NULL)
    table = found.summary()
    assert list(table.index) == list(found) == [f"weights[{i}]" for i in range(4)] and len(found) == 4
    turns = 0
    for element, row in enumerate(table.itertuples()):
        null = log_evidence(problem, element, 1e-9)

        def factor(scale, element=element, null=null):
            return log_evidence(problem, element, scale) - null

        assert row.log_bayes_factor == pytest.approx(factor(1.0), abs=1e-5)
        assert row.favours == ("the prior" if factor(1.0) > 0 else "the point 0")
        ends = []
        for far in (0.1, 30.0):
            turned = (factor(far) > 0) != (factor(1.0) > 0)
            ends.append(brentq(factor, *sorted((1.0, far))) if turned else far)
            turns += turned
        assert (row.low, row.high) == pytest.approx(tuple(ends), rel=1e-4)
    assert turns and "it turns for weights[" in repr(found) and set(table["source"]) == {"posterior"}
    alone = prior_sensitivity(problem.guide, "weights", grid=np.geomspace(0.1, 30, 40), against=NULL, element=1)
    assert found["weights[1]"].decision == alone.decision


def test_without_another_prior_it_says_which_number_is_best(problem):
    grid = np.geomspace(0.05, 5, 60)
    found = sensitivity_by_element(
        problem.guide, "weights", grid=grid, elements=["b"], labels={"weights": list("abcd")}
    )
    (row,) = found.summary().itertuples()
    exact = [log_evidence(problem, 1, scale) for scale in grid]
    assert row.Index == "weights[b]" and row.best == pytest.approx(grid[int(np.argmax(exact))])
    best = max(exact)
    inside = [scale for scale, value in zip(grid, exact) if value > best - 1]
    assert row.low <= inside[0] * 1.001 and row.high >= inside[-1] * 0.999


def test_priors_by_name_and_functions_of_a_number(problem):
    families = {"narrow": dist.Normal(0.0, 0.1), "heavy": dist.Cauchy(0.0, 0.5)}
    named = sensitivity_by_element(problem.guide, "weights", families, elements=[0, 2], against=NULL)
    assert list(named.summary().columns) == ["narrow", "heavy", "source"]
    null = log_evidence(problem, 2, 1e-9)
    exact = log_evidence(problem, 2, 0.1) - null
    assert named.summary().loc["weights[2]", "narrow"] == pytest.approx(exact, abs=1e-5)
    by_function = sensitivity_by_element(
        problem.guide, "weights", lambda width: dist.Normal(0.0, width), [0.5, 2.0, 8.0], elements=[0], against=NULL
    )
    assert "from 0.5 to" in by_function.summary().loc["weights[0]", "favours"]
    assert isinstance(by_function["weights[0]"].summary(), pd.DataFrame)


def test_what_the_model_says_otherwise_is_said_once(problem):
    pyro.clear_param_store()
    posterior = problem.guide.get_posterior()
    guide = put_posterior(AutoNormal(model), posterior, problem.x, problem.y)
    with pyro.settings.context(bmrs_automatic_check=True), pytest.warns(ReductionWarning) as caught:
        found = sensitivity_by_element(guide, "weights", grid=[0.05, 1.0], args=(problem.x, problem.y))
    said = [str(warning.message) for warning in caught]
    assert len(said) == 1 and "more of the 4 elements: The model says otherwise" in said[0]
    assert "posterior, off" in set(found.summary()["source"])


def test_problems_that_begin_alike_are_all_said(problem, monkeypatch):
    """Each element has a problem of the first kind, with a number of its own, and one has another besides."""
    numbers = iter([0.71, 1.2e-3, 3.0, -4.0])

    def some(found):
        first = next(numbers)
        others = ["The posterior is off by much."] if first == 3.0 else []
        return [f"The posterior has a tail of {first}.", *others]

    monkeypatch.setattr(by_element, "problems", some)
    with pytest.warns(ReductionWarning) as caught:
        sensitivity_by_element(problem.guide, "weights", grid=[0.5, 1.0], check=False)
    said = sorted(str(warning.message) for warning in caught)
    assert said == [
        "Of weights[0], and of 3 more of the 4 elements: The posterior has a tail of 0.71.",
        "Of weights[2]: The posterior is off by much.",
    ]


def test_where_the_model_agrees_it_is_said(problem):
    pyro.clear_param_store()
    guide = put_posterior(AutoMultivariateNormal(model), problem.guide.get_posterior(), problem.x, problem.y)
    with pyro.settings.context(bmrs_automatic_check=True):
        found = sensitivity_by_element(guide, "weights", grid=[0.5, 1.0, 3.0], args=(problem.x, problem.y))
    assert set(found.summary()["source"]) == {"model"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"site": "slopes"}, "no latent site 'slopes'"),
        ({"elements": []}, "elements names none of site 'weights'"),
        ({"elements": [7]}, "has 4 elements, so none at 7"),
        ({"elements": ["dose"]}, "no elements of site 'weights' are called 'dose'"),
        ({"check": "often"}, "check must be"),
    ],
)
def test_what_cannot_be_asked(problem, wrong, message):
    with pytest.raises(ReductionError, match=message):
        sensitivity_by_element(problem.guide, **({"site": "weights"} | wrong))
