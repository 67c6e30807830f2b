# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What a compression costs, path included, in plain trainings of the whole network for as many epochs.

Plain is the loop that anyone would write, on tensors, by all of the data. Both are measured in processor time, one
behind the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bmrs.pruning import compress


def lenet() -> nn.Module:
    convolutions = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    neurons = [nn.Flatten(), nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*convolutions, *neurons)


def mlp() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(784, 50), nn.ReLU()]
    for _ in range(5):
        layers += [nn.Linear(50, 50), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(50, 10))


def train(net: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("build", [lenet, mlp])
def test_compression_costs(build, record_property):
    torch.manual_seed(0)
    # Images with something to learn: which of ten templates there is, in noise.
    y = torch.randint(10, (20_000,))
    x = torch.randn(10, 1, 28, 28)[y] + 3 * torch.randn(20_000, 1, 28, 28)
    plain, _ = seconds(lambda: train(build(), x, y, 20))
    whole, result = seconds(lambda: compress(build(), (x, y), epochs=20, progress=False))
    ratio = whole / plain
    print(f"\n{plain:.1f} s for plain training, {ratio:.2f} times that for compression\n{result}")
    record_property("ratio", ratio)
    assert ratio <= 2.5
