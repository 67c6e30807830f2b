# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The results: a line of JSON for each run, in a file to which any number of processes append at once.

:func:`pack` moves them to a compressed file beside it, a fifth as large, which is read along with it.

A run that is killed as it writes leaves part of a line. Reading moves such a line to ``results.jsonl.torn``, says so,
and keeps the rest; its job has no row then, and the next sweep runs it again.
"""

from __future__ import annotations

import json
import lzma
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_bmrs.errors import ReductionError

FILE, PACKED = "results.jsonl", "results.jsonl.xz"
SCHEMA = 1
_SECONDS_BETWEEN_TRIES = 0.05

# What says which run a row is of. All else may be missing: it is null then.
_TEXTS = ("key", "experiment", "settings", "data", "network")

if sys.platform == "win32":
    import msvcrt

    def _wait_for_lock(descriptor: int) -> None:
        """Nobody else has it until the file is closed."""
        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                return
            except OSError:  # somebody else has it
                time.sleep(_SECONDS_BETWEEN_TRIES)

else:
    import fcntl

    def _wait_for_lock(descriptor: int) -> None:
        """Nobody else has it until the file is closed."""
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def job_key(
    experiment: str,
    settings: str,
    data: str,
    network: str,
    criterion: str | None,
    seed: int,
    overrides: Mapping[str, Any] | None = None,
) -> str:
    """
    What a run is known by in the results, where it is not given a key.

    :param overrides: what differs from the settings' file, by the names of the options.

    Example::

        >>> job_key("continuous", "paper", "mnist", "mlp", "BMRS_N", 0, {"trainer.max_epochs": 5})
        'continuous-paper-mnist-mlp-BMRS_N-0-trainer.max_epochs=5'
    """
    parts = [experiment, settings, data, network, criterion or "none", seed]
    return "-".join(map(str, [*parts, *(f"{name}={value}" for name, value in sorted((overrides or {}).items()))]))


def run_folder(results: Path, key: str) -> Path:
    """The folder of a run's checkpoints and logs."""
    return results / "runs" / re.sub(r"[^\w.,=+-]+", "_", key)


