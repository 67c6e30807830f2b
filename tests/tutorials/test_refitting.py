# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from refitting import Settings, compare, fit, main, markdown, model_to_refit
from refitting_models import STUDIES
from scipy.integrate import quad
from scipy.special import gammaln, logsumexp
from scipy.stats import gamma, halfcauchy, halfnorm, multivariate_normal

from pyro_bmrs import reduce_model

pytestmark = pytest.mark.usefixtures("double")

COLUMNS = (
    "model,reduced prior,seed,delta_evidence,method,standard_error,pareto_k,"
    "elbo_difference,elbo_standard_error,discrepancy,"
    "evidence_difference,evidence_standard_error,evidence_pareto_k,"
    "refit_seconds,reduction_seconds,speed_up"
).split(",")


def test_poisson_regression_refitted_agrees_with_its_reduction() -> None:
    table = compare("poisson", STUDIES["poisson"](), Settings(steps=500))
    assert table["method"].eq("exact").all()
    assert table["discrepancy"].abs().max() < 0.3
    assert (table["delta_evidence"] > 0).tolist() == [True, True, False]
    # The posterior is close to normal, so that little is lost between ELBO and evidence.
    assert table["evidence_pareto_k"].max() < 0.7
    assert table["elbo_difference"].to_numpy() == pytest.approx(table["evidence_difference"].to_numpy(), abs=0.05)
    assert table["elbo_standard_error"].max() < 0.02
    assert table["speed_up"].min() > 20


def test_eight_schools_agree_with_quadrature() -> None:
    study = STUDIES["schools"]()
    table = compare("schools", study, Settings(steps=300))
    effects, errors = (given.numpy() for given in study.data)

    def evidence(spread_prior: object, mean_scale: float) -> float:
        def integrand(spread: float) -> float:
            covariance = np.diag(errors**2 + spread**2) + mean_scale**2
            return spread_prior.pdf(spread) * multivariate_normal(cov=covariance).pdf(effects)

        return quad(integrand, 0.0, np.inf, epsrel=1e-8)[0]

    full = evidence(halfcauchy(scale=5.0), 5.0)
    exact = np.log([evidence(halfnorm(scale=1.0), 5.0) / full, evidence(halfcauchy(scale=5.0), 0.0) / full])
    assert table["method"].tolist() == ["quadrature", "exact"]
    assert table["delta_evidence"].to_numpy() == pytest.approx(exact, abs=0.4)
    assert table["elbo_difference"].to_numpy() == pytest.approx(exact, abs=0.4)


def log_evidence_of_pumps(hours: np.ndarray, failures: np.ndarray, alike: float) -> float:
    """With the rates integrated out, on a grid of the logarithms of shape and inverse scale."""
    log_shape, log_inverse_scale = np.linspace(-8.0, 6.0, 701)[:, None], np.linspace(-14.0, 6.0, 1001)
    shape, inverse_scale = np.exp(log_shape), np.exp(log_inverse_scale)
    total = gamma(1.0).logpdf(shape) + log_shape + gamma(0.1).logpdf(inverse_scale) + log_inverse_scale
    a, b = alike * shape, alike * inverse_scale
    for t, x in zip(hours, failures):
        total = total + gammaln(a + x) - gammaln(a) + a * np.log(b) - (a + x) * np.log(b + t)
    cell = np.diff(log_shape[:, 0])[0] * np.diff(log_inverse_scale)[0]
    return float(logsumexp(total) + np.log(cell))  # but for terms that no prior changes


def test_pumps_whose_rates_depend_on_other_sites_agree_with_a_grid() -> None:
    study = STUDIES["pumps"]()
    fitted = fit(study.model, study.data, study.guide, Settings(steps=800), 0, "pumps")
    reduced_prior = study.reductions["half the variance of the rates"]
    reduction = reduce_model(fitted.guide, reduced_prior, num_samples=500)
    hours, failures = (given.numpy() for given in study.data)
    exact = log_evidence_of_pumps(hours, failures, 2.0) - log_evidence_of_pumps(hours, failures, 1.0)
    assert reduction.method == "importance"
    assert reduction.pareto_k < 0.7
    assert reduction.delta_evidence.item() == pytest.approx(exact, abs=0.3)
    # The reduced model opens plates of the same names as the program of its reduced prior.
    refitted = fit(model_to_refit(reduction, reduced_prior), study.data, study.guide, Settings(steps=2), 0, "pumps")
    assert refitted.log_weights.isfinite().all()


@pytest.mark.parametrize("name", STUDIES)
def test_each_study_asks_of_sites_that_its_model_has(name: str) -> None:
    study = STUDIES[name]()
    guide = study.guide(study.model)
    guide(*study.data)
    sites = set(guide.median(*study.data))
    for reduced_prior in study.reductions.values():
        assert callable(reduced_prior) or set(reduced_prior) <= sites


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refitting") / "table.csv"


def test_it_prints_the_table_and_saves_it(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = main(["--models", "poisson", "--steps", "5", "--seeds", "2", "--output", str(output)])
    lines = capsys.readouterr().out.splitlines()
    assert list(table.columns) == COLUMNS
    assert len(table) == 6
    pd.testing.assert_frame_equal(pd.read_csv(output), table)
    assert lines[0].startswith("| model | reduced prior | ΔF |")
    assert {line.count("|") for line in lines[: len(table) + 2]} == {12}
    assert lines[-1] == f"Table saved to {output}"


def test_the_same_seed_gives_the_same_numbers() -> None:
    study = STUDIES["poisson"]()
    study = dataclasses.replace(study, reductions={"without waist": study.reductions["without waist"]})
    once, again = (compare("poisson", study, Settings(steps=5), seed=3) for _ in range(2))
    numbers = [name for name in COLUMNS if not name.endswith("seconds") and name != "speed_up"]
    pd.testing.assert_frame_equal(once[numbers], again[numbers])


@pytest.mark.parametrize(("k", "trusted"), [(0.69, True), (0.71, False)])
def test_a_row_says_when_it_is_not_to_be_trusted(k: float, trusted: bool) -> None:
    numbers = dict.fromkeys(COLUMNS[3:], 1.0)
    words = {"model": "pumps", "reduced prior": "alike", "seed": 0, "method": "importance"}
    row = markdown(pd.DataFrame([{**numbers, **words, "pareto_k": k, "evidence_pareto_k": k}])).splitlines()[-1]
    assert ("not to be trusted" in row) is not trusted
    assert ("unknown" in row) is not trusted
