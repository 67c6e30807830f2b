# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The table of other libraries' networks: ``make test-networks``, which takes hours on a small machine.

It is in the file that the environment variable NETWORKS_TABLE names, to which a row is added as soon as it is known:
what is there is not done again. NETWORKS says which to do, as parts of their names with commas between.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import resource
import time
import warnings
from pathlib import Path
from queue import Empty
from typing import Any

import pandas as pd
import pytest

from tests.networks.catalogue import Entry, catalogue
from tests.networks.examination import COLUMNS, NOT_THERE, YES, examine

# Seconds after which a network is given up, and of compaction on a processor of its own; and bytes that it may take,
# of which the graphs that torch-pruning makes of attentions in windows would take all there are.
PATIENCE, LONGEST, MEMORY = 1800.0, 30.0, 14 * 2**30


def _examine(entry: Entry, answers: Any) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers.put(examine(entry))


def _row(entry: Entry) -> dict[str, Any]:
    """The row of a network, from a process of its own, which may be ended."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_examine, args=(entry, answers))
    process.start()
    row, deadline = None, time.monotonic() + PATIENCE
    while row is None and time.monotonic() < deadline:
        was_alive = process.is_alive()
        try:
            row = answers.get(timeout=1.0)
        except Empty:
            # One that has run out of memory has nothing to say any more.
            if not was_alive:
                break
    process.kill()
    process.join()
    return row or {"network": entry.name, "attaches": f"no answer: ended with {process.exitcode}"}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    path = Path(os.environ.get("NETWORKS_TABLE", "build/networks.csv"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n")
    asked = [part for part in os.environ.get("NETWORKS", "").split(",") if part]
    done = set(pd.read_csv(path)["network"])
    for entry in catalogue():
        if entry.name not in done and (not asked or any(part in entry.name for part in asked)):
            with path.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS, extrasaction="ignore").writerow(_row(entry))
    return pd.read_csv(path).set_index("network")


def test_noise_is_attached_and_all_are_compacted(table):
    failed = table[(table["attaches"] != YES) | (table["compacts"] != YES)]
    assert failed.empty, failed[["attaches", "compacts"]].to_string()


def test_they_compute_the_same(table):
    for column, tolerance in (("float32", 1e-5), ("float64", 1e-12)):
        does = table[table[column] != NOT_THERE]
        differ = pd.to_numeric(does[column], errors="coerce")
        assert (differ <= tolerance).all(), does.loc[~(differ <= tolerance), column].to_string()


@pytest.mark.parametrize("column", ["export", "onnx", "trains", "saved"])
def test_what_the_original_does_the_compact_network_does(table, column):
    failed = table[~table[column].isin([YES, NOT_THERE])]
    assert failed.empty, failed[column].to_string()


@pytest.mark.parametrize("column, least", [("prunable", 0.8), ("removed", 0.95)])
def test_most_can_be_pruned_and_is_taken_out(table, column, least):
    little = table[~(table[column] >= least)]
    assert little.empty, little[[column, "masked_since"]].to_string()


def test_none_takes_long(table):
    slow = table[~(table["seconds"] <= LONGEST)]
    assert slow.empty, slow["seconds"].to_string()
