# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sparse_groups
import torch
from scipy.integrate import quad
from scipy.stats import halfcauchy, halfnorm, multivariate_normal

# Pyro compiles by what torch would have replaced.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sparse_groups") / "figure.png"


@pytest.fixture(scope="module")
def table(output: Path) -> pd.DataFrame:
    """Of the ten data sets the first, and the seventh, in which chance speaks for a group without an effect."""
    return sparse_groups.main(["--output", str(output), "--seeds", "0", "6"])


def test_the_data_sets_are_of_twenty_groups(table: pd.DataFrame) -> None:
    assert table.groupby("data set")["active"].agg(["size", "sum"]).to_numpy().tolist() == [[20, 5]] * 2


def test_null_groups_switch_off_whole_through_their_scale_and_active_ones_stay(table: pd.DataFrame) -> None:
    assert (table["off by scale"] == ~table["active"]).all()


def test_so_they_do_by_their_directions_but_for_one_where_chance_speaks_for_an_effect(table: pd.DataFrame) -> None:
    kept = table[~table["off by direction"]]
    assert kept["active"].sum() == table["active"].sum()
    by_chance = kept[~kept["active"]]
    assert by_chance["data set"].tolist() == [6]
    assert (by_chance["exact"] < 0).all()


def test_the_one_fit_knows_the_evidence_of_null_groups(table: pd.DataFrame) -> None:
    null = table[~table["active"]]
    gap = null["scale"] - null["exact"]
    assert gap.abs().median() < 0.3
    assert gap.abs().max() < 1.5
    assert null["scale"].corr(null["exact"]) > 0.95


def test_the_shared_scale_is_not_nothing(table: pd.DataFrame) -> None:
    assert (table["nothing at all"] < -10).all()


def test_the_exact_changes_are_those_of_numerical_integration() -> None:
    torch.set_default_dtype(torch.float64)
    data = sparse_groups.simulate(0)
    group = int((~data.active).nonzero()[0])
    x, rest = data.covariates[:, group].numpy(), 0.3 * data.covariates[:, data.active].flatten(1).numpy()
    base = np.eye(len(x)) + rest @ rest.T

    def likelihood(scale: float) -> float:
        return multivariate_normal(cov=base + (0.15 * scale) ** 2 * x @ x.T).logpdf(data.response.numpy())

    none = likelihood(0.0)

    def evidence(prior: object) -> float:
        def integrand(log_scale: float) -> float:
            scale = np.exp(log_scale)
            return np.exp(likelihood(scale) - none) * prior.pdf(scale) * scale

        return quad(integrand, -8.0, 6.0, epsrel=1e-4)[0]

    exact = np.log(evidence(halfnorm(scale=0.2)) / evidence(halfcauchy()))
    found = sparse_groups.exact_changes(data, torch.tensor(0.15))[group]
    assert found.item() == pytest.approx(exact, abs=1e-2)


def test_the_figure_is_saved_where_it_is_asked_for(table: pd.DataFrame, output: Path) -> None:
    assert output.stat().st_size > 10_000
