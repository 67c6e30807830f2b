# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What the pages point to is there: other pages and their headings, files of the repository, names of the package."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BUILT = DOCS / "_build", DOCS / "reference" / "api"
PAGES = sorted(page for page in DOCS.rglob("*.md") if not any(page.is_relative_to(folder) for folder in BUILT))
TEXTS = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tutorials/paper/README.md")),
]
ROOMS = (
    "",
    ".distributions",
    ".evidence",
    ".integration",
    ".plotting",
    ".posteriors",
    ".pruning",
    ".reduction",
    ".refitting",
    ".search",
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"^```[^\n]*\n.*?^```$|\$\$.*?\$\$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ +(.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert not dead_links(page)


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading\n[a](page.md#one-heading) [b](#two) [c](none.md) [d](https://none)\n```\n[e](none)\n```\n"
    )
    assert dead_links(page) == ["#two", "none.md"]


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # But for toctrees, whose pages Sphinx looks for by itself.
    text = re.sub(r"^```\{toctree\}\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"(?<![\w/(])(?:docs|pyro_bmrs|tests|tutorials)/[\w/.\-]*\w", text)
    assert not [path for path in named if not (ROOT / path).exists() and not path.startswith("docs/_build")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_of_the_package_are_there(page: Path) -> None:
    named = re.findall(
        r"\{(?:func|class|meth|attr|exc|mod)\}`[~.]*(pyro_bmrs[\w.]*)`", page.read_text(encoding="utf-8")
    )
    assert not [name for name in named if not is_there(name)]


def is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


def test_each_public_name_has_one_page_in_the_reference() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    listed = []
    for room, names in re.findall(
        r"currentmodule:: (\S+)\n\n.. autosummary::\n   :toctree: api\n\n((?:   \w+\n)+)", text
    ):
        listed += [getattr(importlib.import_module(room), name) for name in names.split()]
    rooms = [importlib.import_module(f"pyro_bmrs{room}") for room in ROOMS]
    public = [getattr(room, name) for room in rooms for name in room.__all__]
    missing = [value for value in public if callable(value) and value not in listed]
    assert not missing
    assert len(listed) == len(set(listed)) == text.count("\n   ") - text.count(":toctree:")
