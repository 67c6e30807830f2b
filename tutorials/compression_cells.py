# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
How well compression does without a dial: many networks and data sets, one setting for all of them.

Each cell is a data set, a network and a seed. The whole network is trained; ``compress`` makes a smaller one; and
torch-pruning, which has to be told a size, is told the one that came out: it removes units by the norm of their weights
in groups, or by the first order of what the loss does without them, step by step, and trains for as many epochs. What
is done is kept in a table, and not done again; a run goes on where it was stopped, the cheapest cells first.

Run it with ``python tutorials/compression_cells.py --data FOLDER``, a folder with ``mnist``, ``fashion_mnist`` and
``cifar10`` as ``datasets.load_dataset`` reads them; without it the images come from the hub. ``--help`` lists what can
be set. It needs ``pip install pyro_bmrs[paper]``.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pruning_digits
import torch
import torch_pruning
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gaussian_nll_loss

from pyro_bmrs.pruning import Compression, compress

BATCH_SIZE = 128
HUB = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10"}
COLUMNS = "cell seed method parameters share accuracy log_likelihood seconds epochs".split()


class Part(NamedTuple):
    """
    Examples.

    :param x: inputs.
    :param y: targets.
    """

    x: Tensor
    y: Tensor


class Cell(NamedTuple):
    """
    A network and data.

    :param data: the name of the data set.
    :param network: makes the network, given the shape of an input.
    :param epochs: of plain training.
    """

    data: str
    network: Callable[[Sequence[int]], nn.Module]
    epochs: int


