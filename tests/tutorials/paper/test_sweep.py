# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_bmrs import ReductionError
from tests.processes import PATIENCE, is_alive, needs_posix, wait_until
from tests.tutorials.paper.paths import CONFIGS
from tests.tutorials.paper.stand_ins import stand_in
from tutorials.paper.cli import PaperCLI, main
from tutorials.paper.results import read_rows
from tutorials.paper.sweep import ENDING, Job, read_jobs, sweep, take_shard

GRID = """
data: [mnist, digits]
grids:
  - {experiment: post_training, settings: paper, network: mlp, criterion: null, seed: [0, 1]}
  - experiment: continuous
    settings: [paper, recommended]
    network: mlp
    criterion: [BMRS_N, SNR]
    seed: 0
    overrides: {epochs: 3}
"""


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(Job, "command", stand_in)


def write_sweep(folder, text=GRID, settings=("paper", "recommended")):
    for name in settings:
        (folder / f"{name}.yaml").touch()
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def one_grid(folder, *, network="mlp", seeds=3):
    grid = f"{{experiment: continuous, settings: paper, data: digits, network: {network}, criterion: SNR, "
    return write_sweep(folder, f"grids:\n  - {grid}seed: {list(range(seeds))}}}\n")


def seeds(results):
    return sorted(row["seed"] for row in read_rows(results))


def test_the_jobs_of_a_grid(tmp_path):
    jobs = read_jobs(write_sweep(tmp_path))
    points = [(job.data, job.experiment, job.config.stem, job.criterion, job.seed, job.overrides) for job in jobs]
    of_each = [("post_training", "paper", None, seed, ()) for seed in (0, 1)] + [
        ("continuous", settings, criterion, 0, (("epochs", 3),))
        for settings in ("paper", "recommended")
        for criterion in ("BMRS_N", "SNR")
    ]
    # What is common varies slowest: all of one data set, then all of the next.
    assert points == [(data, *point) for data in ("mnist", "digits") for point in of_each]
    assert len({job.key for job in jobs}) == len({job.log(tmp_path) for job in jobs}) == len(jobs)
    assert {job.config for job in jobs} == {tmp_path / "paper.yaml", tmp_path / "recommended.yaml"}


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("sweep-*.yaml")))
def test_the_sweeps_that_come_with_the_program(name):
    jobs = read_jobs(CONFIGS / name)
    assert jobs
    for job in jobs:
        assert yaml.safe_load(job.config.read_text())["settings"] == job.config.stem


def test_a_sweep_of_table_1():
    """Six networks, each with the paper's batch and learning rate, and seven rows of each."""
    cells = {
        ("mnist", "mlp-8x100"): (128, 8.5e-4, 5),
        ("fashion_mnist", "mlp-2x150"): (128, 1.5e-3, 5),
        ("cifar10", "mlp-6x150"): (32, 6.8e-4, 5),
        ("mnist", "lenet5"): (128, 1.4e-3, 3),
        ("fashion_mnist", "lenet5"): (32, 1.4e-3, 3),
        ("cifar10", "lenet5"): (64, 1.03e-3, 3),
    }
    jobs = read_jobs(CONFIGS / "sweep-paper.yaml")
    papers = {None, "BMRS_N", "BMRS_U-8", "BMRS_U-4", "SNR", "PosteriorMean", "WeightNorm"}
    for (data, network), (batch, rate, seeds) in cells.items():
        own = [job for job in jobs if (job.data, job.network) == (data, network)]
        assert {job.criterion for job in own if job.seed == 0} == papers | {"compress"}
        assert {job.seed for job in own if job.criterion in ("BMRS_N", "SNR")} == set(range(seeds))
        for job in own:
            if job.criterion == "compress":
                assert job.config.stem == "compress" and not job.overrides
                continue
            options = dict(job.overrides)
            assert job.config.stem == "paper" and options["data.batch_size"] == batch
            assert options["model.lr"] == options["model.noise_lr"] == rate
            assert options.get("as_many_as") == ("BMRS_N" if job.criterion == "WeightNorm" else None)
    # What is followed comes first.
    keys = [job.key for job in jobs]
    for job in jobs:
        if job.criterion == "WeightNorm":
            followed = dataclasses.replace(job, criterion="BMRS_N", overrides=job.overrides[:-1])
            assert keys.index(followed.key) < keys.index(job.key)


