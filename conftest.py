# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What each test and each docstring's example begins with, and may not leave behind."""

import random
from collections.abc import Iterator
from pathlib import Path

import coverage
import numpy as np
import pyro
import pytest
import torch

# Whole programs, of whose parts there are tests: they take longest, and nothing is covered by them alone.
PROGRAMS = Path(__file__).parent / "tests" / "tutorials"

# Read once, as fixtures of wider scope run before that of a test and may set it.
DEFAULT_DTYPE = torch.get_default_dtype()
DEFAULT_THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def clean_slate():
    """Random numbers of its own, an empty parameter store, and the settings that torch and Pyro begin with."""
    _clean()
    # As pyro.set_rng_seed(0), which takes three milliseconds to seed devices that no test has used.
    torch.default_generator.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    yield
    _clean()


def _clean() -> None:
    pyro.clear_param_store()
    pyro.enable_validation(__debug__)
    torch.set_default_dtype(DEFAULT_DTYPE)
    torch.set_num_threads(DEFAULT_THREADS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Measures no fixture that is made for a test that is not measured: fits that tests share are made there."""
    measuring = coverage.Coverage.current() if item.get_closest_marker("no_cover") else None
    if measuring is None:
        yield
        return
    measuring.stop()
    try:
        yield
    finally:
        measuring.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A tracer makes a test half as long again. Of the cases of one test the first is measured: others run its lines.
    seen = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test in seen or item.path.is_relative_to(PROGRAMS):
            item.add_marker(pytest.mark.no_cover)
        seen.add(test)
    # What is short comes last, so that no worker is long at work when the others have done.
    items.sort(key=lambda item: not item.path.is_relative_to(PROGRAMS))
