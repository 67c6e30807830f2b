# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The tutorials, which the build of the site runs: all can be found and downloaded, and the quickest two say what is so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index")
OPTIONS = re.compile(r"\A(?:---\n.*?^---\n|(?::[^\n]*\n)+)", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(page: str) -> str:
    return (FOLDER / f"{page}.md").read_text(encoding="utf-8")


def code_of(page: str) -> str:
    """All cells of a page as one program."""
    return "\n".join(OPTIONS.sub("", cell) for cell in CELL.findall(text_of(page)))


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_a_notebook_that_the_index_leads_to(page: str) -> None:
    assert text_of(page).startswith("---\nfile_format: mystnb\n")
    assert f"{{nb-download}}`{page}.ipynb`" in text_of(page)
    assert text_of("index").count(f"]({page}.md)") == 1
    assert re.search(rf"^{page}$", text_of("index"), re.MULTILINE)
    compile(code_of(page), page, "exec")


def run(page: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with pyro.settings.context(bmrs_automatic_check=True):
        exec(compile(code_of(page), page, "exec"), found)
    return found


@pytest.mark.filterwarnings("ignore::pyro_bmrs.ReductionWarning")
def test_six_covariates_may_go_one_by_one_and_not_together() -> None:
    found = run("first_reduction")
    alone, six = found["each"].elementwise["slopes"], found["six"].checked
    assert (alone > 0).sum() == 6 and alone[2] < -20
    assert six.trusted and six.delta_evidence < 0 and abs(six.read_off - six.delta_evidence) > 0.4
    few = found["few"].checked
    assert few.trusted and few.delta_evidence > 5
    assert found["log_density"](found["few"].guide) > found["log_density"](found["guide"]) - 0.02


def test_a_rule_and_a_criterion_of_ones_own_say_what_is_so(own_rules: None) -> None:
    found = run("your_own_rule")
    by_rule, by_quadrature = found["by_rule"], found["by_quadrature"]
    assert (by_rule.method, by_quadrature.method) == ("exact", "quadrature")
    assert by_rule.delta_evidence.item() == pytest.approx(by_quadrature.delta_evidence.item(), abs=1e-4)
    curves = found["table"]
    half = curves[curves["share of the units removed"].between(0.4, 0.5)]
    assert half[half["method"] != "WeightNorm"]["accuracy"].min() > 0.85
