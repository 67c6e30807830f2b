# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks as Lightning trains them: with noise, and plain."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from typing import Any, Literal

import pyro
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from pyro import poutine
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    Classification,
    NoiseELBO,
    WarmUp,
    in_proportion_to_cost,
    parameter_groups,
)

from .data import BATCHES_TOGETHER, Stretch
from .networks import build_network, find_network

Schedule = Literal["constant", "cosine"]

_STRETCHES_BETWEEN_CHECKS = 10


def count_steps(trainer: Any) -> int:
    """How many steps of the optimiser a training takes; the trainer itself counts stretches of them."""
    stretches = trainer.estimated_stepping_batches
    if trainer.max_epochs == -1:
        return stretches
    in_epoch = min(trainer.datamodule.steps_per_epoch, trainer.num_training_batches * BATCHES_TOGETHER)
    steps = max(trainer.max_epochs, 1) * in_epoch
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


class Classifier(LightningModule, ABC):
    """
    A network that is trained with Adam and validated after each epoch.

    The random numbers of an epoch depend on the seed, the epoch and the process alone, so that a run that is resumed
    goes on as one that was never interrupted.

    :param lr: learning rate.
    :param schedule: whether the learning rate stays, or falls to 0 along a half cosine.
    :param seed: of the noise.
    """

    net: Any

    def __init__(self, lr: float, schedule: Schedule, seed: int) -> None:
        super().__init__()
        if schedule not in ("constant", "cosine"):
            raise ReductionError(f"schedule is 'constant' or 'cosine', not {schedule!r}")
        if not lr > 0:
            raise ReductionError(f"the learning rate is positive, not {lr}")
        self.lr, self.schedule, self.seed = lr, schedule, seed
        # After each epoch: its number, the units that are left, the validation accuracy.
        self.history: list[tuple[int, int, float]] = []
        self.seconds, self.cpu_seconds = 0.0, 0.0
        self._correct, self._seen, self._steps, self._loss = 0, 0, 0, torch.zeros(())
        # The steps of a stretch are taken here.
        self.automatic_optimization = False

    @abstractmethod
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """What is minimised."""

    @abstractmethod
    def predict(self, x: Tensor) -> Tensor:
        """The logits, without noise."""

    @abstractmethod
    def parameters_by_rate(self) -> list[dict[str, Any]]:
        """Groups of parameters for the optimiser."""

    @property
    def units_left(self) -> int:
        """How many units with noise there are."""
        return 0

    def on_train_epoch_start(self) -> None:
        """Begins to sum."""
        self._loss, self._steps = torch.zeros((), device=self.device), 0
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def training_step(self, batches: Stretch, batch_idx: int) -> None:
        """Steps of a stretch; with an epoch's own random numbers from its first step on, whatever came before it."""
        if batch_idx == 0:
            pyro.set_rng_seed(hash((self.seed, self.current_epoch, self.global_rank)) % 2**32)
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        loss = self._loss
        for batch in batches:
            optimizer.zero_grad()
            loss_of_batch = self.loss(*batch)
            self.manual_backward(loss_of_batch)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            loss += loss_of_batch.detach()
        self._steps += len(batches)
        if batch_idx % _STRETCHES_BETWEEN_CHECKS == 0:
            self._check(loss)

    def on_train_epoch_end(self) -> None:
        """Logs the mean loss."""
        self._check(self._loss)
        self.log("loss", self._loss / self._steps, sync_dist=True)
        self._log_step()
        self.seconds += time.perf_counter() - self._start
        self.cpu_seconds += time.process_time() - self._cpu_start

    def _log_step(self) -> None:
        """Says how many steps there were, of which the trainer knows stretches."""
        self.log("step", float(self.trainer.global_step))

    def _check(self, loss: Tensor) -> None:
        if not loss.isfinite():
            raise ReductionError(
                f"the loss is {float(loss.detach())} in epoch {self.current_epoch}, counted from 0: train at a lower "
                "learning rate, of the weights (--model.lr) or of the noise (--model.noise_lr)"
            )

    def on_validation_epoch_start(self) -> None:
        """Begins to count."""
        self._correct, self._seen = 0, 0

    def validation_step(self, batches: Stretch, batch_idx: int) -> None:
        """Counts what is right."""
        for x, y in batches:
            self._correct += int((self.predict(x).argmax(-1) == y).sum())
            self._seen += len(y)

    def on_validation_epoch_end(self) -> None:
        """Logs the accuracy on all that is held out."""
        counts = torch.tensor([self._correct, self._seen], dtype=torch.float, device=self.device)
        correct, seen = self.trainer.strategy.reduce(counts, reduce_op="sum")
        accuracy = float(correct / seen)
        self.history.append((self.current_epoch, self.units_left, accuracy))
        self.log("units", float(self.units_left))
        self.log("validation_accuracy", accuracy, prog_bar=True)
        self._log_step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the history with the weights."""
        checkpoint |= {"history": self.history, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it up again."""
        self.history = [tuple(entry) for entry in checkpoint["history"]]
        self.seconds, self.cpu_seconds = checkpoint["seconds"], checkpoint["cpu_seconds"]

    def configure_optimizers(self) -> Any:
        """Adam, and its schedule."""
        optimizer = torch.optim.Adam(self.parameters_by_rate(), lr=self.lr, fused=True)
        if self.schedule == "constant":
            return optimizer
        total = count_steps(self.trainer)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * min(step / total, 1.0))
        )
        return [optimizer], [schedule]


