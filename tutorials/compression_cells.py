# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
How well compression does without a dial: many networks and data sets, one setting for all of them.

Each cell is a data set, a network and a seed. The whole network is trained; ``compress`` makes a smaller one; and
torch-pruning, which has to be told a size, is told the one that came out: it removes units by the norm of their weights
in groups, or by the first order of what the loss does without them, step by step, and trains for as many epochs. MLPs
and LeNet-5 are also trained and pruned in the settings of the paper's code, and in those which this project tuned on
MNIST by hand (``tutorials/paper/configs/recommended.yaml``), for as many epochs in all. Each row is kept as it comes,
and not made again; a run goes on where it was stopped, the cheapest cells first.

Run it with ``python tutorials/compression_cells.py --data FOLDER``, a folder with ``mnist``, ``fashion_mnist`` and
``cifar10`` as ``datasets.load_dataset`` reads them; without it the images come from the hub. ``--help`` lists what can
be set. It needs ``pip install pyro_bmrs[paper]``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pruning_digits
import torch
from compression_methods import (
    BATCH_SIZE,
    SETTINGS,
    Part,
    measure,
    prune_by_setting,
    prune_by_torch_pruning,
    size_of,
    train,
)
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

from pyro_bmrs.pruning import Compression, compress
from pyro_bmrs.pruning.compression.course.plan import Plan

HUB = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10"}
COLUMNS = "cell seed method parameters share accuracy log_likelihood seconds epochs".split()
IMPORTANCES = {"torch-pruning, norm": "norm", "torch-pruning, taylor": "taylor"}
METHODS = "dense", "compress", *IMPORTANCES, "paper settings", "tuned settings"
# The networks that there are settings for.
KINDS = "mlp", "lenet", "large_lenet"


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


def methods_of(name: str) -> list[str]:
    """What a cell has rows of."""
    has_settings = CELLS[name].data in HUB and name.split("-")[-1] in KINDS
    return ["dense", "compress", *IMPORTANCES, *(SETTINGS if has_settings else ())]


def run_cell(
    name: str, seed: int, methods: Sequence[str], done: Mapping[str, int], folder: str | None, epochs: int | None = None
) -> Iterator[dict[str, Any]]:
    """
    The rows of a cell.

    :param name: of the cell.
    :param seed: of all random numbers.
    :param methods: which rows.
    :param done: how many parameters came out of those that are there.
    :param folder: where the data are.
    :param epochs: of plain training; by default the cell's.
    """
    cell = CELLS[name] if epochs is None else CELLS[name]._replace(epochs=epochs)
    part, test = load(cell.data, folder)
    # As many epochs as the compressed network has seen at most: twice as many, and more where data are few.
    batches = -(-round(0.9 * len(part.x)) // BATCH_SIZE)
    total = round(Plan.of(cell.epochs * batches, False).seen / batches)
    torch.manual_seed(seed)
    whole = cell.network(part.x.shape[1:])
    sizes, plain = {**done}, 0.0
    dense = deepcopy(whole)
    if any(method == "dense" or method in IMPORTANCES for method in methods):
        start = time.process_time()
        train(dense, part, cell.epochs)
        plain = time.process_time() - start
    for method in methods:
        start = time.process_time()
        torch.manual_seed(seed)
        if method == "dense":
            net: nn.Module = dense
        elif method == "compress":
            result: Compression = compress(whole, tuple(part), epochs=cell.epochs, seed=seed, progress=False)
            net = result.network
            print(result.summary(), flush=True)
        elif method in IMPORTANCES:
            if "compress" not in sizes:
                raise SystemExit("torch-pruning is told the size that compress came to: let it run first")
            net = prune_by_torch_pruning(dense, part, sizes["compress"], total - cell.epochs, IMPORTANCES[method])
        else:
            net = prune_by_setting(deepcopy(whole), name.split("-")[-1], part, total, SETTINGS[method])
        seconds = time.process_time() - start + (plain if method == "dense" or method in IMPORTANCES else 0)
        accuracy, log_likelihood = measure(net, test)
        size = sizes[method] = size_of(net)
        trained = cell.epochs if method == "dense" else total
        share = size / size_of(whole)
        values = name, seed, method, size, share, accuracy, log_likelihood, round(seconds), trained
        yield dict(zip(COLUMNS, values))


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs what is not done, and prints all of it."""
    parser = argparse.ArgumentParser(description="Compression without a dial, on many networks.")
    parser.add_argument("--data", help="folder with the images; from the hub by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of all random numbers (%(default)s)")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="which (all)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which (all)")
    parser.add_argument("--epochs", type=int, help="of plain training, in the place of each cell's own")
    parser.add_argument("--results", type=Path, default=Path("build/compression.csv"), help="the table (%(default)s)")
    options = parser.parse_args(arguments)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.cells:
            table = read_rows(options.results)
            rows = table[(table["cell"] == name) & (table["seed"] == seed)]
            done = dict(zip(rows["method"], rows["parameters"]))
            missing = [method for method in methods_of(name) if method in options.methods and method not in done]
            for row in run_cell(name, seed, missing, done, options.data, options.epochs) if missing else ():
                print(row, flush=True)
                pd.DataFrame([row]).to_csv(
                    options.results, mode="a", header=not options.results.exists(), index=False, float_format="%.5g"
                )
    table = read_rows(options.results)
    means = table.groupby(["cell", "method"], sort=False)[["share", "accuracy", "log_likelihood", "seconds"]].mean()
    print(means.to_string())
    return table


def read_rows(path: Path) -> pd.DataFrame:
    """The rows that are there."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)


if __name__ == "__main__":
    main()
