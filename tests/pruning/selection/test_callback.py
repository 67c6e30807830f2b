# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from pyro_bmrs import ReductionError, ReductionWarning
from pyro_bmrs.pruning import BMRS_N
from tests.processes import PATIENCE, needs_posix

pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore")

SCRIPT = Path(__file__).with_name("lightning_run.py")


@needs_posix
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path):
    from tests.pruning.selection.lightning_run import run

    command = [sys.executable, str(SCRIPT), str(tmp_path / "killed"), "8", "4"]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "killed" / "last.ckpt").exists()
    states = [run(tmp_path / name, 8)[0].state_dict() for name in ("whole", "killed")]
    kept = [value for name, value in states[0].items() if name.endswith("kept")]
    assert 0 < sum(int((~value).sum()) for value in kept)
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_units_go_epoch_by_epoch_and_are_logged(tmp_path):
    from tests.pruning.selection.lightning_run import run

    module, trainer, pruning = run(tmp_path, 6, every_n_epochs=2, start=2)
    assert len(pruning.results) == 2
    counts = [result.num_kept for result in pruning.results]
    assert counts == sorted(counts, reverse=True) and counts[-1] < 50
    assert trainer.logged_metrics["pruning/units"] == counts[-1]
    kept = module.elbo.guide.noise
    assert trainer.logged_metrics["pruning/0"] == int(kept["0"].kept.sum())
    assert sum(int(noise.kept.sum()) for noise in kept.values()) == counts[-1]


def test_steps_in_the_place_of_epochs(tmp_path):
    from tests.pruning.selection.lightning_run import run

    _, trainer, pruning = run(tmp_path, 2, every_n_steps=3, start=4)
    assert trainer.global_step == 16
    assert len(pruning.results) == 4


def test_evidence_is_evaluated_between_epochs(tmp_path):
    """On the data of the training, whose network goes on as it was."""
    from tests.pruning.selection.lightning_run import data, run

    criterion = BMRS_N(evidence="evaluated", batches=data())
    module, trainer, pruning = run(tmp_path, 2, criterion=criterion, start=1)
    assert trainer.global_step == 16 and module.training
    (result,) = pruning.results
    for score in result.scores.values():
        assert score.isfinite().all() and (score > -256 * math.log(2)).all()
    assert "evidence evaluated on data" in repr(result)


def test_accumulated_gradients_make_one_step_of_several_batches(tmp_path):
    """Sixteen batches, two by two, are eight steps, of which the third and the sixth prune."""
    from tests.pruning.selection.lightning_run import run

    _, trainer, pruning = run(tmp_path, 2, every_n_steps=3, trained_by={"accumulate_grad_batches": 2})
    assert trainer.global_step == 8
    assert len(pruning.results) == 2


def test_a_run_that_goes_on_in_the_middle_of_an_epoch_says_so(tmp_path):
    from tests.pruning.selection.lightning_run import run

    options = {"every_n_steps": 2, "trained_by": {"max_steps": 3}}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ReductionWarning)
        _, trainer, pruning = run(tmp_path, 2, **options)
    assert len(pruning.results) == 1
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.warns(ReductionWarning, match="behind batch 3 of an epoch, and the data begin anew"):
        _, trainer, again = run(tmp_path, 2, every_n_steps=2)
    # After steps 4, 6, 8 and 10 of those that an epoch more makes.
    assert trainer.global_step == 11 and len(again.results) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_epochs": 1, "every_n_steps": 1},
        {"every_n_epochs": 0},
        {"every_n_steps": -1},
        {"every_n_steps": float("nan")},
        {"start": float("inf")},
    ],
)
def test_mistakes(options):
    from pyro_bmrs.pruning import PruningCallback

    with pytest.raises(ReductionError):
        PruningCallback(**options)


def test_a_module_without_a_guide():
    from pyro_bmrs.pruning import PruningCallback

    with pytest.raises(ReductionError, match="0 guides"):
        PruningCallback().setup(None, nn.Linear(2, 2), "fit")
