# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Hierarchical models from posteriors of single studies, against the one normal that all their data have together."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from pyro_bmrs import ReductionError, group_effects

NOISE = 0.8
LOC, PRIOR = np.array([0.3, -0.2]), np.array([[1.2, 0.3], [0.3, 0.7]])
DESIGN = np.column_stack([np.ones(5), [-1.0, -0.5, 0.0, 0.5, 1.0]])
ROWS = np.random.default_rng(0).standard_normal((5, 6, 2))
_TRUTH = LOC + DESIGN @ np.array([[0.5, 0.0], [0.4, -0.3]]) + 0.2 * np.random.default_rng(1).standard_normal((5, 2))
DATA = np.einsum("nrd,nd->nr", ROWS, _TRUTH) + NOISE * np.random.default_rng(2).standard_normal((5, 6))


def posterior(rows: np.ndarray, data: np.ndarray) -> dist.MultivariateNormal:
    precision = rows.T @ rows / NOISE**2 + np.linalg.inv(PRIOR)
    loc = np.linalg.solve(precision, rows.T @ data / NOISE**2 + np.linalg.solve(PRIOR, LOC))
    return dist.MultivariateNormal(torch.tensor(loc), precision_matrix=torch.tensor(precision))


POSTERIORS = [posterior(rows, data) for rows, data in zip(ROWS, DATA)]
FIRST = dist.MultivariateNormal(torch.tensor(LOC), torch.tensor(PRIOR))


