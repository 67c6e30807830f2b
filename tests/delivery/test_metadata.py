# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is said of the package in several files is the same in each."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

import pyro_bmrs

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
RECIPE = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))
# What conda-forge calls packages of PyPI that it calls otherwise.
IN_CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def bounds(requirements: list[str]) -> dict[str, str]:
    """The lower bound of each package, by its name in conda-forge; of what the package asks of itself there is none."""
    found = (re.fullmatch(r"([\w-]+)(?:\[\w+\])?\s*>=\s*([\w.]+)", line) for line in requirements)
    return {IN_CONDA.get(match[1], match[1]): match[2] for match in found if match}


def test_the_version_is_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading is not None
    versions = {heading[1], str(citation["version"]), RECIPE["context"]["version"]}
    assert versions == {pyro_bmrs.__version__}


def test_conda_installs_what_pip_does() -> None:
    stated = setup()["options"]["install_requires"].strip().splitlines()
    run = [line for line in RECIPE["requirements"]["run"] if not line.startswith("python ")]
    assert len(bounds(stated)) == len(stated)
    assert bounds(run) == bounds(stated)


def test_extras_have_the_same_bounds_wherever_they_are_named() -> None:
    extras = setup()["options.extras_require"]
    lines = [line for name in extras for line in extras[name].split()]
    named = {(name, bound) for line in lines for name, bound in bounds([line]).items()}
    assert len({name for name, _ in named}) == len(named)
    assert bounds(RECIPE["requirements"]["run_constraints"]).items() <= named


def test_pythons_are_those_that_are_tested() -> None:
    stated = re.findall(r"Python :: (3\.\d+)", setup()["metadata"]["classifiers"])
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["platforms"]["strategy"]["matrix"]["python"] == stated
    assert setup()["options"]["python_requires"] == f">={stated[0]}" == f">={RECIPE['context']['python_min']}"
