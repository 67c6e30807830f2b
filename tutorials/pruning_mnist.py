# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
LeNet-5 on MNIST, with a tenth of its operations.

The network of 20 and 50 filters and 500 neurons that papers on structured pruning share (K. Neklyudov et al. (2017),
https://arxiv.org/abs/1705.07283, come to 10.5 times fewer operations at 0.86 % test error). Noise is trained along with
the weights; the evidence decides which units go; what is left is compacted, and trained on for a few epochs without
noise, as the ordinary network that it is.

Most operations are in the filters, which are few, and most of the time goes into those of the first layer, which see
the most pixels. The divergence of the noise therefore has a weight for each layer: the noise of a neuron is fitted as
if a twelfth of the examples had been seen, that of a filter as if many fewer had. What costs more has to earn more.

Run it with ``python tutorials/pruning_mnist.py --data FOLDER``, a folder or the name of a data set on the hub that
``datasets.load_dataset`` reads; ``--help`` lists what can be set. It needs ``pip install pyro_bmrs[paper]``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_bmrs.pruning import (
    BMRS_N,
    AutoTruncatedLogNormal,
    Classification,
    CompactionReport,
    NoiseELBO,
    WarmUp,
    attach_noise,
    compact,
    compaction_report,
    noise_sites,
    parameter_groups,
    prune,
)

BATCH_SIZE = 128
Images = tuple[Tensor, Tensor]


def load_images(data: str) -> tuple[Images, Images]:
    """Images of shape ``(n, 1, 28, 28)``, standardised, and their digits, to train with and to test on."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("images are read by datasets: pip install pyro_bmrs[paper]") from error

    parts: Any = load_dataset(data)

    def images(part: str) -> Images:
        pixels = np.stack([np.asarray(image) for image in parts[part]["image"]])
        return torch.from_numpy(pixels).unsqueeze(1) / 255, torch.tensor(parts[part]["label"])

    (x, y), (test_x, test_y) = images("train"), images("test")
    mean, scale = x.mean(), x.std()
    return ((x - mean) / scale, y), ((test_x - mean) / scale, test_y)


def lenet() -> nn.Sequential:
    """LeNet-5 as Caffe has it: 431,080 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def train(
    loss: Callable[[Tensor, Tensor], Tensor],
    parameters: Any,
    images: Images,
    epochs: int,
    description: str,
) -> None:
    """
    An ordinary PyTorch loop, with a learning rate that falls to 0 along half a cosine.

    Each batch is shifted by up to two pixels, across and down; the margins of the images are empty.
    """
    x, y = images
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    steps = epochs * -(-len(x) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with tqdm(total=steps, desc=description, unit="step", mininterval=1) as progress:
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(BATCH_SIZE):
                shift = torch.randint(-2, 3, (2,)).tolist()
                optimizer.zero_grad()
                loss(x[batch].roll(shift, (-2, -1)), y[batch]).backward()
                optimizer.step()
                schedule.step()
                progress.update()


@torch.no_grad()
def error(net: nn.Module, images: Images) -> float:
    """The share of the images that a network reads wrongly."""
    net.eval()
    parts = zip(*(part.split(1000) for part in images))
    return sum((net(x).argmax(-1) != y).sum().item() for x, y in parts) / len(images[0])


@torch.no_grad()
def seconds(nets: Sequence[nn.Module], x: Tensor, repeats: int = 200) -> list[float]:
    """The shortest of several times that each network takes for the images, in turns."""
    times: list[list[float]] = [[] for _ in nets]
    for _ in range(repeats):
        for net, own in zip(nets, times):
            start = time.perf_counter()
            net(x)
            own.append(time.perf_counter() - start)
    return list(map(min, times))


def prune_lenet(
    images: Images, *, epochs: int, fine_tune: int, kl_weights: Sequence[float]
) -> tuple[nn.Module, CompactionReport]:
    """
    Trains, prunes and compacts a network, and trains the compact one on.

    :param images: to train with.
    :param epochs: of training with noise.
    :param fine_tune: epochs of the compact network.
    :param kl_weights: of the noise of each layer, reached in the first quarter of the training.
    """
    x, _ = images
    net = attach_noise(lenet(), per_example=True)
    weights = dict(zip(noise_sites(net), kl_weights))
    steps = -(-epochs * len(x) // (4 * BATCH_SIZE))
    model = Classification(net, len(x), kl_weight=WarmUp(steps, weights))
    guide = AutoTruncatedLogNormal(model)
    elbo = NoiseELBO()(model, guide)
    train(elbo, parameter_groups(elbo, lr=1e-3, noise_lr=3e-2), images, epochs, "with noise")

    result = prune(net, guide, BMRS_N())
    small = compact(net, guide, x[:1], delta_evidence=result.scores)
    print(f"{result}\n\n{compaction_report(small)}\n", flush=True)
    small.train()
    parameters = [{"params": list(small.parameters()), "lr": 2e-3}]
    train(lambda x, y: nn.functional.cross_entropy(small(x), y), parameters, images, fine_tune, "without noise")
    return small, compaction_report(small)


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Prunes LeNet-5 with several seeds; prints and returns a row for each."""
    parser = argparse.ArgumentParser(description="LeNet-5 on MNIST, with a tenth of its operations.")
    parser.add_argument("--data", default="ylecun/mnist", help="folder, or name on the hub (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of all random numbers (%(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="of training with noise (%(default)s)")
    parser.add_argument("--fine-tune", type=int, default=15, help="epochs of the compact network (%(default)s)")
    parser.add_argument(
        "--kl-weights", type=float, nargs=3, default=[1000, 130, 12], help="of the noise of each layer (%(default)s)"
    )
    options = parser.parse_args(arguments)
    images, test = load_images(options.data)
    rows = []
    for seed in options.seeds:
        pyro.set_rng_seed(seed)
        start = time.perf_counter()
        small, report = prune_lenet(
            images, epochs=options.epochs, fine_tune=options.fine_tune, kl_weights=options.kl_weights
        )
        minutes = (time.perf_counter() - start) / 60
        before, after = seconds([lenet().eval(), small.eval()], test[0][:BATCH_SIZE])
        macs = report.layers.sum()
        layers = "-".join(str(m.weight.shape[0]) for m in small.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
        rows.append(
            {
                "seed": seed,
                "layers": layers,
                "test error": f"{error(small, test):.2%}",
                "fewer MACs": f"{macs['macs_before'] / macs['macs_after']:.1f}",
                "faster": f"{before / after:.1f}",
                "minutes": f"{minutes:.0f}",
            }
        )
        print(f"{rows[-1]}\n", flush=True)
    table = pd.DataFrame(rows).set_index("seed")
    print(table)
    return table


if __name__ == "__main__":
    main()
