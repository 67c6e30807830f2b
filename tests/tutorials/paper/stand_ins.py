# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What stands in for the runs of a sweep: a process that is begun in no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tutorials.paper.sweep import Job

# Leaves its row, or does what its network's name says. What waits does so for as long as the sweep that began it lives.
RUN = """
import json, os, sys, time
from pathlib import Path
results, job, sweep = Path(sys.argv[1]), json.loads(sys.argv[2]), os.getppid()
written = results / f"{job['seed']}.begun"
written.write_text(str(os.getpid()))
written.rename(written.with_suffix(".pid"))
print("threads", os.environ["OMP_NUM_THREADS"])
if job["network"] == "fails" and job["seed"] == 1:
    sys.exit("no such luck")
if job["network"] == "waits for two":
    while len(list(results.glob("*.pid"))) < 2 and os.getppid() == sweep:
        time.sleep(0.01)
while job["network"] == "hangs" and os.getppid() == sweep:
    time.sleep(0.1)
if job["network"] != "forgets":
    with open(results / "results.jsonl", "a") as file:
        file.write(json.dumps(job) + "\\n")
"""


def stand_in(job: Job, results: Path) -> list[str]:
    """The command that stands in for a job's."""
    names = {"experiment": job.experiment, "data": job.data, "network": job.network, "criterion": job.criterion}
    row = {"schema": 1, "key": job.key, "settings": job.config.stem, "seed": job.seed, **names}
    return [sys.executable, "-c", RUN, str(results), json.dumps(row)]
