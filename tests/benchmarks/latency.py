# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What compact networks take beside those that they were made of, in whatever runs them; as a program, a table of it.

Half of the units are pruned, at random, so that what is left has the sizes that are left; of these each layer may have
another, at which it is faster. Both networks, and a copy of the first, are called in turn. What the copy takes says how
well that can be told.
"""

from __future__ import annotations

import copy
import csv
import io
import itertools
import sys
import warnings
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import onnxruntime
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning import attach_noise, compact_gated, noise_sites
from pyro_bmrs.pruning.compaction.reporting.latency import latencies
from tests.benchmarks.networks import NETWORKS

SIZES = (1, 64)
# Where tensors lie in memory makes some of a difference: the median of as many copies of both networks.
COPIES = 3


class Session(nn.Module):
    """A network in ONNX Runtime."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net, (x,), file, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
        (self.given,) = (node.name for node in self.session.get_inputs())

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {self.given: x.numpy()})[0])


def compiled(net: nn.Module, x: Tensor) -> Any:
    return torch.compile(net, dynamic=False)


RUNTIMES: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "eager": lambda net, x: copy.deepcopy(net),
    "compiled": compiled,
    "ONNX Runtime": Session,
}


class Measured(NamedTuple):
    """
    What was measured of a network.

    :param before: what a call takes, in microseconds.
    :param ratio: that of the compact network, as a multiple.
    :param again: that of a copy of the network.
    """

    before: float
    ratio: float
    again: float


@cache
def both(name: str) -> tuple[nn.Module, nn.Module]:
    """A network, and a compact one without half of its units."""
    torch.manual_seed(0)
    network = NETWORKS[name]
    original, example = network.make().eval(), network.batch(1)
    net = attach_noise(copy.deepcopy(original), kinds=network.kinds, example_inputs=example)
    sites = noise_sites(net)
    gates = {site: (torch.rand(where.noise.num_units) < 0.5).float() for site, where in sites.items()}
    return original, compact_gated(net, gates, sites, example, round_to="auto", batch_sizes=SIZES).eval()


def measured(name: str, runtime: str, size: int) -> Measured:
    """What a network and a compact one take on a batch."""
    original, small = both(name)
    x = NETWORKS[name].batch(size)
    found = []
    for _ in range(COPIES if runtime == "eager" else 1):
        nets = [RUNTIMES[runtime](net, x) for net in (original, copy.deepcopy(original), small)]
        before, again, after = latencies(nets, x)
        found.append(Measured(before, after / before, again / before))
    torch.compiler.reset()
    return Measured(*(median(values) for values in zip(*found)))


HEADER = ["network", "runtime", "batch", "microseconds", "compact, as a multiple", "a copy"]


def main(path: Path, names: Collection[str] = ()) -> None:
    """
    Writes a table of networks in whatever runs them.

    :param path: of the table; what is there is not measured again.
    :param names: which networks; all by default.
    """
    torch.set_num_threads(1)
    rows = list(csv.reader(path.open())) if path.exists() else []
    done = {tuple(row[:3]) for row in rows}
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if not rows:
            writer.writerow(HEADER)
        for name, runtime, size in itertools.product(names or NETWORKS, RUNTIMES, SIZES):
            if (name, runtime, str(size)) not in done:
                before, ratio, again = measured(name, runtime, size)
                writer.writerow([name, runtime, size, f"{before:.0f}", f"{ratio:.2f}", f"{again:.2f}"])
                file.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
