# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What compaction takes out is the same on every processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.pruning.compaction.removals import all_removals

ROOT = Path(__file__).parents[3]


def test_takes_out_the_same_whatever_the_processor_can_do() -> None:
    # A process of its own, in which torch uses no other kernels than those of any processor; here it takes what it can.
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.pruning.compaction.removals"]
    process = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(process.stdout)
    assert told["capability"] in ("DEFAULT", "NO AVX")
    for name, of_network in json.loads(json.dumps(all_removals())).items():
        assert told["removals"][name] == of_network, name
        assert "removed" in json.dumps(of_network["fates"])
