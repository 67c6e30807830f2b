# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Criteria of pruning by name, and one that removes as many units as another did."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import (
    BMRS_N,
    BMRS_U,
    SNR,
    Criterion,
    PosteriorMean,
    PruningCallback,
    Saliency,
    WeightNorm,
    in_proportion_to_cost,
)

from .data import Examples

# The criteria whose curves post-training runs draw.
COMPARED = (
    *("BMRS_N", "BMRS_U-8", "BMRS_U-4", "SNR"),
    *("PosteriorMean", "WeightNorm", "Saliency-taylor", "Saliency-fisher"),
)

# What runs the project's own default in the place of a criterion.
COMPRESS = "compress"
# Up to which posterior mean of the noise the paper removes.
_PAPERS_MEAN = 0.1
_GRADIENT_BATCHES = 2


class _Beside:
    """The first examples in batches, on the device that a network is on by then."""

    def __init__(self, net: nn.Module, examples: Examples) -> None:
        self.net, self.examples = net, examples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = next(self.net.parameters()).device
        for x, y in itertools.islice(self.examples.batches(), _GRADIENT_BATCHES):
            yield x.to(device), y.to(device)


class Criteria:
    """
    The criteria of pruning by name, for one network.

    :param odds: the prior odds; see :class:`~tutorials.paper.run.Experiment`.
    :param mean_odds: likewise.
    :param net: the network, with noise.
    :param example: an image that it is called with.
    :param examples: those that criteria take gradients for.
    """

    def __init__(self, odds: Any, mean_odds: float, net: nn.Module, example: Tensor, examples: Examples) -> None:
        self.batches = _Beside(net, examples)
        self.is_papers = odds == "paper"
        if odds in ("parameters", "macs"):
            odds = in_proportion_to_cost(net, example if odds == "macs" else None, mean=mean_odds)
        self.odds: float | Mapping[str, float] = odds

    def find(self, name: str) -> Criterion:
        """
        A criterion by name; see :class:`~tutorials.paper.run.Experiment`.

        :raises ReductionError: for a name that is not known.
        """
        if name == "BMRS_N":
            return BMRS_N.paper() if self.is_papers else BMRS_N(self.odds)
        if bits := re.fullmatch(r"BMRS_U-(\d+(?:\.\d+)?)", name):
            return BMRS_U.paper(float(bits[1])) if self.is_papers else BMRS_U(float(bits[1]), self.odds)
        others: list[Criterion] = [SNR(), PosteriorMean(_PAPERS_MEAN if self.is_papers else None), WeightNorm()]
        others += [Saliency(self.batches, kind) for kind in ("taylor", "fisher")]
        known = {criterion.name: criterion for criterion in others}
        if name not in known:
            raise ReductionError(f"no criterion is called {name!r}; there are BMRS_N, BMRS_U-8, {', '.join(known)}")
        return known[name]


class AsMany(PruningCallback):
    """
    Leaves as many units after each epoch as another run did.

    :param criterion: says which they are.
    :param units: how many were left after each epoch, counted from 0.
    :param example_inputs: as for :class:`~pyro_bmrs.pruning.PruningCallback`.
    """

    def __init__(self, criterion: Criterion, units: Mapping[int, int], example_inputs: Any = None) -> None:
        super().__init__(criterion, fraction=0.0, example_inputs=example_inputs)
        self.units = units

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prunes, where it is time."""
        module: Any = pl_module
        if trainer.is_last_batch:
            left = module.units_left
            self.fraction = max(0.0, 1 - self.units.get(trainer.current_epoch, left) / left)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def units_by_epoch(rows: Sequence[dict[str, Any]], key: str, criterion: str, other: str) -> dict[int, int]:
    """
    How many units were left after each epoch of the run that differs from another by its criterion alone.

    :param rows: the results.
    :param key: of the run that is to follow it.
    :param criterion: of the run that is to follow it.
    :param other: of the run that is followed.
    :raises ReductionError: where there is no such run.
    """
    followed = key.replace(f"-{criterion}-", f"-{other}-").replace(f"-as_many_as={other}", "")
    for row in rows:
        if row["key"] == followed:
            return {epoch: units for epoch, units, _ in row["history"]}
    raise ReductionError(f"as_many_as {other} follows the run {followed!r}, of which there is no row yet: run it first")
