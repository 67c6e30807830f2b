# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from variable_selection import main, rank_correlation

from pyro_bmrs import ModelSpace


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variable_selection") / "figure"


@pytest.fixture(scope="module")
def found(output: Path) -> tuple[ModelSpace, pd.DataFrame]:
    return main(["--output", str(output), "--steps", "600", "--refits", "8"])


def test_all_models_of_twenty_covariates_are_known(found: tuple[ModelSpace, pd.DataFrame]) -> None:
    space, _ = found
    assert (space.strategy, space.num_models) == ("exhaustive", 2**20)
    assert space.top(space.num_models).probability.sum().item() == pytest.approx(1.0)


def test_the_one_fit_ranks_models_as_refitting_does(found: tuple[ModelSpace, pd.DataFrame]) -> None:
    _, refits = found
    assert len(refits) == 8
    assert rank_correlation(refits) > 0.9
    probable = refits[refits["sample"] == "drawn by probability"]
    assert (probable["delta_evidence"] - probable["refitted"]).abs().max() < 1.0


def test_the_figures_are_saved_where_they_are_asked_for(found: tuple[ModelSpace, pd.DataFrame], output: Path) -> None:
    for name in ("models", "refits"):
        assert output.with_name(f"figure_{name}.png").stat().st_size > 10_000
