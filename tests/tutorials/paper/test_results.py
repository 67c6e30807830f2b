# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

import json
import lzma
import multiprocessing
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_bmrs import ReductionError
from tutorials.paper.results import append_row, pack, read_rows

PROCESSES, ROWS_EACH = 4, 100


def row(key, **values):
    return {
        "schema": 1,
        "key": key,
        "experiment": "continuous",
        "settings": "paper",
        "data": "digits",
        "network": "mlp",
        "criterion": "BMRS_N",
        "seed": 0,
        **values,
    }


def append_many(folder, process):
    for number in range(ROWS_EACH):
        # Some longer than what a pipe or a page takes at once.
        append_row(folder, row(f"{process}-{number}", history=[process] * (3000 if number % 10 == 0 else 3)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the children only write
def test_processes_append_at_once(tmp_path):
    # Where it can be had, as what spawns imports all of torch four times.
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    processes = [context.Process(target=append_many, args=(tmp_path, number)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    seen = set()
    while any(process.is_alive() for process in processes):
        # What is read meanwhile is whole: a torn line would warn, and a warning is an error here.
        keys = {entry["key"] for entry in read_rows(tmp_path)}
        assert seen <= keys
        seen = keys
    for process in processes:
        process.join()
        assert process.exitcode == 0
    rows = read_rows(tmp_path)
    assert sorted(entry["key"] for entry in rows) == sorted(
        f"{process}-{number}" for process in range(PROCESSES) for number in range(ROWS_EACH)
    )
    assert all(set(entry["history"]) == {int(entry["key"][0])} for entry in rows)
    for process in range(PROCESSES):
        own = [entry["key"] for entry in rows if entry["key"].startswith(f"{process}-")]
        assert own == [f"{process}-{number}" for number in range(ROWS_EACH)]


def write_torn(folder, cut, *, after):
    """Three rows, the second or third cut after so many bytes, with or without its line's end."""
    lines = [json.dumps(row(key, note="äöü"), ensure_ascii=False).encode() for key in "abc"]
    position = 1 if after else 2
    lines[position] = lines[position][:cut]
    (folder / "results.jsonl").write_bytes(b"\n".join(lines) + b"\n" * after)
    return lines[position]


LENGTH = len(json.dumps(row("a", note="äöü"), ensure_ascii=False).encode())


@pytest.mark.parametrize("after", [False, True], ids=["last line", "middle line"])
def test_a_line_torn_at_any_byte_is_set_aside(tmp_path, after):
    kept = ["a", "c"] if after else ["a", "b"]
    for cut in range(1, LENGTH):
        folder = tmp_path / str(cut)
        folder.mkdir()
        torn = write_torn(folder, cut, after=after)
        with pytest.warns(UserWarning, match=r"1 torn line moved to .*results\.jsonl\.torn; 2 rows kept"):
            assert [entry["key"] for entry in read_rows(folder)] == kept
        assert (folder / "results.jsonl.torn").read_bytes() == torn + b"\n"
        # Once: from now on the file is whole.
        assert [entry["key"] for entry in read_rows(folder)] == kept


@pytest.mark.parametrize("cut", [0, LENGTH], ids=["nothing", "only the line's end"])
def test_a_cut_between_rows_tears_none(tmp_path, cut):
    write_torn(tmp_path, cut, after=False)
    assert [entry["key"] for entry in read_rows(tmp_path)] == (["a", "b", "c"] if cut else ["a", "b"])
    assert not (tmp_path / "results.jsonl.torn").exists()


@pytest.mark.parametrize("cut", [1, LENGTH // 2, LENGTH - 1, LENGTH])
def test_a_row_after_a_torn_one_begins_its_own_line(tmp_path, cut):
    write_torn(tmp_path, cut, after=False)
    append_row(tmp_path, row("d"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keys = [entry["key"] for entry in read_rows(tmp_path)]
    assert keys == (["a", "b", "d"] if cut < LENGTH else ["a", "b", "c", "d"])
    assert len(caught) == (cut < LENGTH)


@settings(deadline=None)
@given(garbage=st.lists(st.binary(min_size=1, max_size=40).filter(lambda line: b"\n" not in line), max_size=4))
def test_lines_of_anything_leave_the_rows(tmp_path_factory, garbage):
    folder = tmp_path_factory.mktemp("results")
    append_row(folder, row("a"))
    with open(folder / "results.jsonl", "ab") as file:
        file.writelines(b"\xff" + line + b"\n" for line in garbage)
    append_row(folder, row("b"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [entry["key"] for entry in read_rows(folder)] == ["a", "b"]
    assert len(caught) == bool(garbage)
    if garbage:
        aside = (folder / "results.jsonl.torn").read_bytes()
        assert aside == b"".join(b"\xff" + line + b"\n" for line in garbage)


def test_lines_set_aside_gather(tmp_path):
    for part in (b'{"schema": 1, "ke', b'{"sch'):
        append_row(tmp_path, row("a"))
        with open(tmp_path / "results.jsonl", "ab") as file:
            file.write(part)
        with pytest.warns(UserWarning, match="torn"):
            read_rows(tmp_path)
    assert (tmp_path / "results.jsonl.torn").read_bytes() == b'{"schema": 1, "ke\n{"sch\n'


def test_the_last_row_of_a_key_counts(tmp_path):
    for key, accuracy in [("a", 0.1), ("b", 0.2), ("a", 0.3)]:
        append_row(tmp_path, row(key, accuracy=accuracy))
    assert [(entry["key"], entry["accuracy"]) for entry in read_rows(tmp_path)] == [("a", 0.3), ("b", 0.2)]


def test_rows_come_back_as_they_were(tmp_path):
    written = row("a", sites={"0": [50, 3]}, accuracy=0.1 + 0.2, criterion=None, history=[[1, 2, None]])
    append_row(tmp_path, written)
    assert read_rows(tmp_path) == [written]


def test_nan_is_null_and_tensors_are_numbers(tmp_path):
    values = {
        "accuracy": float("nan"),
        "lr": np.float32(0.5),
        "units": torch.tensor(3),
        "history": torch.tensor([[1.0, float("nan")]]),
        "curves": {"SNR": {"stop": (np.nan, 1)}},
    }
    append_row(tmp_path, row("a", **values))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / "results.jsonl").read_text()
    entry = json.loads(text, parse_constant=refuse)
    assert (entry["accuracy"], entry["lr"], entry["units"]) == (None, 0.5, 3)
    assert entry["history"] == [[1.0, None]]
    assert entry["curves"] == {"SNR": {"stop": [None, 1]}}


def test_no_results_are_no_rows(tmp_path):
    assert read_rows(tmp_path) == []
    assert read_rows(tmp_path / "nowhere") == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("schema", [2, None, "1"])
def test_unknown_schema(tmp_path, schema):
    with pytest.raises(ReductionError, match="schema .* is not known, only 1"):
        append_row(tmp_path, {**row("a"), "schema": schema})
    append_row(tmp_path, row("a"))
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write(json.dumps({**row("b"), "schema": schema}) + "\n")
    with pytest.raises(ReductionError, match=r"results\.jsonl, row 2: schema .* is not known, only 1"):
        read_rows(tmp_path)


@pytest.mark.parametrize("name", ["key", "data", "seed"])
def test_a_row_says_which_run_it_is_of(tmp_path, name):
    with pytest.raises(ReductionError, match=f"not said by {name}"):
        append_row(tmp_path, row("a") | {name: None})


@pytest.mark.parametrize("value", [float("inf"), {1, 2}, object()])
def test_what_json_cannot_hold(tmp_path, value):
    with pytest.raises(ReductionError, match="row of 'a' cannot be written as JSON"):
        append_row(tmp_path, row("a", accuracy=value))
    assert read_rows(tmp_path) == []


def test_packed_rows_are_read_with_those_that_come_after(tmp_path, capsys):
    rows = [row(key, history=[[epoch, 300, 0.1 + epoch] for epoch in range(60)]) for key in "ab"]
    for written in rows:
        append_row(tmp_path, written)
    size = (tmp_path / "results.jsonl").stat().st_size
    pack(tmp_path)
    assert f"2 rows: {tmp_path / 'results.jsonl.xz'}" in capsys.readouterr().out
    assert not (tmp_path / "results.jsonl").exists() and (tmp_path / "results.jsonl.xz").stat().st_size < size / 3
    assert read_rows(tmp_path) == rows
    later = [row("b", accuracy=0.5), row("c")]
    for written in later:
        append_row(tmp_path, written)
    assert read_rows(tmp_path) == [rows[0], *later]
    pack(tmp_path)
    assert read_rows(tmp_path) == [rows[0], *later]


def test_a_row_that_is_torn_is_not_packed(tmp_path):
    append_row(tmp_path, row("a"))
    with open(tmp_path / "results.jsonl", "ab") as file:
        file.write(b'{"schema": 1, "ke')
    with pytest.warns(UserWarning, match="1 torn line"):
        pack(tmp_path)
    assert [entry["key"] for entry in read_rows(tmp_path)] == ["a"]
    assert (tmp_path / "results.jsonl.torn").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", lzma.compress(b'{"schema": 1, "ke\n')])
def test_a_damaged_file_of_packed_rows(tmp_path, content):
    (tmp_path / "results.jsonl.xz").write_bytes(content)
    with pytest.raises(ReductionError, match=r"results\.jsonl\.xz.*damaged"):
        read_rows(tmp_path)


def test_nothing_to_pack(tmp_path):
    with pytest.raises(ReductionError, match="no results"):
        pack(tmp_path)
