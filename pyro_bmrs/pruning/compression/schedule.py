# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Prices that rise during training with Lightning; it needs ``pip install pyro_bmrs[lightning]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compression.path import temperatures
from pyro_bmrs.pruning.compression.prices import Occam

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("OccamSchedule needs Lightning: pip install pyro_bmrs[lightning]") from error


class OccamSchedule(Callback):
    """
    Lets the temperature of prices rise every so many epochs of a Lightning trainer.

    Beside a :class:`~pyro_bmrs.pruning.PruningCallback` of as many epochs, units go as the path of
    :func:`~pyro_bmrs.pruning.compress` lets them. The temperature is that of the epoch, also in a run that is resumed.

    :param occam: the KL weight of the model that is trained.
    :param every_n_epochs: after how many epochs it rises.
    :param ladder: the temperatures; by default from a quarter to sixteen, as many as the trainer has epochs for. After
        the last it stays.
    :raises ReductionError: for less than one epoch, or an empty ladder; at the start of the training, where the trainer
        has no end and there is no ladder.

    Example::

        >>> from types import SimpleNamespace
        >>> import torch
        >>> from pyro_bmrs.pruning import Occam, OccamPrices, OccamSchedule
        >>> occam = Occam(OccamPrices({"0": torch.tensor([10.0, 20.0])}, {}))
        >>> schedule = OccamSchedule(occam, every_n_epochs=2, ladder=[1.0, 4.0])
        >>> for epoch in range(5):
        ...     schedule.on_train_epoch_start(SimpleNamespace(current_epoch=epoch), None)
        ...     print(occam["0"])
        3.0
        3.0
        12.0
        12.0
        12.0
    """

    def __init__(self, occam: Occam, *, every_n_epochs: int = 1, ladder: Sequence[float] | None = None) -> None:
        if every_n_epochs < 1:
            raise ReductionError(f"every_n_epochs is at least 1, not {every_n_epochs}")
        if ladder is not None and not ladder:
            raise ReductionError("a ladder has at least one temperature")
        self.occam, self.every_n_epochs, self.ladder = occam, every_n_epochs, ladder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the ladder, where none was given."""
        if self.ladder is None:
            if trainer.max_epochs is None or trainer.max_epochs < 1:
                raise ReductionError("a trainer without an end leaves open how prices rise: give the ladder=")
            self.ladder = temperatures(max(1, trainer.max_epochs // self.every_n_epochs))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Sets the temperature of the epoch."""
        ladder = self.ladder or [self.occam.temperature]
        self.occam.temperature = ladder[min(trainer.current_epoch // self.every_n_epochs, len(ladder) - 1)]
