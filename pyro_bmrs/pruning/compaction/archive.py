# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Files of tensors and plain data, which are whole or not there, and are read as they were written or not at all.

They are files of safetensors (https://github.com/huggingface/safetensors), whose sizes are checked against what is
there before anything is allocated, and in which nothing is code. The plain data are JSON in their header, beside a
checksum of all that is in the file.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionError

_FORMAT, _VERSION = "pyro_bmrs compact network", "2"
# What JSON has no form for.
_TUPLE = "tuple"


def write_archive(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """
    Writes a file in the place of the one that may be there, at once.

    :param path: the file. Until it is whole it stands beside its place, under a name with a dot in front.
    :param tensors: by name.
    :param description: plain data: numbers, strings, None, and tuples, lists and mappings by strings of these.
    """
    save, _ = _safetensors()
    values = _apart(tensors)
    text = json.dumps(_encode(description))
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "description": text,
        "checksum": _checksum(values, text),
    }
    place = Path(path).resolve()
    _remove_left_over_parts(place)
    part = _part(place, os.getpid())
    try:
        with open(part, "wb") as file:
            file.write(save(values, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)


def _part(place: Path, process: int) -> Path:
    """Where a process writes what is to stand at a place."""
    return place.with_name(f".{place.name}.{process}.part")


def _remove_left_over_parts(place: Path) -> None:
    """Removes what processes that were killed while they wrote have left beside a place."""
    if os.name != "posix":  # Elsewhere the question whether a process runs would end it.
        return
    for part in place.parent.glob(f".{glob.escape(place.name)}.*.part"):
        process = part.name.removeprefix(f".{place.name}.").removesuffix(".part")
        if process.isdecimal() and part == _part(place, int(process)) and not _is_running(int(process)):
            part.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Any]:
    """
    The tensors and the plain data of a file.

    :param path: a file that :func:`write_archive` wrote.
    :raises ReductionError: for one that is truncated, changed, of another version, or no such file.
    """
    _, safe_open = _safetensors()
    with open(path, "rb"):  # Where there is none, Python says so best.
        pass
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    # Whatever stands in the way of reading it, it was not written like this.
    except Exception as error:
        raise _foreign(path, f"{type(error).__name__}: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise _foreign(path, "it does not say that it is one")
    if metadata.get("version") != _VERSION:
        raise ReductionError(f"{path} is of version {metadata.get('version')}; this pyro_bmrs reads version {_VERSION}")
    text = metadata.get("description", "")
    if metadata.get("checksum") != _checksum(tensors, text):
        raise _foreign(path, "what is in it does not have the checksum that it had")
    try:
        return tensors, _decode(json.loads(text))
    # Anyone can write a checksum: the text may be whatever, and nested however deep.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _foreign(path, f"its description is not one ({type(error).__name__})") from error


def _foreign(path: str | os.PathLike[str], why: str) -> ReductionError:
    return ReductionError(f"{path} is truncated, changed, or no file that save_compact wrote: {why}")


def _safetensors() -> tuple[Any, Any]:
    """What makes the content of a file, and what opens one."""
    try:
        from safetensors import safe_open
        from safetensors.torch import save
    except ImportError as error:
        raise ImportError("compact networks in files need safetensors: pip install pyro_bmrs[pruning]") from error
    return save, safe_open


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, one after the other in memory, those that share it as copies."""
    found: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        is_part = storage.data_ptr() in storages or storage.nbytes() != value.nbytes
        found[name] = value.clone() if is_part else value
        storages.add(storage.data_ptr())
    return found


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(_bytes(tensor))
    return total.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    content: Any = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
    return memoryview(content)


def _encode(value: Any) -> Any:
    if isinstance(value, tuple):
        return {_TUPLE: [_encode(part) for part in value]}
    if isinstance(value, list):
        return [_encode(part) for part in value]
    if isinstance(value, Mapping):
        return {"mapping": {name: _encode(part) for name, part in value.items()}}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(part) for part in value]
    if isinstance(value, dict):
        if _TUPLE in value:
            return tuple(_decode(part) for part in value[_TUPLE])
        return {name: _decode(part) for name, part in value["mapping"].items()}
    return value
