# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.processes import PATIENCE
from tests.tutorials.paper.paths import QUICK, ROOT


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """What data sets leave behind goes with the test."""
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setenv("PYRO_BMRS_CACHE", str(tmp_path / "images"))
    monkeypatch.delenv("PYRO_BMRS_DATA", raising=False)
    return tmp_path


@pytest.fixture
def start(tmp_path):
    """Starts a run on the digits in a process of its own, which is gone when the test is."""
    processes = []

    def start(*options: str) -> subprocess.Popen[str]:
        arguments = ["run", f"--config={QUICK}", f"--results={tmp_path}", "--trainer.logger=false", *options]
        # A run that is one of several processes says so in the environment, which the next may not inherit.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "MASTER_"))}
        process = subprocess.Popen(
            [sys.executable, "-m", "tutorials.paper", *arguments],
            cwd=ROOT,
            env=inherited | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def finish(start):
    """Runs on the digits in a process of its own: its exit status, and what it wrote to standard error."""

    def finish(*options: str) -> tuple[int, str]:
        process = start(*options)
        _, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, errors

    return finish
