# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Processes that tests start: what is waited for is the event, however long a busy machine takes to bring it about."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

# Seconds that only what hangs will take.
PATIENCE = 1800.0


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
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
