# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What networks cost: parameters, multiplications, and the time that a batch and a step of training take."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, NoiseELBO
from pyro_bmrs.pruning.compaction.reporting.cost import cost

_TIMED_EXAMPLES, _TIMED_CALLS = 128, 20
# As many examples as a batch of the paper's Tables 3 and 4 has.
_STEP_EXAMPLES = 32


def compare_sizes(net: nn.Module, small: nn.Module, example: Tensor) -> dict[str, Any]:
    """
    Parameters, multiplications of an image and milliseconds of a batch, of a network and of what is left of it.

    :param net: the network without noise.
    :param small: what is left.
    :param example: images, which are repeated to a batch.
    """
    batch = _batch(example, _TIMED_EXAMPLES)
    sizes: dict[str, Any] = {}
    for suffix, measured in (("", net), ("_left", small)):
        costs = cost(measured, example[:1]).sum()
        sizes |= {f"parameters{suffix}": int(costs["parameters"]), f"macs{suffix}": int(costs["macs"])}
        with torch.no_grad():
            sizes[f"milliseconds{suffix}"] = _milliseconds(partial(measured, batch))
    return sizes


def compare_steps(net: nn.Module, noisy: nn.Module, small: nn.Module, example: Tensor) -> dict[str, float]:
    """
    The milliseconds that a step of training takes, forward, backward and of Adam, on 32 examples.

    :param net: the network without noise; it and the others are left as they are.
    :param noisy: the same with noise.
    :param small: what is left of it, without noise.
    :param example: images, which are repeated to a batch.
    :return: of ``"plain"``, ``"noisy"`` and ``"compact"``.
    """
    batch = _batch(example, _STEP_EXAMPLES)
    labels = torch.zeros(_STEP_EXAMPLES, dtype=torch.long, device=batch.device)
    model = Classification(deepcopy(noisy), 1)
    losses: dict[str, nn.Module] = {"noisy": NoiseELBO()(model, AutoTruncatedLogNormal(model))}
    losses |= {"plain": _CrossEntropy(deepcopy(net)), "compact": _CrossEntropy(deepcopy(small))}
    return {name: _milliseconds(_step(loss.train(), batch, labels)) for name, loss in losses.items()}


class _CrossEntropy(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y)


def _step(loss: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(loss.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    return step


def _batch(example: Tensor, size: int) -> Tensor:
    return example[:1].expand(size, *example.shape[1:]).contiguous()


def _milliseconds(call: Callable[[], Any]) -> float:
    """The shortest of several times that a call takes."""
    times = []
    for _ in range(_TIMED_CALLS):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)
