# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
A network that reads handwritten digits, without the units that it does not need.

A small convolutional network goes into ``compress`` with its data, and a smaller one comes out that does as well on
digits that were held out. There is nothing to choose: what a unit costs is read off its weights, and how far to go, off
the held-out digits. What is left is an ordinary network. The digits ship with scikit-learn (Alpaydin and Kaynak 1998):
1,797 images of 8x8 pixels.

Run it with ``python tutorials/pruning_digits.py``; ``--help`` lists what can be set.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from pyro_bmrs.pruning import compress


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
    """Compresses a network, and compares it with the whole one. Returns the result."""
    parser = argparse.ArgumentParser(description="A network without the units that it does not need.")
    parser.add_argument("--epochs", type=int, default=60, help="of training the whole network (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (%(default)s)")
    options = parser.parse_args(arguments)
    train, test = load_images()

    torch.set_num_threads(1)  # the tensors are small: more would only get in each other's way
    torch.manual_seed(options.seed)
    result = compress(
        network(),
        train,
        epochs=options.epochs,
        optimizer=partial(torch.optim.Adam, lr=3e-3),
        seed=options.seed,
    )
    whole, small = result.at(0), result.network

    print(result.summary())
    print(f"\n{result.report}\n")
    print(f"Test accuracy: {accuracy(whole, *test):.1%} whole, {accuracy(small, *test):.1%} compressed.")
    images = test[0][:128]
    before, after = seconds(whole, images), seconds(small, images)
    print(f"128 images take {1e3 * before:.2f} ms before and {1e3 * after:.2f} ms after, 1 / {before / after:.1f}.")
    return small


if __name__ == "__main__":
    main()
