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
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(page: str) -> str:
    return (FOLDER / f"{page}.md").read_text(encoding="utf-8")


def code_of(page: str) -> str:
    """All cells of a page as one program."""
    return "\n".join(re.sub(r"\A(?::[^\n]*\n)+", "", cell) for cell in CELL.findall(text_of(page)))


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


@pytest.mark.filterwarnings("ignore")
def test_the_schools_do_not_tell_and_the_guide_misleads() -> None:
    found = run("eight_schools")
    pooled = found["pooled"].checked
    assert 0 < pooled.delta_evidence < 1 and pooled.trusted
    assert pooled.read_off < -1
    of_draws, of_guide = found["of_draws"], found["of_guide"]
    error = float(of_draws.standard_error) + of_guide.checked.standard_error
    assert float(of_draws.delta_evidence) == pytest.approx(of_guide.checked.delta_evidence, abs=0.05 + 2 * error)


@pytest.mark.filterwarnings("ignore")
def test_what_is_to_blame_for_which_exercise() -> None:
    found = run("prior_to_blame")["found"]
    assert {name: len(own.stretches) for name, own in found.items()} == {
        "slopes[chin-ups]": 2,
        "slopes[sit-ups]": 1,
        "slopes[jumps]": 2,
    }
    (sit_ups,) = found["slopes[sit-ups]"].stretches
    assert sit_ups.sign == 1 and not (found["slopes[sit-ups]"].checked_log_bayes_factor < 0).any()
    assert 0.8 < found["slopes[jumps]"].stretches[0].high < 1.5
    assert found["slopes[chin-ups]"].stretches[0].high < 0.3
