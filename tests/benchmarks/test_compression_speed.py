# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What a compression costs, path included, in trainings of the whole network for as many epochs.

Both are measured in processor time of one run: the whole network's training is the first part of a compression.
"""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from pyro_bmrs.pruning import compress
from pyro_bmrs.pruning.compression.course.trainings import Course


def lenet() -> nn.Module:
    convolutions = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    neurons = [nn.Flatten(), nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*convolutions, *neurons)


def mlp() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(784, 50), nn.ReLU()]
    for _ in range(5):
        layers += [nn.Linear(50, 50), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(50, 10))


@pytest.mark.parametrize("build", [lenet, mlp])
def test_compression_costs(build, monkeypatch, record_property):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Images with something to learn: which of ten templates there is, in noise.
    y = torch.randint(10, (20_000,))
    x = torch.randn(10, 1, 28, 28)[y] + 3 * torch.randn(20_000, 1, 28, 28)
    spent: list[float] = []
    train = Course.train

    def timed(self, *args, **kwargs):
        start = time.process_time()
        train(self, *args, **kwargs)
        spent.append(time.process_time() - start)

    monkeypatch.setattr(Course, "train", timed)
    start = time.process_time()
    try:
        result = compress(build(), (x, y), epochs=20, progress=False)
    finally:
        torch.set_num_threads(threads)
    ratio = (time.process_time() - start) / spent[0]
    print(f"\n{spent[0]:.1f} s for the whole network, {ratio:.2f} times that in all\n{result}")
    record_property("ratio", ratio)
    assert ratio <= 2.5
