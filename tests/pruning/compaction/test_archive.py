# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import signal
import struct

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning.compaction.archive import read_archive, write_archive
from tests.processes import needs_posix

DESCRIPTION = {"pair": (1, [2.5, None]), "nested": {"a": {"b": (("c",), True)}}, "tuple": "a word", "nan": math.inf}


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    tensors = {
        "a": torch.randn(3, 4),
        "half": torch.randn(3).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "kept": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "images": torch.randn(2, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    }
    tensors["same"], tensors["part"] = tensors["a"], tensors["a"][1]
    write_archive(tmp_path / "file", tensors, DESCRIPTION)
    return tmp_path / "file", tensors


def test_what_goes_in_comes_out(file):
    path, tensors = file
    found, description = read_archive(path)
    assert description == DESCRIPTION and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())
    assert os.listdir(path.parent) == ["file"]


def test_of_every_bit_that_is_flipped_it_is_noticed_or_nothing_changes(file):
    path, tensors = file
    content = path.read_bytes()
    for position in range(0, len(content), 5):
        changed = bytearray(content)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        try:
            found, description = read_archive(path)
        except ReductionError:
            continue
        assert description == DESCRIPTION and found.keys() == tensors.keys()
        assert all(torch.equal(found[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 500, -1, -20])
def test_every_part_of_a_file_is_none(file, length):
    path, _ = file
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ReductionError, match="truncated, changed, or no file that save_compact wrote"):
        read_archive(path)


class Code:
    """What a pickle would run."""

    def __reduce__(self):
        return exec, ("raise SystemExit",)


def header(text):
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"not a network",
        pickle.dumps(Code()),
        struct.pack("<Q", 2**63) + b"{}",
        header("{}"),
        # A terabyte in a file of a few bytes.
        header('{"a": {"dtype": "F32", "shape": [1000000, 250000], "data_offsets": [0, 1000000000000]}}') + b"0000",
        header('{"a": {"dtype": "F32", "shape": [1000000, 250000], "data_offsets": [0, 4]}}') + b"0000",
    ],
)
def test_foreign_and_hostile_files(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ReductionError, match="no file that save_compact wrote") as caught:
        read_archive(tmp_path / "file")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"mapping": 3}', '{"tuple": null}', "[" * 100_000, "9" * 5000])
def test_descriptions_that_are_none(tmp_path, text):
    """With a checksum that is right."""
    metadata = {"format": "pyro_bmrs compact network", "version": "2", "description": text}
    metadata["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "file").write_bytes(header(json.dumps({"__metadata__": metadata})))
    with pytest.raises(ReductionError, match="its description is not one"):
        read_archive(tmp_path / "file")


def test_what_torch_saves_is_none(tmp_path):
    torch.save({"a": torch.ones(2), "code": Code()}, tmp_path / "file")
    with pytest.raises(ReductionError, match="no file that save_compact wrote") as caught:
        read_archive(tmp_path / "file")
    assert "weights_only" not in str(caught.value)


def test_another_version(file, monkeypatch):
    path, _ = file
    content = path.read_bytes()
    assert content.count(b'"version":"2"') == 1
    path.write_bytes(content.replace(b'"version":"2"', b'"version":"9"'))
    with pytest.raises(ReductionError, match="is of version 9"):
        read_archive(path)


def write_and_die(path, calls):
    """Writes one file after the other, and is killed before the last of so many reaches the disk."""
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL) if number > calls else None
    for number in range(1, calls + 2):
        write_archive(path, {"a": torch.full((1000,), float(number))}, {"number": number})


@needs_posix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_killed_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file"
    write_archive(path, {"a": torch.zeros(1000)}, {"number": 0})
    for calls in range(3):
        child = os.fork()
        if not child:
            write_and_die(path, calls)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        found, description = read_archive(path)
        assert description["number"] == calls and (found["a"] == calls).all()
        # What it left beside the file goes with the next that is written there.
        assert len(os.listdir(tmp_path)) == 2
        write_archive(path, found, description)
        assert os.listdir(tmp_path) == ["file"]


def test_what_others_write_beside_a_file_stays(file):
    path, tensors = file
    others = [f".file.{os.getppid()}.part", f".file.pt.{2**22 + 1}.part", ".file.old.part", f".file.{2**22 + 1}.parts"]
    for name in others:
        (path.parent / name).touch()
    (path.parent / f".file.{2**22 + 1}.part").touch()
    write_archive(path, tensors, {})
    assert sorted(os.listdir(path.parent)) == sorted(["file", *others])


def test_a_write_that_fails_leaves_the_file_and_nothing_beside(file):
    path, _ = file
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_archive(path, {"a": torch.ones(2)}, {"what": object()})
    (path.parent / "folder").mkdir()
    with pytest.raises(OSError):
        write_archive(path.parent / "folder", {"a": torch.ones(2)}, {})
    assert path.read_bytes() == before and sorted(os.listdir(path.parent)) == ["file", "folder"]


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_archive(tmp_path / "none")