def joint(spread: float, effects: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and covariance of all data, and their covariance with the effects, whose variances are given."""
    loadings = np.concatenate([rows @ np.kron(x, np.eye(2)) for rows, x in zip(ROWS, DESIGN)])
    mean = np.concatenate([rows @ LOC for rows in ROWS])
    covariance = loadings * effects @ loadings.T + NOISE**2 * np.eye(30)
    for number, rows in enumerate(ROWS):
        at = slice(6 * number, 6 * number + 6)
        covariance[at, at] += spread**2 * rows * np.diag(PRIOR) @ rows.T
    return mean, covariance, effects[:, None] * loadings.T


def alone() -> float:
    """The log evidence of all studies by themselves."""
    covariances = [rows @ PRIOR @ rows.T + NOISE**2 * np.eye(6) for rows in ROWS]
    return sum(stats.multivariate_normal(rows @ LOC, c).logpdf(data) for rows, c, data in zip(ROWS, covariances, DATA))


EFFECTS = np.tile(np.diag(PRIOR), 2)


def log_evidence(spread: float, effects: np.ndarray = EFFECTS) -> float:
    mean, covariance, _ = joint(spread, effects)
    return float(stats.multivariate_normal(mean, covariance).logpdf(DATA.ravel()))


def test_for_a_known_spread_all_is_as_in_the_one_normal_of_all_data() -> None:
    found = group_effects(POSTERIORS, FIRST, DESIGN, between=0.3, covariates=["mean", "dose"])
    assert found.delta_evidence == pytest.approx(log_evidence(0.3) - alone(), abs=1e-8)
    mean, covariance, cross = joint(0.3, EFFECTS)
    gain = cross @ np.linalg.inv(covariance)
    np.testing.assert_allclose(found.mean.flatten(), gain @ (DATA.ravel() - mean), atol=1e-9)
    np.testing.assert_allclose(found.sd.flatten() ** 2, np.diag(np.diag(EFFECTS) - gain @ cross.T), atol=1e-9)
    without = np.where([False, False, True, True], 1e-12, EFFECTS)
    expected = log_evidence(0.3, without) - log_evidence(0.3)
    assert found.without("dose") == pytest.approx(expected, abs=1e-6)
    second = np.where([False, False, False, True], 1e-12, EFFECTS)
    assert found.without("dose", 1) == pytest.approx(log_evidence(0.3, second) - log_evidence(0.3), abs=1e-6)
    assert found.table().loc[("dose", 1), "delta_evidence"] == pytest.approx(found.without("dose", 1))


def test_the_parameters_of_a_study_are_drawn_towards_the_others() -> None:
    found = group_effects(POSTERIORS, FIRST, DESIGN, between=0.3)
    mean, covariance, _ = joint(0.3, EFFECTS)
    loadings = np.concatenate([rows @ np.kron(x, np.eye(2)) for rows, x in zip(ROWS, DESIGN)])
    for number, x in enumerate(DESIGN):
        own = np.kron(x, np.eye(2))
        cross = own * EFFECTS @ loadings.T
        cross[:, 6 * number : 6 * number + 6] += 0.3**2 * np.diag(PRIOR)[:, None] * ROWS[number].T
        gain = cross @ np.linalg.inv(covariance)
        variance = np.diag(own * EFFECTS @ own.T) + 0.3**2 * np.diag(PRIOR)
        np.testing.assert_allclose(found.study_mean[number], LOC + gain @ (DATA.ravel() - mean), atol=1e-9)
        np.testing.assert_allclose(found.study_sd[number] ** 2, variance - np.diag(gain @ cross.T), atol=1e-9)


@pytest.mark.parametrize("between", [dist.LogNormal(math.log(0.25), 0.5), dist.HalfNormal(0.5)])
def test_an_unknown_spread_is_integrated_over(between) -> None:
    found = group_effects(POSTERIORS, FIRST, DESIGN, between=between)
    base = alone()

    def density(u: float, power: int = 0) -> float:
        s = math.exp(u)
        return math.exp(float(between.log_prob(torch.tensor(s))) + u + log_evidence(s) - base) * s**power

    total, first = (quad(density, -18, 3, args=(power,), epsabs=0, epsrel=1e-7, limit=200)[0] for power in (0, 1))
    assert found.delta_evidence == pytest.approx(math.log(total), abs=2e-5)
    assert found.between == pytest.approx(first / total, rel=2e-5)


def test_independent_normals_and_the_mean_of_the_group_alone() -> None:
    prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    posteriors = [dist.Normal(torch.tensor([m, 0.0]), 0.1).to_event(1) for m in (0.9, 1.0, 1.1)]
    found = group_effects(posteriors, prior)
    assert found.covariates == ("mean",) and found.without("mean", 0) < -3 < 0 < found.without("mean", 1)
    assert "3 studies, mean, 2 parameters" in repr(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"posteriors": []}, "no posteriors"),
        ({"posteriors": [dist.Gamma(torch.ones(2), 1.0)]}, "posterior of study 0 is a Gamma; give a normal"),
        ({"posteriors": [dist.Normal(torch.zeros(3), 0.1)]}, "study 0 has 3 parameters, and the prior 2"),
        ({"posteriors": [dist.Normal(torch.zeros(2), 3.0)]}, "study 0 is broader than the prior"),
        ({"posteriors": [dist.Normal(torch.zeros(2, 2), 0.1)]}, r"shape \(2, 2\)"),
        ({"design": [[1.0]]}, r"design has the shape \(1, 1\); give a row for each of the 5"),
        ({"design": [[math.nan]] * 5}, "design is NaN"),
        ({"between": 0.0}, "spread between studies is a finite number above 0"),
        ({"between": dist.Gamma(1.0, 1.0)}, "a Gamma has no quantiles"),
        ({"between": dist.Normal(1.0, 1.0)}, "positive for sure"),
        ({"covariates": ["a", "b"]}, "2 names for the 1 columns"),
    ],
)
def test_what_cannot_be_is_told(change, message) -> None:
    given = {"posteriors": POSTERIORS, "prior": FIRST} | change
    with pytest.raises(ReductionError, match=message):
        group_effects(**given)


def test_an_effect_that_is_none_is_told() -> None:
    with pytest.raises(ReductionError, match="no covariate 'dose'; there are .'mean'."):
        group_effects(POSTERIORS, FIRST).without("dose")