class PlainClassifier(Classifier):
    """
    A network without noise.

    :param net: the network.
    """

    def __init__(self, net: nn.Module, *, lr: float = 1e-3, schedule: Schedule = "constant", seed: int = 0) -> None:
        super().__init__(lr, schedule, seed)
        self.net = net

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The cross entropy."""
        return F.cross_entropy(self.net(x), y)

    def predict(self, x: Tensor) -> Tensor:
        """What the network puts out."""
        return self.net(x)

    def parameters_by_rate(self) -> list[dict[str, Any]]:
        """All in one group."""
        return [{"params": list(self.net.parameters())}]


class NoisyClassifier(Classifier):
    """
    A network with multiplicative noise, trained on the ELBO with a weight on the divergence of the noise.

    :param image_shape: channels, height and width.
    :param num_classes: how many classes there are.
    :param num_train: how many examples there are to train with.
    :param steps_per_epoch: how many batches they are.
    :param network: mlp-6x50 (or other layers and units), lenet5, lenet5_caffe, resnet20, resnet18, resnet50, vit; or
        pretrained: and the folder, or the name on the hub, of a network of the Transformers package.
    :param lr: learning rate of the weights.
    :param noise_lr: that of the noise; by default ten times as much.
    :param schedule: constant or cosine, which falls to 0.
    :param kl_weight: of the divergence: a number, or layer_mean, as in the paper.
    :param kl_weight_by: whether that number is for all units, or the mean over units of weights in proportion to the
        parameters, or the multiply-accumulate operations, that they cost.
    :param kl_weight_power: of those costs.
    :param warm_up_epochs: over how many epochs the weight rises from 0.
    :param per_example: whether each example has noise of its own.
    :param seed: of the noise, and of the weights to begin with.
    :raises ReductionError: for a network that is not known, one that does not fit the images, or layer_mean in
        proportion to something.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        num_train: int,
        steps_per_epoch: int,
        network: str = "mlp-6x50",
        lr: float = 1e-3,
        noise_lr: float | None = None,
        schedule: Schedule = "constant",
        kl_weight: float | Literal["layer_mean"] = 1.0,
        kl_weight_by: Literal["unit", "parameters", "macs"] = "unit",
        kl_weight_power: float = 1.0,
        warm_up_epochs: float = 0.0,
        per_example: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(lr, schedule, seed)
        if kl_weight_by != "unit" and isinstance(kl_weight, str):
            raise ReductionError(
                f"layer_mean is for all units; give a number for kl_weight, the mean by {kl_weight_by}"
            )
        if warm_up_epochs < 0:
            raise ReductionError(f"warm_up_epochs is not negative, as {warm_up_epochs} is")
        pyro.set_rng_seed(seed)
        self.network, self.noise_lr = network, noise_lr
        power = "" if kl_weight_power == 1 else f"^{kl_weight_power:g}"
        self.kl_weight = kl_weight if kl_weight_by == "unit" else f"{kl_weight:g} by {kl_weight_by}{power}"
        net = find_network(network).attach_noise(
            build_network(network, image_shape, num_classes), per_example=per_example
        )
        weight: Any = kl_weight
        if kl_weight_by != "unit":
            example = torch.zeros(1, *image_shape) if kl_weight_by == "macs" else None
            weight = in_proportion_to_cost(net, example, mean=weight, power=kl_weight_power)
        if warm_up_epochs:
            weight = WarmUp(math.ceil(warm_up_epochs * steps_per_epoch), weight)
        model = Classification(net, num_train, kl_weight=weight)
        self.elbo: Any = NoiseELBO()(model, AutoTruncatedLogNormal(model))

    @property
    def net(self) -> Any:
        """The network, with noise."""
        return self.elbo.model.net

    @property
    def guide(self) -> AutoTruncatedLogNormal:
        """The guide of its noise."""
        return self.elbo.guide

    @property
    def units_left(self) -> int:
        """How many units are not pruned."""
        return sum(int(noise.kept.sum()) for noise in self.guide.noise.values())

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The negative ELBO over the number of examples."""
        return self.elbo(x, y)

    def predict(self, x: Tensor) -> Tensor:
        """What the network puts out with its noise at the posterior mean."""
        with poutine.condition(data=self.guide.mean_noise()):
            return self.net(x)

    def parameters_by_rate(self) -> list[dict[str, Any]]:
        """The weights and the noise; together where both learn alike, as an optimiser's step is by group."""
        weights, noise = parameter_groups(self.elbo, lr=self.lr, noise_lr=self.noise_lr)
        if weights["lr"] != noise["lr"]:
            return [weights, noise]
        return [{"params": [*weights["params"], *noise["params"]], "lr": self.lr}]
