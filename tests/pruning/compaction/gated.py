# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks whose noise has given values, and what they compute."""

from __future__ import annotations

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_bmrs.pruning import noise_sites
from pyro_bmrs.pruning.examples import copy_network


def random_gates(net: nn.Module, seed: int, pruned: float = 0.5) -> dict[str, Tensor]:
    """Factors of the units of a network's noise, some of which are 0."""
    generator = torch.Generator().manual_seed(seed)

    def draw(num_units: int) -> Tensor:
        kept = torch.rand(num_units, generator=generator) >= pruned
        return torch.where(kept, 0.1 + torch.rand(num_units, generator=generator), 0.0)

    return {name: draw(site.noise.num_units) for name, site in noise_sites(net).items()}


@torch.no_grad()
def with_noise_at(net: nn.Module, gates: dict[str, Tensor], *inputs: Tensor) -> Tensor:
    """What the network with noise computes, where its noise has given values."""
    net = copy_network(net).eval()
    for name, site in noise_sites(net).items():
        site.noise.kept.copy_(gates[name] > 0)
    like = next(net.parameters())
    # Values of pruned units do not matter, as long as the prior has them.
    values = {name: torch.where(gate > 0, gate, 0.5).clamp(max=1.0).to(like) for name, gate in gates.items()}
    with poutine.condition(data=values):
        return net(*inputs)


def difference(expected: Tensor, actual: Tensor) -> float:
    """The largest difference of two outputs, relative to the largest of one."""
    return ((expected - actual).abs().max() / expected.abs().max()).item()
