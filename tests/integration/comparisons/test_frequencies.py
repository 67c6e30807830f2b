# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Group studies, against sums over every assignment of studies to models, SPM, SciPy and draws from Dirichlets."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.special import digamma, gammaln

from pyro_bmrs import ReductionError, group_study
from pyro_bmrs.integration.comparisons.frequencies import exceedance

SPM = json.loads((Path(__file__).parents[2] / "reference" / "spm_bms.json").read_text())


def table(num_studies: int, num_models: int, scale: float = 2.0) -> np.ndarray:
    return -50 + scale * np.random.default_rng(3).standard_normal((num_studies, num_models))


def by_hand(evidence: np.ndarray, prior: float) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Log evidence, frequencies, assignment and concentrations with weights, by all assignments one after another."""
    num_studies, num_models = evidence.shape
    log_weights, alphas, chosen = [], [], []
    for models in itertools.product(range(num_models), repeat=num_studies):
        counts = np.bincount(models, minlength=num_models)
        polya = gammaln(num_models * prior) - gammaln(num_models * prior + num_studies)
        polya += (gammaln(prior + counts) - gammaln(prior)).sum()
        log_weights.append(evidence[range(num_studies), models].sum() + polya)
        alphas.append(prior + counts)
        chosen.append(np.eye(num_models)[list(models)])
    total = np.logaddexp.reduce(log_weights)
    weights, alphas = np.exp(np.array(log_weights) - total), np.array(alphas)
    assignment = np.tensordot(weights, np.array(chosen), 1)
    return total, weights @ alphas / alphas[0].sum(), assignment, (weights, alphas)


@pytest.mark.parametrize("prior", [1.0, 0.3])
@pytest.mark.parametrize(("num_studies", "num_models"), [(6, 2), (5, 3), (4, 4), (1, 2)])
def test_random_effects_are_those_of_all_assignments(num_studies: int, num_models: int, prior: float) -> None:
    evidence = table(num_studies, num_models)
    study = group_study(evidence, prior=prior)
    total, frequency, assignment, (weights, alphas) = by_hand(evidence, prior)
    assert study.method == "exact" and study.log_evidence == pytest.approx(total, abs=1e-9)
    np.testing.assert_allclose(study.frequency, frequency, atol=1e-10)
    np.testing.assert_allclose(study.assignment, assignment, atol=1e-10)
    second = weights @ (alphas * (alphas + 1)) / (alphas[0].sum() * (alphas[0].sum() + 1))
    np.testing.assert_allclose(study.frequency_sd**2, second - frequency**2, atol=1e-10)
    null = np.logaddexp.reduce(evidence, 1).sum() - num_studies * math.log(num_models)
    assert study.omnibus_risk == pytest.approx(1 / (1 + math.exp(total - null)))
    if num_models == 2:
        exact = weights @ stats.beta(alphas[:, 0], alphas[:, 1]).sf(0.5)
        assert study.exceedance[0].item() == pytest.approx(exact, abs=1e-9)
    protected = study.exceedance * (1 - study.omnibus_risk) + study.omnibus_risk / num_models
    torch.testing.assert_close(study.protected_exceedance, protected)
    assert study.protected_exceedance.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [[1.0, 1.0, 1.0], [0.1, 0.2, 5.0], [12.3, 9.1, 3.0, 1.0], [300.0, 280.0, 1e-2]])
def test_exceedance_is_that_of_draws_from_the_dirichlet(alpha: list[float]) -> None:
    draws = np.random.default_rng(0).dirichlet(alpha, 200_000).argmax(-1)
    share = np.bincount(draws, minlength=len(alpha)) / len(draws)
    np.testing.assert_allclose(exceedance(torch.tensor(alpha).double()), share, atol=5 * math.sqrt(0.25 / len(draws)))


@pytest.mark.parametrize("alpha", [(3.0, 1.0), (0.05, 0.4), (400.0, 420.0)])
def test_exceedance_of_two_is_a_tail_of_the_beta_distribution(alpha: tuple[float, float]) -> None:
    assert exceedance(torch.tensor(alpha).double())[0].item() == pytest.approx(stats.beta(*alpha).sf(0.5), abs=1e-9)


def test_the_approximation_is_a_fixed_point_and_a_lower_bound() -> None:
    evidence = table(7, 3)
    exact, approximate = (group_study(evidence, method=method) for method in ("exact", "variational"))
    assert approximate.method == "variational"
    # The fixed point of Stephan et al. (2009), equation 14.
    alpha = 1 + approximate.assignment.numpy().sum(0)
    share = np.exp(evidence - evidence.max(1, keepdims=True) + digamma(alpha))
    np.testing.assert_allclose(approximate.assignment, share / share.sum(1, keepdims=True), atol=1e-8)
    np.testing.assert_allclose(approximate.frequency, alpha / alpha.sum(), atol=1e-8)
    assert exact.log_evidence - 1 < approximate.log_evidence < exact.log_evidence
    np.testing.assert_allclose(approximate.frequency, exact.frequency, atol=0.05)


def test_the_approximation_is_what_spm_gives() -> None:
    evidence = np.log(np.array(SPM["evidence"])).T
    study = group_study(evidence, method="variational")
    # SPM stops where a step changes no concentration by more than 1e-3, and draws a million times from the Dirichlet.
    np.testing.assert_allclose(study.frequency * (12 + 6), SPM["alpha"], atol=1e-3)
    np.testing.assert_allclose(study.exceedance, SPM["xp"], atol=1.5e-4)
    assert study.omnibus_risk == pytest.approx(SPM["bor"], rel=1e-6)
    np.testing.assert_allclose(study.protected_exceedance, SPM["pxp"], atol=1.5e-4)
    # One Dirichlet is surer than all assignments are.
    assert 0.98 < group_study(evidence).exceedance[3] < study.exceedance[3]


def test_clear_evidence_in_some_studies_gives_the_published_picture() -> None:
    """
    One outlier decides with fixed effects, and not with random ones: the point of Stephan et al. (2009).

    Where every study is clear, frequencies are those of a Dirichlet with the counts.
    """
    evidence = np.array([[0.0, -8.0]] * 11 + [[0.0, 100.0]])
    study = group_study(pd.DataFrame(evidence, columns=["usual", "odd"]))
    assert study.fixed_probability[1] > 0.99 and study.frequency[0] > 0.8
    assert study.frequency[0].item() == pytest.approx(12 / 14, abs=1e-3)
    assert study.exceedance[0].item() == pytest.approx(stats.beta(12, 2).sf(0.5), abs=1e-3)
    assert study.table().index[0] == "usual" and study.assignments().loc["11", "odd"] > 0.99
    assert "usual in 86%" in repr(study)


def test_studies_are_told_by_their_names() -> None:
    by_name = {"a": {"s1": 1.0, "s2": -7.0}, "b": pd.Series({"s2": -5.0, "s1": 1.5})}
    study = group_study(by_name)
    assert study.studies == ("s1", "s2") and study.fixed_log_evidence.tolist() == [-6.0, -3.5]
    tensors = group_study({"a": torch.tensor([1.0, -7.0]), "b": torch.tensor([1.5, -5.0])})
    torch.testing.assert_close(tensors.frequency, study.frequency)
    with pytest.raises(ReductionError, match="NaN or infinite at 2 of 6 places"):
        group_study({"a": {"s1": 1.0, "s2": 2.0}, "b": {"s1": 0.0, "s3": 2.0}})


def test_no_evidence_gives_no_preference() -> None:
    study = group_study({"a": [1.0, -7.0, 3.0], "b": [1.0, -7.0, 3.0]})
    np.testing.assert_allclose(study.frequency, 0.5)
    assert study.omnibus_risk == pytest.approx(0.5) and study.protected_exceedance[0].item() == pytest.approx(0.5)


def test_many_studies_of_many_models_are_approximated() -> None:
    evidence = table(200, 6)
    assert group_study(evidence).method == "variational"
    with pytest.raises(ReductionError, match="ways to divide 200 studies between 6 models.*variational"):
        group_study(evidence, method="exact")


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([[1.0], [2.0]], {}, r"shape \(2, 1\); give a table"),
        ([1.0, 2.0], {}, r"shape \(2,\); give a table"),
        ([[1.0, math.nan]], {}, "NaN or infinite at 1 of 2 places, first in study 0, model 1"),
        ({"a": [1.0, 2.0], "b": [1.0]}, {}, "other numbers of studies"),
        ([["good", 1.0]], {}, "something in it that is no number"),
        ([[1.0, 2.0]], {"prior": 0.0}, "concentration of the prior is a finite number above 0"),
        ([[1.0, 2.0]], {"method": "fast"}, "method must be one of"),
    ],
)
def test_what_is_no_table_is_told(given, options, message) -> None:
    with pytest.raises(ReductionError, match=message):
        group_study(given, **options)
