# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is kept in a file is whole at any time, and is read for the task that it was kept for alone."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.refitting.checkpoints import Checkpoint

TASK = {"seed": 3, "sites": ["a", "b"], "posterior": torch.tensor([0.25, -1.0], dtype=torch.float64)}
STATE = {"steps": 7, "place": [torch.tensor([1.5, float("nan")]), torch.tensor(2)], "done": {"w": True}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.pt"


def test_what_was_written_is_read(path):
    assert Checkpoint(path).read(TASK) is None
    Checkpoint(path).write(TASK, {"steps": 1})
    Checkpoint(path).write(TASK, STATE)
    found = Checkpoint(path).read(TASK)
    assert found.keys() == STATE.keys() and (found["steps"], found["done"]) == (7, {"w": True})
    for one, other in zip(found["place"], STATE["place"]):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_without_a_path_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Checkpoint(None).write(TASK, STATE)
    assert Checkpoint(None).read(TASK) is None and not list(tmp_path.iterdir())


def test_a_write_that_is_cut_off_leaves_the_last_one_whole(path, monkeypatch):
    checkpoint = Checkpoint(path)
    checkpoint.write(TASK, {"steps": 1})
    whole = path.read_bytes()

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.write(TASK, STATE)
    assert path.read_bytes() == whole and [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ReductionError, match="there is no folder .*nowhere; make it first"):
        Checkpoint(tmp_path / "nowhere" / "state.pt")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"posterior": TASK["posterior"] + 1e-6}, True),
        ({"posterior": TASK["posterior"] + 1e-2}, False),
        ({"posterior": TASK["posterior"].expand(2, 2)}, False),
        ({"seed": 4}, False),
        ({"seed": 3.0}, False),
        ({"sites": ["b", "a"]}, False),
        ({"more": 1}, False),
    ],
)
def test_a_task_is_the_same_up_to_rounding(path, change, same):
    Checkpoint(path).write(TASK, STATE)
    kept = path.read_bytes()
    if same:
        assert Checkpoint(path).read(TASK | change)["steps"] == 7
    else:
        with pytest.raises(ReductionError, match=f"another task: its {next(iter(change))} differ"):
            Checkpoint(path).read(TASK | change)
    assert path.read_bytes() == kept


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_file_is_read_without_running_what_it_holds(path, save):
    trap = path.with_name("trapped")
    save({"format": "pyro_bmrs.reduce_iteratively", "state": Trap(str(trap))}, path)
    with pytest.raises(ReductionError, match=r"state\.pt cannot be read"):
        Checkpoint(path).read(TASK)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "message"), [([1, 2], "no checkpoint of an iterated"), ({"weights": torch.ones(2)}, "no checkpoint of")]
)
def test_another_file_is_told_apart(path, content, message):
    torch.save(content, path)
    with pytest.raises(ReductionError, match=message):
        Checkpoint(path).read(TASK)


def test_a_file_of_another_version(path):
    Checkpoint(path).write(TASK, STATE)
    content = torch.load(path)
    torch.save(content | {"version": content["version"] + 1}, path)
    with pytest.raises(ReductionError, match=f"version {content['version'] + 1}, and this one reads"):
        Checkpoint(path).read(TASK)
