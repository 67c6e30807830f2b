# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
LeNet-5 on MNIST, with a tenth of its operations or fewer.

The network of 20 and 50 filters and 500 neurons that papers on structured pruning share. K. Neklyudov et al. (2017),
https://arxiv.org/abs/1705.07283, whose noise this is, come to 217,000 of its 2.3 million multiplications at an error of
0.86 to 0.9 % (C. Louizos et al. (2017), https://arxiv.org/abs/1705.08665, count them, and come to 158,000 at 1.0 %).
Here it is compressed by the defaults: the images are not shifted, and nothing is chosen for this network.

Run it with ``python tutorials/pruning_mnist.py --data FOLDER``, a folder or the name of a data set on the hub that
``datasets.load_dataset`` reads; ``--help`` lists what can be set. It needs ``pip install pyro_bmrs[paper]``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning import compress, cost

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


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Compresses LeNet-5 with several seeds; prints and returns two rows for each: the whole, and what is left."""
    parser = argparse.ArgumentParser(description="LeNet-5 on MNIST, with a tenth of its operations or fewer.")
    parser.add_argument("--data", default="ylecun/mnist", help="folder, or name on the hub (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of all random numbers (%(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="of training the whole network (%(default)s)")
    options = parser.parse_args(arguments)
    images, test = load_images(options.data)
    rows = []
    for seed in options.seeds:
        torch.manual_seed(seed)
        start = time.perf_counter()
        result = compress(lenet(), images, epochs=options.epochs, seed=seed)
        minutes = (time.perf_counter() - start) / 60
        print(f"{result.summary()}\n", flush=True)
        nets = {"whole": result.at(0), "compressed": result.network}
        for (name, net), least in zip(nets.items(), seconds(list(nets.values()), test[0][:BATCH_SIZE])):
            layers = "-".join(str(m.weight.shape[0]) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
            rows.append(
                {
                    "seed": seed,
                    "network": name,
                    "layers": layers,
                    "test error": f"{error(net, test):.2%}",
                    "multiplications": int(cost(net, test[0][:1])["macs"].sum()),
                    "milliseconds": f"{1e3 * least:.1f}",
                    "minutes": f"{minutes:.0f}",
                }
            )
            print(f"{rows[-1]}\n", flush=True)
    table = pd.DataFrame(rows).set_index(["seed", "network"])
    print(table)
    return table


if __name__ == "__main__":
    main()