def append_row(folder: Path, row: dict[str, Any]) -> None:
    """
    Adds a row to the results, on disk when this returns; safe beside other processes that do the same.

    NaN is written as null, as JSON has none. Tensors and arrays are written as numbers and lists.

    :param folder: the folder of results; made where there is none.
    :param row: the row, by the names of schema 1.
    :raises ReductionError: where the row does not say which run it is of, has another schema, or holds what JSON
        cannot.

    Example::

        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> job = {"key": "a", "experiment": "continuous", "settings": "paper", "data": "mnist", "network": "mlp"}
        >>> append_row(folder, {"schema": 1, "seed": 0, "criterion": "SNR", "accuracy": float("nan"), **job})
        >>> [row["accuracy"] for row in read_rows(folder)]
        [None]
    """
    _check(row, "the row to append")
    try:
        line = json.dumps(_plain(row), allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ReductionError(f"the row of {row['key']!r} cannot be written as JSON: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        with open(folder / FILE, "a+b", buffering=0) as file:
            if size := file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            written = file.write(line)
            os.fsync(file.fileno())
        if not size:
            _sync_folder(folder)
    if written < len(line):
        raise OSError(f"{folder / FILE} took {written} of the {len(line)} bytes of a row; is the disk full?")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """
    The rows of the results, packed or not, the last one of each key, in the order in which the keys first came.

    Lines that are no JSON objects, torn as a run was killed, are moved to ``results.jsonl.torn``, with a warning.

    :param folder: the folder of results; one that is not there has no rows.
    :raises ReductionError: for a row of a schema that is not known, or one that does not say which run it is of.
    """
    if not any((folder / name).exists() for name in (FILE, PACKED)):
        return []
    with _locked(folder):
        return _read(folder)


def pack(results: Path) -> None:
    """
    Moves the rows of the results to the compressed file beside them, the last one of each key.

    :param results: the folder of results.
    :raises ReductionError: as reading them does; where there are none.
    """
    if not read_rows(results):
        raise ReductionError(f"there are no results in {results / FILE} to pack")
    with _locked(results):
        rows = _read(results)
        lines = [json.dumps(row, allow_nan=False, separators=(",", ":")).encode() for row in rows]
        replacement = results / f"{PACKED}.new"
        with open(replacement, "wb") as file:
            file.write(lzma.compress(b"".join(line + b"\n" for line in lines), preset=9 | lzma.PRESET_EXTREME))
            file.flush()
            os.fsync(file.fileno())
        # A kill in between leaves rows in both files, of which each key counts once.
        os.replace(replacement, results / PACKED)
        _sync_folder(results)
        (results / FILE).unlink(missing_ok=True)
    print(f"{len(rows)} rows: {results / PACKED}, {(results / PACKED).stat().st_size} bytes")


def _read(folder: Path) -> list[dict[str, Any]]:
    """The rows, for who has the lock."""
    path, packed = folder / FILE, folder / PACKED
    kept = _unpacked(packed) if packed.exists() else []
    rows = {row["key"]: row for row in kept}
    lines = _lines(path.read_bytes()) if path.exists() else []
    parsed = [_parse(line) for line in lines]
    torn = [line for line, row in zip(lines, parsed) if row is None]
    if torn:
        _set_aside(folder, torn, [line for line, row in zip(lines, parsed) if row is not None])
        warnings.warn(
            f"{path}: {len(torn)} torn line{'s' * (len(torn) > 1)} moved to {path}.torn; "
            f"{len(lines) - len(torn)} rows kept. Run again what wrote them: a sweep does so by itself",
            stacklevel=3,
        )
    for number, row in enumerate((row for row in parsed if row is not None), start=1):
        _check(row, f"{path}, row {number}")
        rows[row["key"]] = row
    return list(rows.values())


def _unpacked(path: Path) -> list[dict[str, Any]]:
    """The rows of a compressed file, which is written as a whole."""
    rows = []
    try:
        lines = _lines(lzma.decompress(path.read_bytes()))
    except lzma.LZMAError as error:
        raise ReductionError(f"{path} cannot be read ({error}): it is damaged; take it from where it came") from error
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None:
            raise ReductionError(f"{path}, row {number}, is no JSON: it is damaged; take it from where it came")
        _check(row, f"{path}, row {number}")
        rows.append(row)
    return rows


def _lines(content: bytes) -> list[bytes]:
    return [line for line in content.split(b"\n") if line.strip()]


def _check(row: dict[str, Any], where: str) -> None:
    if row.get("schema") != SCHEMA:
        raise ReductionError(
            f"{where}: schema {row.get('schema')!r} is not known, only {SCHEMA}; read it by the version of the program "
            "that wrote it, or begin a new folder of results"
        )
    missing = [name for name in _TEXTS if not isinstance(row.get(name), str)]
    if not isinstance(row.get("seed"), int):
        missing.append("seed")
    if missing:
        raise ReductionError(f"{where}: which run it is of is not said by {', '.join(missing)}")


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers for tensors and arrays, null for NaN."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _parse(line: bytes) -> dict[str, Any] | None:
    """The row on a line; none if it is torn."""
    try:
        row = json.loads(line)
    except ValueError:  # of JSON, or of UTF-8 cut within a character
        return None
    return row if isinstance(row, dict) else None


def _set_aside(folder: Path, torn: list[bytes], kept: list[bytes]) -> None:
    # The torn lines are safe on disk before they leave the results, which are replaced as a whole: a kill in between
    # loses nothing.
    with open(folder / f"{FILE}.torn", "ab") as file:
        _write_lines(file, torn)
    replacement = folder / f"{FILE}.new"
    with open(replacement, "wb") as file:
        _write_lines(file, kept)
    os.replace(replacement, folder / FILE)
    _sync_folder(folder)


def _write_lines(file: Any, lines: list[bytes]) -> None:
    file.writelines(line + b"\n" for line in lines)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """A new name in a folder is on disk when the folder is; Windows, which opens no folders, sees to that itself."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # A file of its own, as setting lines aside puts another file in the place of the results.
    with open(folder / f"{FILE}.lock", "ab") as file:
        _wait_for_lock(file.fileno())
        yield
