# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Imports go one way, folders and files stay small, each source file has a test file, no test file imports another."""

import ast
import graphlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import pyro_bmrs

PACKAGE = Path(pyro_bmrs.__file__).parent
TESTS = Path(__file__).parent

# From the ground up: what stands on a floor imports from the floors below it, and from itself.
ROOMS = (
    "errors",
    "tables | plotting",
    "arviz_adapter",
    "distributions",
    "structure",
    "evidence",
    "posteriors | pruning",
    "integration",
    "reduction",
    "search",
    "refitting",
    "__init__",
)
PRUNING = (
    "examples | layers",
    "streams",
    "noise",
    "training",
    "criteria",
    "compaction",
    "selection",
    "compression",
    "__init__",
)
# Though it stands below.
NEVER = dict.fromkeys(("reduction", "search", "refitting", "__init__"), ("pruning",))

Graph = Mapping[str, set[str]]


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path) -> Iterator[str]:
    """The modules of the package that a file asks for, at its top, inside functions, and for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in SOURCES)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import; the package writes them out"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in SOURCES and alias.name not in exports(node.module or ""):
                    yield whole
                elif node.module in SOURCES:
                    yield node.module


def exports(package: str) -> set[str]:
    """What the ``__init__`` of a package imports by name; a function may have the name of the file that holds it."""
    tree = ast.parse(SOURCES[package].read_text())
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module != package]
    return {alias.asname or alias.name for node in froms for alias in node.names}


@cache
def graph_of_package() -> Graph:
    return {module: set(imports_of(path)) - {module} for module, path in SOURCES.items()}


def part(module: str, depth: int) -> str:
    parts = module.split(".")
    return parts[depth] if len(parts) > depth else "__init__"


def problems(graph: Graph) -> Iterator[str]:
    """What is wrong with the imports."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield "circle: " + " -> ".join(error.args[1])
    for order, depth in ((ROOMS, 1), (PRUNING, 2)):
        floor = {room: number for number, rooms in enumerate(order) for room in rooms.split(" | ")}
        for module, asked in graph.items():
            for other in asked:
                if depth == 2 and not (part(module, 1) == "pruning" == part(other, 1)):
                    continue
                here, there = part(module, depth), part(other, depth)
                beside = here != there and floor[here] == floor[there]
                if floor[here] < floor[there] or beside or there in NEVER.get(here, ()):
                    yield f"{module} may not import {other}"


def test_that_imports_go_one_way():
    assert not list(problems(graph_of_package()))


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("evidence.dispatch", "posteriors.fitted_guide"),
        ("distributions.truncated_normal", "evidence.registry"),
        ("reduction.reduction", "pruning.selection.prune"),
        ("search.search_models", "pruning.noise.guide"),
        ("refitting.refit", "pruning.training.models"),
        ("pruning.selection.prune", "reduction.reduction"),
        ("plotting", "reduction.reduction"),
        ("posteriors.reading", "reduction.priors"),
        ("pruning.noise.placement", "pruning.criteria.weights"),
        ("evidence.registry", "evidence.dispatch"),
    ],
)
def test_that_a_forbidden_import_is_noticed(module, other):
    graph = {name: set(asked) for name, asked in graph_of_package().items()}
    graph[f"pyro_bmrs.{module}"].add(f"pyro_bmrs.{other}")
    assert list(problems(graph))


def test_that_imports_for_types_and_inside_functions_count(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from pyro_bmrs.search.groups import Groups\n"
        "def plot():\n    from pyro_bmrs import plotting\n    import pyro_bmrs.errors\n"
    )
    assert set(imports_of(file)) == {"pyro_bmrs.search.groups", "pyro_bmrs.plotting", "pyro_bmrs.errors"}


def test_that_folders_stay_small():
    folders = [path for path in (PACKAGE, *PACKAGE.rglob("*")) if path.is_dir() and path.name != "__pycache__"]
    sizes = {path: len([entry for entry in path.iterdir() if entry.name != "__pycache__"]) for path in folders}
    assert not {path.name: size for path, size in sizes.items() if size > (15 if path == PACKAGE else 10)}


def test_that_files_stay_short():
    lengths = {module: len(path.read_text().splitlines()) for module, path in SOURCES.items()}
    assert not {module: length for module, length in lengths.items() if length > 400}


def test_that_each_source_file_has_its_test_file():
    sources = [path for path in SOURCES.values() if path.name != "__init__.py"]
    mirrors = [TESTS / path.relative_to(PACKAGE).with_name(f"test_{path.name}") for path in sources]
    assert not [str(mirror.relative_to(TESTS)) for mirror in mirrors if not mirror.exists()]


def test_that_no_test_file_imports_another():
    tests = sorted(TESTS.rglob("test_*.py"))
    imported = {
        (path.name, name)
        for path in tests
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for name in [f"{node.module}.{alias.name}" for alias in node.names]
        if ".test_" in f".{name}"
    }
    assert not imported
