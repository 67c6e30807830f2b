# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What a compact network takes, beside the network that it was made of: never more, whatever runs it.

Half of the units are pruned, at random, so that what is left has the sizes that are left; of these each layer may have
another, at which it is faster. Both networks, and a copy of the first, are called in turn. What the copy takes says how
well that can be told: a compact network may be as much slower than the original as that is slower than itself.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning import attach_noise, compact_gated, noise_sites
from pyro_bmrs.pruning.compaction.reporting.latency import latencies
from tests.benchmarks.networks import NETWORKS

# Of what is the same, the clock makes no less than this.
CLOCK = 0.02
SIZES = (1, 64)


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
    "eager": lambda net, x: net,
    "compiled": compiled,
    "ONNX Runtime": Session,
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.compiler.reset()


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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_never_slower(name: str, runtime: str, size: int, record_property: Any) -> None:
    original, small = both(name)
    x = NETWORKS[name].batch(size)
    nets = [RUNTIMES[runtime](net, x) for net in (original, copy.deepcopy(original), small)]
    before, again, after = latencies(nets, x)
    print(f"\n{before:.0f} µs, again {again:.0f} µs; compact {after:.0f} µs: {after / before:.2f} times")
    record_property("ratio", after / before)
    assert after / before <= 1 + max(CLOCK, abs(again / before - 1))
