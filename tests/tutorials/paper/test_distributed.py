# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Runs of two processes, as Lightning starts them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

for package in ("lightning", "jsonargparse", "sklearn", "torch_pruning"):
    pytest.importorskip(package)

from tests.processes import PATIENCE, is_alive, needs_posix, wait_until  # noqa: E402
from tests.tutorials.paper.paths import QUICK  # noqa: E402
from tutorials.paper.cli import main  # noqa: E402
from tutorials.paper.data import Images  # noqa: E402
from tutorials.paper.results import read_rows  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), needs_posix]

WITNESSES = "tests.tutorials.paper.witnesses"
TWO = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", f"--process_timeout={PATIENCE}"]
EPOCHS = ["--trainer.max_epochs=14", "--start=7", "--fine_tune_epochs=2"]
SHORT = ["--trainer.max_epochs=5", "--start=2", "--fine_tune_epochs=1"]


def callbacks(*given: tuple[str, dict]) -> str:
    entries = [{"class_path": f"{WITNESSES}.{name}", "init_args": options} for name, options in given]
    return f"--trainer.callbacks={json.dumps(entries)}"


def kill(finish, folder: Path, rank: int, *options: str) -> None:
    """A run of which one process is killed, which ends it."""
    watched = callbacks(("Presence", {"folder": str(folder)}), ("Death", {"epoch": 3, "rank": rank}))
    status, _ = finish("--key=two", *options, *TWO, watched)
    assert status != 0
    processes = [int((folder / f"{number}.pid").read_text()) for number in range(2)]
    wait_until(lambda: not any(map(is_alive, processes)), "both processes have ended")
    assert read_rows(folder) == []


def test_the_first_rank_that_is_killed_takes_the_others_with_it(finish, tmp_path):
    kill(finish, tmp_path, 0, *SHORT)


def test_two_processes_resumed_when_one_was_killed_decide_alike_and_as_well_as_one(finish, tmp_path):
    # Masked, so that what each process has at the end is the network with its masks.
    options = [*EPOCHS, "--fine_tune=masked"]
    kill(finish, tmp_path, 1, *options)
    status, errors = finish("--key=two", *options, *TWO, callbacks(("Witness", {"folder": str(tmp_path)})))
    assert status == 0, errors
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    masks = [{name: mask for name, mask in found["state"].items() if name.endswith("kept")} for found in states]
    assert len(masks[0]) == 2 and 0 < sum(int((~mask).sum()) for mask in masks[0].values())
    for name, value in states[0]["state"].items():
        assert torch.equal(value, states[1]["state"][name]), name
    # While each draws noise of its own.
    assert states[0]["seed"] != states[1]["seed"]
    alone = ["run", f"--config={QUICK}", f"--results={tmp_path}", "--trainer.logger=false", "--key=one", *options]
    assert main(alone) == 0
    two, one = read_rows(tmp_path)
    assert (two["world_size"], one["world_size"]) == (2, 1)
    assert sum(int(mask.sum()) for mask in masks[0].values()) == two["units_left"]
    # Four standard errors of the difference, as if each had a test set of its own.
    p = (two["accuracy"] + one["accuracy"]) / 2
    assert abs(two["accuracy"] - one["accuracy"]) < 4 * math.sqrt(2 * p * (1 - p) / len(Images("digits").test))
    assert one["accuracy"] > 0.9
    assert abs(two["units_left"] - one["units_left"]) < 20
    # Each epoch once, those before the death too.
    assert [epoch for epoch, _, _ in two["history"]] == list(range(16))
