# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
A network that reads handwritten digits, without the units that it does not need.

A small convolutional network gets multiplicative noise on its filters and neurons, is trained as ever, and then loses
the units of which the evidence says that they are better gone. There is no threshold to choose. What is left is an
ordinary network, smaller and faster, that computes what the pruned one did. The digits ship with scikit-learn (Alpaydin
and Kaynak 1998): 1,797 images of 8x8 pixels.

Run it with ``python tutorials/pruning_digits.py``; ``--help`` lists what can be set.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import pyro
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import trange

from pyro_bmrs.pruning import (
    BMRS_N,
    AutoTruncatedLogNormal,
    Classification,
    NoiseELBO,
    attach_noise,
    compact,
    compaction_report,
    parameter_groups,
    prune,
)

BATCH_SIZE = 128


def load_images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images of shape ``(n, 1, 8, 8)`` between 0 and 1 and their digits, to train with and to test on."""
    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, digits, test_size=0.25, random_state=0, stratify=digits)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in parts[:2])
    return (train_x, torch.tensor(parts[2])), (test_x, torch.tensor(parts[3]))


def network() -> nn.Sequential:
    """Two layers of 32 filters, one of 128 neurons."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def train(
    loss: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, epochs: int
) -> None:
    """An ordinary PyTorch loop."""
    for _ in trange(epochs, desc="epochs"):
        for batch in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss(x[batch], y[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """The share of the images that a network reads correctly."""
    return (net(x).argmax(-1) == y).float().mean().item()


@torch.no_grad()
def seconds(net: nn.Module, x: Tensor, repeats: int = 100) -> float:
    """The shortest of several times that a network takes for the images."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        net(x)
        times.append(time.perf_counter() - start)
    return min(times)


def main(arguments: Sequence[str] | None = None) -> nn.Module:
    """Trains a network without noise and one with, prunes and compacts the latter, and compares. Returns the result."""
    parser = argparse.ArgumentParser(description="A network without the units that it does not need.")
    parser.add_argument("--epochs", type=int, default=50, help="of training (%(default)s)")
    parser.add_argument("--kl-weight", type=float, default=2.0, help="of the noise; 1 is the ELBO (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (%(default)s)")
    options = parser.parse_args(arguments)
    (x, y), test = load_images()

    pyro.set_rng_seed(options.seed)
    plain = network()
    train(
        lambda x, y: nn.functional.cross_entropy(plain(x), y),
        torch.optim.Adam(plain.parameters(), lr=1e-2),
        x,
        y,
        options.epochs,
    )

    pyro.set_rng_seed(options.seed)
    net = attach_noise(network())
    model = Classification(net, len(x), kl_weight=options.kl_weight)
    guide = AutoTruncatedLogNormal(model)
    elbo = NoiseELBO()(model, guide)
    train(elbo, torch.optim.Adam(parameter_groups(elbo, lr=1e-2)), x, y, options.epochs)
    result = prune(net, guide, BMRS_N())
    small = compact(net, guide, x[:1], delta_evidence=result.scores).eval()

    print(result)
    print(f"\n{compaction_report(small)}\n")
    print(f"Test accuracy: {accuracy(plain, *test):.1%} without noise, {accuracy(small, *test):.1%} pruned.")
    images = test[0][:128]
    before, after = seconds(plain.eval(), images), seconds(small, images)
    print(f"128 images take {1e3 * before:.2f} ms before and {1e3 * after:.2f} ms after, 1 / {before / after:.1f}.")
    return small


if __name__ == "__main__":
    main()
