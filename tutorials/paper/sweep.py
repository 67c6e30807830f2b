# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Sweeps: a grid of runs as independent jobs, each a process of its own.

A sweep's YAML lists grids. Each names, by a value or a list of values, what a run is: its ``experiment``, ``settings``
(a configuration beside the sweep's, without ``.yaml``), ``data``, ``network``, ``criterion`` and ``seed``, and
``overrides`` of the settings where there are any. What stands outside the grids is common to all of them::

    data: [mnist, cifar10]
    grids:
      - {experiment: post_training, settings: paper, network: mlp, criterion: BMRS_N, seed: [0, 1, 2]}
      - {experiment: continuous, settings: [paper, recommended], network: mlp, criterion: [BMRS_N, SNR], seed: 0}

The jobs come in the order of the file, what is common varying slowest. Those with a row in the results are skipped, so
that a sweep that was interrupted goes on where it was.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from pyro_bmrs.errors import ReductionError

from .results import job_key, read_rows

_NAMES = ("experiment", "settings", "data", "network", "criterion", "seed", "overrides")
# One thread a job; and glibc keeps the memory that each step of training takes anew, which else is a fifth of its time.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_END = 10.0

# Windows has neither terminals that are closed nor groups of processes.
if sys.platform == "win32":
    ENDING: tuple[signal.Signals, ...] = (signal.SIGTERM,)

    def _end_group(process: subprocess.Popen[bytes], kill: bool = False) -> None:
        """The process alone, and at once."""
        process.kill()

else:
    ENDING: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGHUP)

    def _end_group(process: subprocess.Popen[bytes], kill: bool = False) -> None:
        """A process with all that it started."""
        try:
            os.killpg(process.pid, signal.SIGKILL if kill else signal.SIGTERM)
        except ProcessLookupError:
            pass  # all of them ended by themselves


@dataclass(frozen=True)
class Job:
    """
    A run of a sweep.

    :param config: the settings' file.
    :param overrides: of the settings, as options and their values.
    """

    experiment: str
    config: Path
    data: str
    network: str
    criterion: str | None
    seed: int
    overrides: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """What its row in the results is known by."""
        return job_key(
            self.experiment,
            self.config.stem,
            self.data,
            self.network,
            self.criterion,
            self.seed,
            dict(self.overrides),
        )

    def command(self, results: Path) -> list[str]:
        """
        The command that runs it.

        :param results: the folder of results.
        """
        options: dict[str, Any] = {
            "config": self.config,
            "experiment": self.experiment,
            "data.name": self.data,
            "model.network": self.network,
            "criterion": "null" if self.criterion is None else self.criterion,
            "seed": self.seed,
            **dict(self.overrides),
            "results": results,
            "key": self.key,
        }
        arguments = itertools.chain.from_iterable((f"--{name}", str(value)) for name, value in options.items())
        return [sys.executable, "-m", "tutorials.paper", "run", *arguments]

    def log(self, results: Path) -> Path:
        """
        Where what it prints goes.

        :param results: the folder of results.
        """
        return results / "logs" / (re.sub(r"[^\w.,=+-]+", "_", self.key) + ".log")


def sweep(config: Path, results: Path, *, jobs: int = 1, shard: str | None = None, dry_run: bool = False) -> int:
    """
    Runs what a sweep lists and the results lack.

    A job that fails leaves the others to go on, and is named at the end with its log. Ctrl-C and SIGTERM end the jobs
    that run. Each has one thread, unless ``OMP_NUM_THREADS`` says otherwise.

    :param config: the sweep's YAML file.
    :param results: the folder of results; the logs of jobs go to ``logs`` in it.
    :param jobs: how many run at a time.
    :param shard: ``i/n``, from ``1/n`` to ``n/n``: only each n-th job, from the i-th on; for the job arrays of a
        scheduler. Together the shards are the sweep.
    :param dry_run: only prints the commands of what would be run.
    :return: 0 if all jobs have rows now, 1 if any failed.
    :raises ReductionError: for a file that is no sweep, a shard that is none, or ``jobs`` below 1.
    """
    if jobs < 1:
        raise ReductionError(f"jobs is how many run at a time, at least 1, not {jobs}")
    all_jobs = take_shard(read_jobs(config), shard)
    done = {row["key"] for row in read_rows(results)}
    todo = [job for job in all_jobs if job.key not in done]
    if dry_run:
        for job in todo:
            print(shlex.join(job.command(results)))
        return 0
    print(f"{config}: {len(all_jobs)} jobs, {len(all_jobs) - len(todo)} of them done")
    with _ended_by_signals(), tqdm(total=len(all_jobs), initial=len(all_jobs) - len(todo), unit="job") as progress:
        failed = _run(todo, results, jobs, progress)
    for job, reason in failed.items():
        print(f"failed: {job.key}: {reason}; see {job.log(results)}")
    return 1 if failed else 0


