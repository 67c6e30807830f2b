# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What compaction takes out is the same on every processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def started(capability: str) -> subprocess.Popen[str]:
    """A process of its own that compacts all networks, in which torch uses no other kernels than a processor's."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.pruning.compaction.removals"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def test_takes_out_the_same_whatever_the_processor_can_do() -> None:
    # Where a processor cannot do it, torch takes what it can.
    processes = {capability: started(capability) for capability in ("default", "avx2", "avx512")}
    told: dict[str, Any] = {name: json.loads(process.communicate()[0]) for name, process in processes.items()}
    assert all(process.returncode == 0 for process in processes.values())
    assert told["default"]["capability"] in ("DEFAULT", "NO AVX")
    removals = [one["removals"] for one in told.values()]
    for name, of_network in removals[0].items():
        assert all(other[name] == of_network for other in removals[1:]), name
        assert "removed" in json.dumps(of_network["fates"])
