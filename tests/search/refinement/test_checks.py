# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The best models of a space, held against regressions whose evidence is known exactly."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_bmrs import ReductionError, ReductionWarning, search_models
from tests import conjugate

X, Y = conjugate.data()
PRIOR = conjugate.prior(4)
ZERO = dist.Delta(torch.tensor(0.0, dtype=torch.float64))
NUM = 4


def change(reduced: torch.Tensor) -> float:
    """The exact change in log evidence without some of the slopes."""
    loc, scale = (torch.where(reduced, value, prior) for value, prior in zip((0.0, 1e-9), PRIOR))
    now, full = (float(conjugate.log_evidence(X, Y, *prior)) for prior in ((loc, scale), PRIOR))
    return now - full


def test_an_exact_posterior_needs_no_warning_and_the_full_model_is_integrated_once(exact_guide):
    guide, *data = exact_guide(AutoMultivariateNormal)
    space = search_models(guide, {"first": ZERO, "rest": ZERO}, args=tuple(data), check=NUM)
    assert len(space.checks) == NUM
    assert len({id(check.full.integral) for check in space.checks}) == 1
    table, reduced = space.table(), space.top(NUM).reduced
    assert table["checked_delta_evidence"].notna().sum() == NUM
    for row, check, (_, shown) in zip(reduced, space.checks, table.iterrows()):
        assert check.delta_evidence == pytest.approx(change(row), abs=max(0.05, 3 * check.standard_error))
        assert (shown["checked_delta_evidence"], shown["standard_error"]) == (
            check.delta_evidence,
            check.standard_error,
        )
        assert shown["pareto_k"] <= 0.7
    assert "by the model" in repr(space)


def test_a_mean_field_whose_order_is_wrong_says_so(exact_guide):
    """It takes the correlated slopes for better known than they are, and keeps both."""
    guide, *data = exact_guide(AutoNormal)
    space = search_models(guide, {"first": ZERO, "rest": ZERO}, args=tuple(data))
    assert "not checked against the model" in repr(space)
    assert list(space.table().columns) == ["reduced", "num_reduced", "delta_evidence", "probability"]
    exact = [change(row) for row in space.top(8).reduced]
    assert exact != sorted(exact, reverse=True)
    with pytest.warns(ReductionWarning, match="the evidence of ranks .* is off, by .*; their order is another"):
        space.check(8)
    found = space.table(8)["checked_delta_evidence"].tolist()
    assert found == pytest.approx(exact, abs=0.1)


def test_the_prior_odds_are_in_the_order(exact_guide):
    """All models are checked in an order that the odds make, and the model does not make another of it."""
    guide, *data = exact_guide(AutoMultivariateNormal)
    odds = torch.tensor([3.0, 3.0, -5.0, 0.5])
    space = search_models(guide, {"first": ZERO, "rest": ZERO}, args=tuple(data), prior_log_odds=odds, check=3)
    scores = [check.delta_evidence + float(odds[row].sum()) for check, row in zip(space.checks, space.top(3).reduced)]
    assert scores == sorted(scores, reverse=True)
    evidence = [check.delta_evidence for check in space.checks]
    assert evidence != sorted(evidence, reverse=True)


def test_the_full_model_among_the_best_is_no_other_than_itself(exact_guide):
    guide, *data = exact_guide(AutoMultivariateNormal)
    far = dist.Delta(torch.tensor(5.0, dtype=torch.float64))
    space = search_models(guide, {"first": far}, args=tuple(data), check=1)
    (check,) = space.checks
    assert (check.delta_evidence, check.standard_error) == (0.0, 0.0)
    assert not math.isnan(space.table()["checked_delta_evidence"].iloc[0])
    assert space.table()["checked_delta_evidence"].iloc[1:].isna().all()


@pytest.mark.parametrize("check", [-1, 1.5])
def test_a_number_of_models_that_is_none(exact_guide, check):
    guide, *data = exact_guide(AutoMultivariateNormal)
    with pytest.raises(ReductionError, match="check must be how many"):
        search_models(guide, {"first": ZERO}, args=tuple(data), check=check)
