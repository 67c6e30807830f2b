# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
A training step of a network with noise, beside one of the same network without.

Steps of both are taken in turn, a few of each, so that whatever else the machine does falls on both; what counts is the
median of the ratios of neighbours.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from statistics import median

import pyro
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, NoiseELBO, attach_noise, parameter_groups

BATCH = 64
ROUNDS, STEPS = 250, 3


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def mlp() -> nn.Module:
    widths = [784] + 6 * [50]
    hidden = [module for sizes in zip(widths, widths[1:]) for module in (nn.Linear(*sizes), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(50, 10))


# What a step may cost, as a multiple of one without noise.
NETWORKS = [
    pytest.param(lenet, (BATCH, 1, 32, 32), 1.15, id="LeNet-5"),
    pytest.param(mlp, (BATCH, 784), 2.5, id="MLP"),
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(parameters, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def step() -> None:
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    """What a step takes, in the mean of a few."""
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - start) / STEPS


@pytest.mark.parametrize("validation", [False, True], ids=["bare", "validated"])
@pytest.mark.parametrize(("build", "shape", "most"), NETWORKS)
def test_a_step_with_noise(build, shape, most, validation, record_property):
    torch.manual_seed(0)
    plain, x, y = build(), torch.randn(shape), torch.randint(10, shape[:1])
    model = Classification(attach_noise(copy.deepcopy(plain)), num_examples=60_000)
    elbo = NoiseELBO()(model, AutoTruncatedLogNormal(model))
    with pyro.validation_enabled(validation):
        without = trained(plain.parameters(), lambda: F.cross_entropy(plain(x), y))
        with_noise = trained(parameter_groups(elbo, lr=1e-3), lambda: elbo(x, y))
        for step in (without, with_noise):
            seconds(step)
        rounds = [(seconds(without), seconds(with_noise)) for _ in range(ROUNDS)]
    ratio = median(noisy / bare for bare, noisy in rounds)
    bare, noisy = (1e3 * median(times) for times in zip(*rounds))
    print(f"\n{bare:.2f} ms without noise, {noisy:.2f} ms with: {ratio:.2f} times")
    record_property("ratio", ratio)
    assert ratio <= most
