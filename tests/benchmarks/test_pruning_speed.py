# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
A training step of a network with noise, beside one of the same network without.

Steps of both are taken in turn, so that whatever else the machine does falls on both, and the fastest of many counts.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pyro
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, NoiseELBO, attach_noise, parameter_groups

BATCH = 64
ROUNDS, STEPS = 40, 10


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def mlp() -> nn.Module:
    widths = [784] + 6 * [50]
    hidden = [module for sizes in zip(widths, widths[1:]) for module in (nn.Linear(*sizes), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(50, 10))


# What a step may cost, as a multiple of one without noise. For LeNet-5 the aim is 1.15.
NETWORKS = [
    pytest.param(lenet, (BATCH, 1, 32, 32), 1.35, id="LeNet-5"),
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


def fastest(*steps: Callable[[], None]) -> list[float]:
    """Seconds a step, of each, in the fastest of its rounds."""
    best = [float("inf")] * len(steps)
    for _ in range(ROUNDS):
        for i, step in enumerate(steps):
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            best[i] = min(best[i], (time.perf_counter() - start) / STEPS)
    return best


@pytest.mark.parametrize("validation", [False, True], ids=["bare", "validated"])
@pytest.mark.parametrize(("build", "shape", "most"), NETWORKS)
def test_a_step_with_noise(build, shape, most, validation, record_property):
    torch.manual_seed(0)
    plain, x, y = build(), torch.randn(shape), torch.randint(10, shape[:1])
    model = Classification(attach_noise(copy.deepcopy(plain)), num_examples=60_000)
    elbo = NoiseELBO()(model, AutoTruncatedLogNormal(model))
    with pyro.validation_enabled(validation):
        without, with_noise = fastest(
            trained(plain.parameters(), lambda: F.cross_entropy(plain(x), y)),
            trained(parameter_groups(elbo, lr=1e-3), lambda: elbo(x, y)),
        )
    ratio = with_noise / without
    print(f"\n{1e3 * without:.2f} ms without noise, {1e3 * with_noise:.2f} ms with: {ratio:.2f} times")
    record_property("ratio", ratio)
    assert ratio <= most
