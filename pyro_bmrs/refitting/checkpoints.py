# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A file that long work is kept in, so that it can be interrupted: whole at any time, and read without running code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionError

_NOUNS = {"reduce_iteratively": "an iterated reduction", "refit": "a refit"}
_VERSION = 1
_TOLERANCE = 1e-4


class Checkpoint:
    """
    What has been done so far, in a file.

    :param path: the file; None keeps nothing.
    :param function: whose work it is.
    :raises ReductionError: where there is no such folder.
    """

    def __init__(self, path: str | os.PathLike[str] | None, function: str = "reduce_iteratively") -> None:
        self._function = function
        self._path = None if path is None else Path(path)
        if self._path is not None and not self._path.parent.is_dir():
            raise ReductionError(f"checkpoint {self._path}: there is no folder {self._path.parent}; make it first")

    @property
    def _format(self) -> str:
        return f"pyro_bmrs.{self._function}"

    def write(self, task: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """
        Keeps a state in the place of the last, all at once.

        :param task: numbers, tensors and names that tell what is being done.
        :param state: plain containers of tensors and numbers.
        """
        if self._path is None:
            return
        # One that is cut off while writing leaves the last one whole.
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(
                    {"format": self._format, "version": _VERSION, "task": dict(task), "state": dict(state)}, file
                )
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self._path)
        finally:
            partial.unlink(missing_ok=True)

    def read(self, task: Mapping[str, Any]) -> dict[str, Any] | None:
        """
        The state kept for a task; None where there is no file yet.

        :raises ReductionError: for a file that is truncated, no checkpoint, or of another task. It stays as it is.
        """
        if self._path is None or not self._path.exists():
            return None
        try:
            content = torch.load(self._path, weights_only=True)
        except Exception as error:
            raise ReductionError(
                f"checkpoint {self._path} cannot be read: it is truncated, or no checkpoint ({type(error).__name__}); "
                "move it away to begin anew"
            ) from error
        if not isinstance(content, dict) or content.get("format") != self._format:
            noun = _NOUNS[self._function]
            raise ReductionError(f"checkpoint {self._path} is no checkpoint of {noun}; give another path")
        if content["version"] != _VERSION:
            raise ReductionError(
                f"checkpoint {self._path} is of version {content['version']}, and this one reads {_VERSION}; move it "
                "away to begin anew"
            )
        for name, value in task.items():
            if not _equal(content["task"].get(name), value):
                raise ReductionError(
                    f"checkpoint {self._path} was kept for another task: its {name} differ; give the arguments that it "
                    "was begun with, or another path"
                )
        state: dict[str, Any] = content["state"]
        return state


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        # Another machine may round in another way.
        return one.shape == other.shape and torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE)
    return type(one) is type(other) and one == other