@settings(deadline=None)
@given(count=st.integers(0, 50), parts=st.integers(1, 12))
def test_shards_are_a_partition(count, parts):
    jobs = [Job("continuous", Path("paper.yaml"), "digits", "mlp", "SNR", seed) for seed in range(count)]
    shards = [take_shard(jobs, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted((job for shard in shards for job in shard), key=jobs.index) == jobs
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_what_is_no_shard(shard):
    with pytest.raises(ReductionError, match="a shard is i/n with i from 1 to n"):
        take_shard([], shard)


@pytest.mark.parametrize(
    "text, message",
    [
        ("grids: [", "cannot be read"),
        ("data: mnist", "no list of grids"),
        ("- 3", "no list of grids"),
        ("grids: []", "no list of grids"),
        ("grids: [paper]", "grid 1: not names and values but 'paper'"),
        (GRID.replace("network: mlp", "net: mlp"), "grid 1: net is unknown"),
        (GRID + "    data: mnist\n", "grid 2: data is set outside the grids already"),
        (GRID.replace("seed: 0", "seed: one"), "grid 2: seed is an integer"),
        (GRID.replace("seed: 0", "seed: true"), "grid 2: seed is an integer"),
        (GRID.replace("    seed: 0\n", ""), "grid 2: seed is an integer"),
        (GRID.replace("seed: 0", "seed: []"), "grid 2: seed is an empty list"),
        (GRID.replace("data: [mnist, digits]", ""), "grid 1: data is a name"),
        (GRID.replace("data: [mnist, digits]", "data: []"), "outside the grids: data is an empty list"),
        (GRID.replace("data: [mnist, digits]", "data: [mnist, mnist]"), "is listed twice"),
        (GRID.replace("recommended", "recommendde"), r"no settings 'recommendde': .*recommendde\.yaml is missing"),
        (GRID.replace("{epochs: 3}", "3"), "grid 2: overrides are options and their values"),
        (GRID.replace("{epochs: 3}", "{epochs: {a: 1}}"), "grid 2: overrides are options and their values"),
    ],
)
def test_what_is_no_sweep(tmp_path, text, message):
    with pytest.raises(ReductionError, match=message):
        read_jobs(write_sweep(tmp_path, text))


def test_a_sweep_that_is_not_there(tmp_path):
    with pytest.raises(ReductionError, match=r"nowhere\.yaml cannot be read"):
        sweep(tmp_path / "nowhere.yaml", tmp_path)
    with pytest.raises(ReductionError, match="at least 1, not 0"):
        sweep(write_sweep(tmp_path), tmp_path, jobs=0)


def test_a_dry_run_prints_commands_and_runs_none(tmp_path, capsys):
    config, results = write_sweep(tmp_path), tmp_path / "results"
    assert sweep(config, results, dry_run=True, shard="2/2") == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [job.command(results) for job in read_jobs(config)[1::2]]
    assert all(line[:4] == [sys.executable, "-m", "tutorials.paper", "run"] for line in lines)
    assert not results.exists()


def test_a_command_says_all_that_the_job_is(tmp_path):
    overrides = (("trainer.max_epochs", 5), ("model.kl_weight", 30.0))
    job = Job("continuous", CONFIGS / "paper.yaml", "cifar10", "lenet5", "BMRS_U-8", 2, overrides)
    cli = PaperCLI(job.command(tmp_path)[4:])
    named = (cli.experiment.experiment, cli.experiment.settings, cli.experiment.criterion, cli.experiment.results)
    assert named == ("continuous", "paper", "BMRS_U-8", tmp_path)
    assert (cli.config.data.name, cli.config.model.network, cli.config.seed_everything) == ("cifar10", "lenet5", 2)
    assert (cli.config.trainer.max_epochs, cli.config.model.kl_weight) == (5, 30.0)
    assert cli.key == job.key
    unpruned = PaperCLI(dataclasses.replace(job, criterion=None).command(tmp_path)[4:])
    assert unpruned.experiment.criterion is None


def test_the_command_line(tmp_path, stand_ins, capsys):
    config = one_grid(tmp_path)
    options = ["sweep", "--config", str(config), "--results", str(tmp_path)]
    assert main([*options, "--shard", "1/3", "--dry_run", "true"]) == 0
    assert capsys.readouterr().out.count(sys.executable) == 1 and seeds(tmp_path) == []
    assert main([*options, "--jobs", "2"]) == 0
    assert seeds(tmp_path) == [0, 1, 2]
    assert main([*options, "--shard", "0/3"]) == 1
    assert "error: a shard is i/n" in capsys.readouterr().err
    assert (
        main(["sweep", "--config", str(one_grid(tmp_path, network="fails", seeds=2)), "--results", str(tmp_path)]) == 1
    )


def test_jobs_that_are_done_are_skipped(tmp_path, stand_ins, capsys, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config, results = one_grid(tmp_path), tmp_path / "results"
    assert sweep(config, results, shard="2/3") == 0
    assert seeds(results) == [1]
    assert sweep(config, results) == 0
    assert "3 jobs, 1 of them done" in capsys.readouterr().out
    # One row each: the second sweep has not run again what the first did.
    assert len((results / "results.jsonl").read_text().splitlines()) == 3
    assert seeds(results) == [0, 1, 2]
    for job in read_jobs(config):
        command, output = f"$ {shlex.join(job.command(results))}\n", "threads 1\n"
        assert job.log(results).read_text() == command + output


def test_threads_as_set_outside(tmp_path, stand_ins, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    config = one_grid(tmp_path, seeds=1)
    assert sweep(config, tmp_path) == 0
    assert "threads 3" in read_jobs(config)[0].log(tmp_path).read_text()


def test_a_job_that_fails_leaves_the_others(tmp_path, stand_ins, capsys):
    config = one_grid(tmp_path, network="fails")
    assert sweep(config, tmp_path) == 1
    assert seeds(tmp_path) == [0, 2]
    failed = read_jobs(config)[1]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"failed: {failed.key}: exit code 1; see {failed.log(tmp_path)}"
    assert "no such luck" in failed.log(tmp_path).read_text()


def test_a_job_that_leaves_no_row_has_failed(tmp_path, stand_ins, capsys):
    assert sweep(one_grid(tmp_path, network="forgets", seeds=1), tmp_path) == 1
    assert "left no row in the results" in capsys.readouterr().out


def test_jobs_run_side_by_side(tmp_path, stand_ins):
    # Each waits until another has begun.
    assert sweep(one_grid(tmp_path, network="waits for two", seeds=2), tmp_path, jobs=2) == 0
    assert seeds(tmp_path) == [0, 1]


def test_a_torn_row_is_run_again(tmp_path, stand_ins):
    config = one_grid(tmp_path)
    assert sweep(config, tmp_path) == 0
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="1 torn line moved"):
        assert sweep(config, tmp_path) == 0
    assert seeds(tmp_path) == [0, 1, 2]


def count_begun(folder):
    return len(list(folder.glob("*.pid")))


@needs_posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_sweep_ends_its_jobs(tmp_path, number):
    config = one_grid(tmp_path, network="hangs", seeds=5)
    # What runs the tests in the background may ignore Ctrl-C, and those that it starts inherit that.
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from tests.tutorials.paper import stand_ins; from tutorials.paper import sweep\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sweep.Job.command = stand_ins.stand_in\n"
        "sweep.sweep(Path(sys.argv[1]), Path(sys.argv[2]), jobs=2)\n"
    )
    command = [sys.executable, "-c", code, str(config), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: count_begun(tmp_path) == 2 or process.poll() is not None, "two jobs have begun")
            assert process.poll() is None, process.stderr.read()
            pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
            assert all(is_alive(pid) for pid in pids)
            os.kill(process.pid, number)
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode != 0, errors
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number, errors
    assert not any(is_alive(pid) for pid in pids)
    assert count_begun(tmp_path) == 2


def test_a_sweep_leaves_the_handlers_of_signals_as_they_were(tmp_path, stand_ins):
    before = [signal.getsignal(number) for number in ENDING]
    assert sweep(one_grid(tmp_path, seeds=1), tmp_path) == 0
    assert [signal.getsignal(number) for number in ENDING] == before
