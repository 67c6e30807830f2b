# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Training by Lightning's trainer, on the device of a network; it needs ``pip install pyro_bmrs[lightning]``."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.training.batches import pair_of

try:
    from lightning.fabric.utilities.warnings import PossibleUserWarning
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("compress needs Lightning: pip install pyro_bmrs[lightning,pruning]") from error

MakeOptimizer: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]


def fit(
    loss: nn.Module,
    optimizers: Sequence[Optimizer],
    annealed: Sequence[Optimizer],
    loader: DataLoader[Any],
    num_steps: int,
    on_step: Callable[[], Any],
) -> None:
    """
    Minimises a loss, the mean per example of each batch.

    :param loss: a module that is given inputs and targets; its device is the one to train on.
    :param optimizers: all of them, of its parameters; each takes a step with each batch.
    :param annealed: those of them whose learning rate falls to 0 in the course, along half a cosine.
    :param loader: batches, pairs of inputs and targets.
    :param num_steps: how many of them to take, going through them as often as it needs.
    :param on_step: called after each step.
    :raises ReductionError: if a parameter is not finite in the end.
    :raises KeyboardInterrupt: as it comes; the parameters are those of the last step.
    """
    device = next(loss.parameters()).device
    schedules = [CosineAnnealingLR(optimizer, num_steps) for optimizer in annealed]
    with _quiet():
        trainer = Trainer(
            max_epochs=-(-num_steps // len(loader)),
            accelerator=device.type,
            devices=1 if device.index is None or device.type == "cpu" else [device.index],
            callbacks=[_Steps(num_steps, on_step)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with _interruptible(trainer):
            trainer.fit(_Training(loss, optimizers, schedules), loader)
    # Lightning leaves it on the CPU.
    loss.to(device)
    bad = [name for name, parameter in loss.named_parameters() if not parameter.isfinite().all()]
    if bad:
        raise ReductionError(f"training diverged, {bad} are not finite: give an optimizer= with a lower learning rate")


class _Training(LightningModule):
    def __init__(self, loss: nn.Module, optimizers: Sequence[Optimizer], schedules: Sequence[Any]) -> None:
        super().__init__()
        # Weights and noise have optimisers of their own.
        self.automatic_optimization = False
        self.loss, self._made, self._schedules = loss, optimizers, schedules

    def configure_optimizers(self) -> Any:
        return list(self._made)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = pair_of(batch)
        loss: Tensor = self.loss(x, y)
        made: Any = self.optimizers()
        optimizers = made if isinstance(made, list) else [made]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        for schedule in self._schedules:
            schedule.step()


class _Steps(Callback):
    def __init__(self, num_steps: int, on_step: Callable[[], Any]) -> None:
        self._left, self._on_step = num_steps, on_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self._left -= 1
        trainer.should_stop = self._left <= 0
        self._on_step()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says of devices that are not used, and of workers for data that are in memory."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", ".*available but not used.*")
            # Of torch, at how Lightning asks it about trees.
            warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _interruptible(trainer: Trainer) -> Iterator[None]:
    """Lightning ends the process at Ctrl-C, and hears no other; who called is to decide about that."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if is_main else None
    try:
        yield
    except SystemExit as end:
        if not trainer.interrupted:
            raise
        if is_main:
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from end
