# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Callbacks that tests give to runs in other processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from lightning.pytorch import Callback


class Death(Callback):
    """Kills a process in the middle of an epoch."""

    def __init__(self, epoch: int, rank: int = 0) -> None:
        self.epoch, self.rank = epoch, rank

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and trainer.global_rank == self.rank and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Presence(Callback):
    """Writes down the number of each process."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer, pl_module):
        (self.folder / f"{trainer.global_rank}.pid").write_text(str(os.getpid()))


class Witness(Callback):
    """Keeps what each process has at the end of its training."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer, pl_module):
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        torch.save({"state": state, "seed": torch.initial_seed()}, self.folder / f"{trainer.global_rank}.pt")
