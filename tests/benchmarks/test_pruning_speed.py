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
from typing import Any

import pyro
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, NoiseELBO, attach_noise, parameter_groups
from tests.benchmarks.networks import NETWORKS, Network

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = 64


def mlp() -> nn.Module:
    widths = [784] + 6 * [50]
    hidden = [module for sizes in zip(widths, widths[1:]) for module in (nn.Linear(*sizes), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(50, 10))


SMALL = {"LeNet-5": NETWORKS["LeNet-5"], "MLP": Network(mlp, (784,))}
LARGE = {name: NETWORKS[name] for name in ("ResNet-18", "ViT", "GPT")}
# What a step may cost, as a multiple of one without noise, and what may be kept for the way back.
TIMES = {"MLP": 2.5, **dict.fromkeys(("LeNet-5", *LARGE), 1.15)}
MEMORY = 1.2
# Rounds, and steps in each, which take longer in a large network.
ROUNDS = {**dict.fromkeys(SMALL, (250, 3)), **dict.fromkeys(LARGE, (9, 1))}


def trained(parameters, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def step() -> None:
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def losses(network: Network) -> tuple[nn.Module, Any, Callable[[], Tensor], Callable[[], Tensor]]:
    """A network, the loss with noise, and both losses of a batch."""
    torch.manual_seed(0)
    plain, x, y = network.make(), network.batch(BATCH), torch.randint(10, (BATCH,))
    model = Classification(attach_noise(copy.deepcopy(plain)), num_examples=60_000)
    elbo = NoiseELBO()(model, AutoTruncatedLogNormal(model))
    return plain, elbo, lambda: F.cross_entropy(plain(x), y), lambda: elbo(x, y)


def seconds(step: Callable[[], None], steps: int) -> float:
    """What a step takes, in the mean of a few."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def ratio_of(without: Callable[[], None], with_noise: Callable[[], None], rounds: int, steps: int) -> float:
    """The median ratio of what steps take that are made in turn."""
    for step in (without, with_noise):
        seconds(step, steps)
    taken = [(seconds(without, steps), seconds(with_noise, steps)) for _ in range(rounds)]
    ratio = median(noisy / bare for bare, noisy in taken)
    bare, noisy = (1e3 * median(times) for times in zip(*taken))
    print(f"\n{bare:.2f} ms without noise, {noisy:.2f} ms with: {ratio:.2f} times")
    return ratio


@pytest.mark.parametrize(
    ("name", "validation"), [*((name, False) for name in TIMES), *((name, True) for name in SMALL)]
)
def test_a_step_with_noise(name: str, validation: bool, record_property: Any) -> None:
    plain, elbo, bare_loss, noisy_loss = losses((SMALL | LARGE)[name])
    with pyro.validation_enabled(validation):
        without = trained(plain.parameters(), bare_loss)
        with_noise = trained(parameter_groups(elbo, lr=1e-3), noisy_loss)
        ratio = ratio_of(without, with_noise, *ROUNDS[name])
    record_property("ratio", ratio)
    assert ratio <= TIMES[name]


def kept_by(loss: Callable[[], Tensor]) -> int:
    """Bytes of the tensors that are kept for the way back, each piece of memory once."""
    pieces: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        pieces[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
    assert value.requires_grad
    return sum(storage.nbytes() for storage in pieces.values())


@pytest.mark.parametrize("name", LARGE)
def test_memory_of_a_step_with_noise(name: str, record_property: Any) -> None:
    _, _, bare_loss, noisy_loss = losses(LARGE[name])
    bare, noisy = kept_by(bare_loss), kept_by(noisy_loss)
    print(f"\n{bare / 1e6:.1f} MB without noise, {noisy / 1e6:.1f} MB with: {noisy / bare:.2f} times")
    record_property("ratio", noisy / bare)
    assert noisy <= MEMORY * bare


@pytest.mark.parametrize("name", ["LeNet-5", "GPT"])
def test_a_compiled_step_with_noise(name: str, record_property: Any) -> None:
    """Compiled, the loss is the same, and a step takes no longer than one of the compiled network without noise may."""
    network = NETWORKS[name]
    plain, elbo, bare_loss, noisy_loss = losses(network)
    compiled = {loss: torch.compile(loss) for loss in (bare_loss, noisy_loss)}
    values = []
    for loss in (noisy_loss, compiled[noisy_loss]):
        torch.manual_seed(1)
        values.append(loss())
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-5)
    without = trained(plain.parameters(), compiled[bare_loss])
    with_noise = trained(parameter_groups(elbo, lr=1e-3), compiled[noisy_loss])
    ratio = ratio_of(without, with_noise, *ROUNDS[name])
    record_property("ratio", ratio)
    assert ratio <= TIMES[name]