def mlp(shape: Sequence[int], width: int = 50, depth: int = 6, outputs: int = 10) -> nn.Module:
    """Layers of one width."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(int(np.prod(shape)), width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def lenet(shape: Sequence[int], filters: Sequence[int] = (6, 16), neurons: Sequence[int] = (120, 84)) -> nn.Module:
    """LeNet-5: two layers of filters, and some of neurons."""
    side = ((shape[-1] - 4) // 2 - 4) // 2
    widths = [filters[1] * side * side, *neurons]
    layers: list[nn.Module] = [nn.Conv2d(shape[0], filters[0], 5), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(filters[0], filters[1], 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    for before, after in zip(widths, widths[1:]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


def large_lenet(shape: Sequence[int]) -> nn.Module:
    """LeNet-5 as Caffe has it."""
    return lenet(shape, (20, 50), (500,))


def digits_network(shape: Sequence[int]) -> nn.Module:
    """That of the tutorial on the digits, for images of 8x8 pixels."""
    return pruning_digits.network()


def regression_network(shape: Sequence[int]) -> nn.Module:
    """Three layers of 64."""
    return mlp(shape, 64, 3, outputs=1)


class Block(nn.Module):
    """Attention and a hidden layer, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.hidden = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Of tokens, others."""
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        mixed: Tensor = tokens + self.hidden(self.norm2(tokens))
        return mixed


class VisionTransformer(nn.Module):
    """Two blocks over the patches of an image."""

    def __init__(self, shape: Sequence[int], width: int = 64, patch: int = 7) -> None:
        super().__init__()
        self.patches = nn.Conv2d(shape[0], width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (shape[-1] // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Of images, the logits of their classes."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


# The cheapest first.
CELLS = {
    "digits-cnn": Cell("digits", digits_network, 60),
    "diabetes-mlp": Cell("diabetes", regression_network, 60),
    "mnist-mlp": Cell("mnist", mlp, 20),
    "fashion_mnist-mlp": Cell("fashion_mnist", mlp, 20),
    "mnist-lenet": Cell("mnist", lenet, 20),
    "fashion_mnist-lenet": Cell("fashion_mnist", lenet, 20),
    "cifar10-mlp": Cell("cifar10", mlp, 20),
    "cifar10-lenet": Cell("cifar10", lenet, 20),
    "fashion_mnist-vit": Cell("fashion_mnist", VisionTransformer, 20),
    "mnist-large_lenet": Cell("mnist", large_lenet, 20),
    "fashion_mnist-large_lenet": Cell("fashion_mnist", large_lenet, 20),
    "cifar10-large_lenet": Cell("cifar10", large_lenet, 20),
}


@cache
def load(name: str, folder: str | None) -> tuple[Part, Part]:
    """What to train on and what to test on; inputs are standardised."""
    if name in HUB:
        from datasets import load_dataset

        parts: Any = load_dataset(f"{folder}/{name}" if folder else HUB[name])
        (x, y), (test_x, test_y) = (_images(parts[part]) for part in ("train", "test"))
    else:
        data, targets = (load_digits if name == "digits" else load_diabetes)(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(data))
        x = torch.tensor(data[order], dtype=torch.float32)
        y = torch.tensor(targets[order])
        if name == "digits":
            x = x.reshape(-1, 1, 8, 8)
        else:
            y = ((y - y.mean()) / y.std()).float().unsqueeze(1)
        size = len(x) * 3 // 4
        x, y, test_x, test_y = x[:size], y[:size], x[size:], y[size:]
    dims = [0, *range(2, x.dim())]
    mean, scale = x.mean(dims, keepdim=True), x.std(dims, keepdim=True)
    return Part((x - mean) / scale, y), Part((test_x - mean) / scale, test_y)


def _images(part: Any) -> tuple[Tensor, Tensor]:
    image, label = part.column_names[:2]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in part[image]]))
    pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.movedim(-1, 1)
    return pixels / 255, torch.tensor(part[label])


def loss(output: Tensor, y: Tensor) -> Tensor:
    """The mean negative log likelihood: of labels, or of real numbers with the variance that fits them best."""
    if not y.is_floating_point():
        return cross_entropy(output, y)
    variance = (output - y).square().mean().detach().clamp(min=1e-6)
    return gaussian_nll_loss(output, y, variance.expand_as(y), full=True)


def train(net: nn.Module, part: Part, epochs: int, after_epoch: Callable[[int], None] = lambda epoch: None) -> None:
    """An ordinary loop; the learning rate falls to 0 along half a cosine."""
    net.train()
    steps = epochs * -(-len(part.x) // BATCH_SIZE)
    done = 0
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for epoch in range(epochs):
        for batch in torch.randperm(len(part.x)).split(BATCH_SIZE):
            for group in optimizer.param_groups:
                group["lr"] = 0.5e-3 * (1 + np.cos(np.pi * done / steps))
            optimizer.zero_grad()
            loss(net(part.x[batch]), part.y[batch]).backward()
            optimizer.step()
            done += 1
        before = list(net.parameters())
        after_epoch(epoch)
        if any(new is not old for new, old in zip(net.parameters(), before)):
            optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.eval()


@torch.no_grad()
def measure(net: nn.Module, part: Part) -> tuple[float, float]:
    """Accuracy (NaN for real numbers) and mean log likelihood."""
    output = torch.cat([net.eval()(x) for x in part.x.split(1000)])
    right = float("nan") if part.y.is_floating_point() else float((output.argmax(-1) == part.y).float().mean())
    return right, -float(loss(output, part.y))


def size_of(net: nn.Module) -> int:
    """How many parameters a network has."""
    return sum(parameter.numel() for parameter in net.parameters())


def prune_by_torch_pruning(net: nn.Module, part: Part, size: int, epochs: int, importance: str) -> nn.Module:
    """
    A network of a given size, by torch-pruning: units go epoch by epoch in the first third of a training.

    :param net: the whole network, trained; changed in place.
    :param part: what to train on.
    :param size: how many parameters it may have.
    :param epochs: of the training.
    :param importance: ``"norm"`` or ``"taylor"``.
    """
    kinds = {
        "norm": torch_pruning.importance.GroupMagnitudeImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }
    example = part.x[:1]
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    attentions = {module: module.num_heads for module in net.modules() if isinstance(module, nn.MultiheadAttention)}
    pruner = torch_pruning.pruner.BasePruner(
        net,
        example,
        importance=kinds[importance](),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.99,
        iterative_steps=400,
        ignored_layers=[last],
        num_heads=attentions,
    )
    whole, num_steps = size_of(net), max(1, epochs // 3)

    def prune(epoch: int) -> None:
        if epoch >= num_steps:
            return
        target = whole * (size / whole) ** ((epoch + 1) / num_steps)
        while size_of(net) > target and pruner.current_step < pruner.iterative_steps:
            if importance == "taylor":
                net.zero_grad()
                loss(net(part.x[:1000]), part.y[:1000]).backward()
            before = size_of(net)
            pruner.step()
            if size_of(net) == before and pruner.current_step >= pruner.iterative_steps:
                break

    train(net, part, epochs, prune)
    return net


def run_cell(name: str, cell: Cell, seed: int, folder: str | None) -> list[dict[str, Any]]:
    """The rows of a cell: the whole network, ours, and torch-pruning's."""
    part, test = load(cell.data, folder)
    rows: list[dict[str, Any]] = []

    def add(method: str, net: nn.Module, seconds: float, epochs: int) -> None:
        accuracy, log_likelihood = measure(net, test)
        values = (
            name,
            seed,
            method,
            size_of(net),
            size_of(net) / size,
            accuracy,
            log_likelihood,
            round(seconds),
            epochs,
        )
        rows.append(dict(zip(COLUMNS, values)))
        print(rows[-1], flush=True)

    torch.manual_seed(seed)
    whole = cell.network(part.x.shape[1:])
    size, start = size_of(whole), time.process_time()
    dense = deepcopy(whole)
    train(dense, part, cell.epochs)
    plain = time.process_time() - start
    add("dense", dense, plain, cell.epochs)
    start = time.process_time()
    result: Compression = compress(whole, tuple(part), epochs=cell.epochs, seed=seed, progress=False)
    add("compress", result.network, time.process_time() - start, cell.epochs + max(1, round(0.55 * cell.epochs)))
    print(result.summary(), flush=True)
    # As many epochs as the compressed network has seen.
    more = max(1, round(0.55 * cell.epochs))
    for importance in ("norm", "taylor"):
        start = time.process_time()
        torch.manual_seed(seed)
        small = prune_by_torch_pruning(deepcopy(dense), part, size_of(result.network), more, importance)
        add(f"torch-pruning, {importance}", small, plain + time.process_time() - start, cell.epochs + more)
    return rows


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs the cells that are not done, and prints all of them."""
    parser = argparse.ArgumentParser(description="Compression without a dial, on many networks.")
    parser.add_argument("--data", help="folder with the images; from the hub by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of all random numbers (%(default)s)")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="which (all)")
    parser.add_argument("--epochs", type=int, help="of plain training, in the place of each cell's own")
    parser.add_argument("--results", type=Path, default=Path("build/compression.csv"), help="the table (%(default)s)")
    options = parser.parse_args(arguments)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if options.results.exists():
        done = set(pd.read_csv(options.results).groupby(["cell", "seed"]).groups)
    for seed in options.seeds:
        for name in options.cells:
            if (name, seed) in done:
                continue
            cell = CELLS[name] if options.epochs is None else CELLS[name]._replace(epochs=options.epochs)
            rows = run_cell(name, cell, seed, options.data)
            is_new = not options.results.exists()
            with options.results.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if is_new:
                    writer.writeheader()
                writer.writerows(rows)
    table = pd.read_csv(options.results) if options.results.exists() else pd.DataFrame(columns=COLUMNS)
    means = table.groupby(["cell", "method"], sort=False)[["share", "accuracy", "log_likelihood", "seconds"]].mean()
    print(means.to_string())
    return table


if __name__ == "__main__":
    main()
