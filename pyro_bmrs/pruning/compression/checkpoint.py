# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The steps of a path in a folder, so that a run that was interrupted goes on from there. No file holds code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.saved import load_compact, save_compact
from pyro_bmrs.pruning.compression.course.held_out import HeldOut
from pyro_bmrs.pruning.compression.prices import OccamPrices
from pyro_bmrs.pruning.compression.result import PathStep
from pyro_bmrs.pruning.criteria.criterion import Criterion
from pyro_bmrs.pruning.selection.prune import PruningResult


class Checkpoint(NamedTuple):
    """
    Where the steps of a path are kept.

    :param folder: the folder; None for nowhere.
    """

    folder: Path | None

    @classmethod
    def at(cls, folder: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> Checkpoint:
        """
        A folder, made where there is none.

        :param folder: the folder; None for nowhere.
        :param settings: of the run: numbers and strings. A run of others is not gone on with.
        :raises ReductionError: for a folder with a run of other settings.
        """
        if folder is None:
            return cls(None)
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        known = path / "settings.pt"
        if known.exists():
            old = _load(known)
            changed = sorted(key for key in {*old, *settings} if old.get(key) != settings.get(key))
            if changed:
                raise ReductionError(
                    f"the checkpoint {path} is of a run with other {', '.join(changed)}: give another folder"
                )
        else:
            _save(dict(settings), known)
        return cls(path)

    def save(self, name: str, content: Any) -> None:
        """
        Keeps tensors, numbers and strings, in lists and dictionaries.

        :param name: by which to load them.
        :param content: what to keep.
        """
        if self.folder is not None:
            _save(content, self.folder / f"{name}.pt")

    def load(self, name: str) -> Any:
        """
        What was kept; None for nothing.

        :param name: of it.
        """
        path = None if self.folder is None else self.folder / f"{name}.pt"
        return None if path is None or not path.exists() else _load(path)

    def save_step(self, number: int, step: PathStep) -> None:
        """
        Keeps a step of the path, but the first.

        :param number: of the step.
        :param step: the step.
        """
        if self.folder is None:
            return
        save_compact(step.network, self.folder / f"network-{number}.pt")
        content: dict[str, Any] = {
            "temperature": step.temperature,
            "is_trained": step.is_trained,
            "trainings": step.trainings,
            "kept": dict(step.kept),
            "held_out": tuple(step.held_out),
            "parameters": step.parameters,
            "macs": step.macs,
        }
        if step.prices is not None:
            content["prices"] = dict(step.prices.units), dict(step.prices.precisions)
        if step.decisions is not None:
            made = step.decisions
            content["decisions"] = made.scores, made.removed, made.kept, made.rescued, made.kl_weights
        self.save(f"step-{number}", content)

    def load_step(self, number: int, net: nn.Module, criterion: Criterion) -> PathStep:
        """
        A step that was kept.

        :param number: of the step.
        :param net: the whole network.
        :param criterion: what decided.
        """
        content = self.load(f"step-{number}")
        network = load_compact(f"{self.folder}/network-{number}.pt", net).eval()
        return PathStep(
            content["temperature"],
            network,
            content["is_trained"],
            content["kept"],
            HeldOut(*content["held_out"]),
            content["parameters"],
            content["macs"],
            OccamPrices(*content["prices"]) if "prices" in content else None,
            PruningResult(criterion, *content["decisions"]) if "decisions" in content else None,
            content["trainings"],
        )


def _save(content: Any, path: Path) -> None:
    """Whole, or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ReductionError(f"{path} is truncated, or not of a checkpoint; give another folder: {error}") from error
