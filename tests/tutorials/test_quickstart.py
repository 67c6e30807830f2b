# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pytest
from quickstart import PRIOR_SCALE, REDUCED_SCALE, load_study, main
from scipy.stats import multivariate_normal

from pyro_bmrs import Reduction

STRONG = ["bmi", "s5", "bp", "sex"]
NOISE = [f"noise {number}" for number in range(1, 6)]


@pytest.fixture(scope="module")
def figure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart") / "figure.png"


@pytest.fixture(scope="module")
def quickstart(figure: Path) -> tuple[pd.DataFrame, Reduction]:
    """The table and the reduction of all that it drops, of the very run that `make quickstart` makes."""
    return main(["--output", str(figure)])


@pytest.fixture(scope="module")
def table(quickstart: tuple[pd.DataFrame, Reduction]) -> pd.DataFrame:
    return quickstart[0]


def log_evidence(prior_scales: np.ndarray) -> float:
    """Exact log evidence of the regression with the noise's scale fixed at its unbiased estimate."""
    pyro.set_rng_seed(0)
    _, covariates, progression = load_study()
    x, y = covariates.double().numpy(), progression.double().numpy()
    patients, size = x.shape
    residual_sum_of_squares = np.linalg.lstsq(x, y)[1][0]
    noise = residual_sum_of_squares / (patients - size - 1)
    covariance = noise * np.eye(patients) + (x * prior_scales**2) @ x.T
    return float(multivariate_normal(cov=covariance).logpdf(y))


def test_strong_covariates_stay_and_noise_goes(table: pd.DataFrame) -> None:
    assert (table.loc[STRONG, "verdict"] == "keep").all()
    assert (table.loc[NOISE, "verdict"] == "drop").all()
    assert (table.loc[STRONG, "probability"] < 0.05).all()
    assert (table.loc[NOISE, "probability"] > 0.5).all()


def test_each_change_in_evidence_is_that_of_the_exact_regression(table: pd.DataFrame) -> None:
    scales = np.full(len(table), PRIOR_SCALE)
    full = log_evidence(scales)
    exact = []
    for place in range(len(table)):
        reduced = scales.copy()
        reduced[place] = REDUCED_SCALE
        exact.append(log_evidence(reduced) - full)
    # What is left is SVI's own error, in the posterior scales of strongly correlated covariates.
    assert table["delta_evidence"].to_numpy() == pytest.approx(np.array(exact), rel=0.1, abs=0.2)


def test_dropping_together_is_worth_what_the_exact_regression_says(quickstart: tuple[pd.DataFrame, Reduction]) -> None:
    table, together = quickstart
    dropped = (table["verdict"] == "drop").to_numpy()
    exact = log_evidence(np.where(dropped, REDUCED_SCALE, PRIOR_SCALE)) - log_evidence(np.full(len(table), PRIOR_SCALE))
    assert together.delta_evidence.item() == pytest.approx(exact, rel=0.1)


def test_a_dropped_coefficient_is_zero_in_the_reduced_posterior(quickstart: tuple[pd.DataFrame, Reduction]) -> None:
    table, together = quickstart
    posterior = together.summary().set_axis(table.index)
    dropped = posterior[table["verdict"] == "drop"]
    assert dropped["reduced_mean"].abs().max() < 3 * REDUCED_SCALE
    assert dropped["reduced_sd"].to_numpy() == pytest.approx(REDUCED_SCALE, rel=0.01)


def test_the_figure_is_a_picture(quickstart: tuple[pd.DataFrame, Reduction], figure: Path) -> None:
    height, width, _ = plt.imread(figure).shape
    assert height > 500
    assert width > 1000


def test_it_prints_the_table_and_names_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "other.png"
    table, _ = main(["--output", str(output), "--steps", "20", "--seed", "1"])
    printed = capsys.readouterr().out
    assert output.exists()
    assert f"Figure saved to {output}" in printed
    assert all(name in printed for name in table.index)
