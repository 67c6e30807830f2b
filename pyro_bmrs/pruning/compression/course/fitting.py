# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
An ordinary training loop, on the device of a network.

It has nothing of a trainer's hooks, which cost as much as the steps of a small network do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.training.batches import on_device, pair_of

MakeOptimizer: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]
# Of the share of a training that is over, what the learning rate is multiplied by.
Schedule: TypeAlias = Callable[[float], float]
# How high the rate of a cycle rises, and in which share of the training.
_PEAK, _RISE = 3.0, 0.2


def half_cosine(share: float) -> float:
    """
    From 1 down to 0.

    :param share: of the training that is over.
    """
    return 0.5 * (1 + math.cos(math.pi * share))


def one_cycle(share: float) -> float:
    """
    Up to 3, and down to 0: what has lost units learns more in a few epochs than at the rate of the whole network.

    L. Smith and N. Topin (2019), *Super-convergence*, https://arxiv.org/abs/1708.07120, have cycles; that pruned
    networks want large rates is of A. Renda, J. Frankle and M. Carbin (2020), https://arxiv.org/abs/2003.02389.

    :param share: of the training that is over.
    """
    if share < _RISE:
        return 1 + (_PEAK - 1) * share / _RISE
    return _PEAK * half_cosine((share - _RISE) / (1 - _RISE))


def fit(
    loss: nn.Module,
    optimizers: Sequence[Optimizer],
    annealed: Sequence[Optimizer],
    loader: DataLoader[Any],
    num_steps: int,
    on_step: Callable[[], Any],
    schedule: Schedule = half_cosine,
) -> None:
    """
    Minimises a loss, the mean per example of each batch.

    :param loss: a module that is given inputs and targets; its device is the one to train on.
    :param optimizers: all of them, of its parameters; each takes a step with each batch.
    :param annealed: those of them whose learning rate falls to 0 in the course.
    :param loader: batches, pairs of inputs and targets.
    :param num_steps: how many of them to take, going through them as often as it needs.
    :param on_step: called after each step.
    :param schedule: how it falls.
    :raises ReductionError: if there is no batch, or a parameter is not finite in the end.
    """
    device = next(loss.parameters()).device
    schedules = [LambdaLR(optimizer, partial(_at_step, schedule, num_steps)) for optimizer in annealed]
    left = num_steps
    with torch.enable_grad():
        while left:
            before = left
            for batch in islice(loader, left):
                value: Tensor = loss(*on_device(pair_of(batch), device))
                for optimizer in optimizers:
                    optimizer.zero_grad()
                value.backward()
                for optimizer in optimizers:
                    optimizer.step()
                for scheduler in schedules:
                    scheduler.step()
                left -= 1
                on_step()
            if left == before:
                raise ReductionError("train_data has no batch: a loader with drop_last=True has less than one")
    bad = [name for name, parameter in loss.named_parameters() if not parameter.isfinite().all()]
    if bad:
        raise ReductionError(f"training diverged, {bad} are not finite: give an optimizer= with a lower learning rate")


def _at_step(schedule: Schedule, num_steps: int, step: int) -> float:
    return schedule(step / num_steps)