def read_jobs(config: Path) -> list[Job]:
    """
    The jobs that a sweep lists, in order.

    :param config: the sweep's YAML file.
    :raises ReductionError: where it is missing or no sweep, naming what is wrong.
    """
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReductionError(f"the sweep {config} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("grids"), list) or not content["grids"]:
        raise ReductionError(f"{config} is no sweep: it has no list of grids")
    common = {name: value for name, value in content.items() if name != "grids"}
    jobs: dict[str, Job] = {}
    for shared in _product(common, f"{config}, outside the grids"):
        for number, grid in enumerate(content["grids"], start=1):
            where = f"{config}, grid {number}"
            if not isinstance(grid, dict):
                raise ReductionError(f"{where}: not names and values but {grid!r}")
            if twice := sorted(grid.keys() & shared.keys()):
                raise ReductionError(f"{where}: {', '.join(twice)} is set outside the grids already")
            for point in _product(grid, where):
                job = _job({**shared, **point}, config.parent, where)
                if job.key in jobs:
                    raise ReductionError(f"{where}: the job {job.key} is listed twice")
                jobs[job.key] = job
    return list(jobs.values())


def take_shard(jobs: Sequence[Job], shard: str | None) -> list[Job]:
    """
    One of the equal parts of a sweep's jobs.

    :param jobs: all of them.
    :param shard: ``i/n``, with i from 1 to n; none takes all.
    :raises ReductionError: for what is no such part.
    """
    if shard is None:
        return list(jobs)
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise ReductionError(f"a shard is i/n with i from 1 to n, such as 1/4, not {shard!r}")
    return list(jobs[part - 1 :: parts])


def _product(grid: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Each choice of one value for each name."""
    if unknown := sorted(str(name) for name in grid if name not in _NAMES):
        raise ReductionError(f"{where}: {', '.join(unknown)} is unknown; a grid sets {', '.join(_NAMES)}")
    axes = [value if isinstance(value, list) else [value] for value in grid.values()]
    for name, values in zip(grid, axes):
        if not values:
            raise ReductionError(f"{where}: {name} is an empty list")
    for choice in itertools.product(*axes):
        yield dict(zip(grid, choice))


def _job(point: dict[str, Any], folder: Path, where: str) -> Job:
    """One point of a grid, checked."""
    texts = {name: point.get(name) for name in ("experiment", "settings", "data", "network", "criterion")}
    for name, value in texts.items():
        if not isinstance(value, str) and not (name == "criterion" and value is None):
            raise ReductionError(f"{where}: {name} is a name or a list of names, not {value!r}")
    seed, overrides = point.get("seed"), point.get("overrides") or {}
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ReductionError(f"{where}: seed is an integer or a list of them, not {seed!r}")
    if not isinstance(overrides, dict) or not all(isinstance(value, str | int | float) for value in overrides.values()):
        raise ReductionError(f"{where}: overrides are options and their values, not {overrides!r}")
    config = folder / f"{texts['settings']}.yaml"
    if not config.is_file():
        raise ReductionError(f"{where}: there are no settings {texts['settings']!r}: {config} is missing")
    return Job(
        str(texts["experiment"]),
        config,
        str(texts["data"]),
        str(texts["network"]),
        point.get("criterion"),
        seed,
        tuple(overrides.items()),
    )


def _run(todo: Sequence[Job], results: Path, jobs: int, progress: tqdm[Any]) -> dict[Job, str]:
    """Runs jobs, so many at a time; those that failed, and how."""
    waiting, running, failed = deque(todo), dict[Job, subprocess.Popen[bytes]](), dict[Job, str]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                job = waiting.popleft()
                running[job] = _start(job, results)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                code = running.pop(job).returncode
                if code:
                    failed[job] = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                elif job.key not in {row["key"] for row in read_rows(results)}:
                    failed[job] = "it ended well, but left no row in the results"
                progress.set_postfix(failed=len(failed), refresh=False)
                progress.update()
    finally:
        _end(list(running.values()))
    return failed


def _start(job: Job, results: Path) -> subprocess.Popen[bytes]:
    command, log = job.command(results), job.log(results)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        # In a session of its own, a job can be ended together with the processes that it started.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**_ENVIRONMENT, **os.environ},
            start_new_session=True,
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends processes and what they started: first with a chance to do so themselves."""
    for process in processes:
        _end_group(process)
    deadline = time.monotonic() + _SECONDS_TO_END
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        _end_group(process, kill=True)
        process.wait()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP, as a scheduler or a closed terminal sends them, unwind the stack as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only there can signals be handled
        return

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
