# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A run of training with continuous pruning, as a script: FOLDER, the number of epochs, and after which to die."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_bmrs.pruning import SNR, AutoTruncatedLogNormal, Classification, Criterion, attach_noise, parameter_groups
from pyro_bmrs.pruning.selection.callback import PruningCallback

NUM_EXAMPLES = 256


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        net = nn.Sequential(nn.Linear(5, 30), nn.Tanh(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 2))
        model = Classification(attach_noise(net), NUM_EXAMPLES, kl_weight=2.0)
        self.elbo = TraceMeanField_ELBO()(model, AutoTruncatedLogNormal(model))

    def training_step(self, batch, batch_idx):
        return self.elbo(*batch)

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.elbo(*batch).detach())

    def configure_optimizers(self):
        return torch.optim.Adam(parameter_groups(self.elbo, lr=1e-2, noise_lr=0.2))


class Death(Callback):
    """Kills the process in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_EXAMPLES, 5, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long()), batch_size=32, shuffle=True)


def run(
    folder: Path,
    num_epochs: int,
    death: int | None = None,
    trained_by: Mapping[str, Any] | None = None,
    criterion: Criterion | None = None,
    **options,
) -> tuple[Module, Trainer, PruningCallback]:
    seed_everything(0)
    module, pruning = Module(), PruningCallback(criterion or SNR(), **options)
    checkpoint = ModelCheckpoint(dirpath=folder, save_last=True)
    trainer = Trainer(
        max_epochs=num_epochs,
        callbacks=[checkpoint, pruning] + ([] if death is None else [Death(death)]),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **(trained_by or {}),
    )
    last = folder / "last.ckpt"
    trainer.fit(module, data(), data(), ckpt_path=str(last) if last.exists() else None)
    return module, trainer, pruning


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
