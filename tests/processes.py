# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Processes that tests start: what is waited for is the event, however long a busy machine takes to bring it about."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# Seconds that only what hangs will take.
PATIENCE = 1800.0

needs_posix = pytest.mark.skipif(os.name == "nt", reason="Windows does not end a process by a signal")


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """
    Waits until something holds.

    :param holds: is asked again and again.
    :param what: names it, should it never come about.
    """
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:.0f} s"
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    """Whether a process lives, by its number; one that ended and that nobody has asked after does not."""
    if not Path("/proc/self/stat").exists():  # as on macOS
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
        return bool(state.strip()) and not state.lstrip().startswith("Z")
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
