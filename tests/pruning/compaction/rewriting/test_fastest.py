# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Each layer has the size at which it is fastest, by whatever clock there is: here, one that is made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning import attach_noise, compact_gated, compaction_report, noise_sites
from pyro_bmrs.pruning.compaction.rewriting import fastest

SIZES = (11, 20)


def timed_by(monkeypatch: pytest.MonkeyPatch, clock: Callable[[str, int], float]) -> None:
    """Lets the time of a linear layer be what a function of its name and its outputs says."""

    def of_modules(nets: Sequence[nn.Module], names: Sequence[Sequence[str]], inputs: Any) -> list[dict[str, float]]:
        return [{name: clock(name, _width(net, name)) for name in own} for net, own in zip(nets, names)]

    def of_networks(nets: Sequence[nn.Module], inputs: Any) -> list[float]:
        layers = [[(name, _width(net, name)) for name, part in net.named_modules() if _is_layer(part)] for net in nets]
        return [sum(clock(*layer) for layer in own) for own in layers]

    monkeypatch.setattr(fastest, "latencies_of_modules", of_modules)
    monkeypatch.setattr(fastest, "latencies", of_networks)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _width(net: nn.Module, name: str) -> int:
    module: Any = net.get_submodule(name)
    return int(module.out_features) if _is_layer(module) else 0


def compacted() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2)).double()
    sites = noise_sites(attach_noise(net))
    gates = {name: (torch.arange(40) < size).double() for name, size in zip(sites, SIZES)}
    inputs = torch.randn(2, 3).double()
    small, exact = (compact_gated(net, gates, sites, inputs, round_to=how) for how in ("auto", None))
    assert torch.allclose(small(inputs), exact(inputs), rtol=1e-12, atol=1e-12)
    return small, exact, inputs


@pytest.mark.parametrize(
    ("clock", "sizes"),
    [
        # The fewer the better.
        (lambda name, width: float(width), SIZES),
        # Multiples of 8 take a tenth; of what is as fast, the smallest.
        (lambda name, width: width / (1 if width % 8 else 10), (16, 24)),
        # One layer is slow at any size but its own.
        (lambda name, width: 9.0 if name == "0" and width != 40 else 1 + width / 100, (40, 20)),
        # What is hardly faster does not pay.
        (lambda name, width: 1.0 if width % 8 else 0.99, SIZES),
    ],
)
def test_sizes(monkeypatch: pytest.MonkeyPatch, clock: Callable[[str, int], float], sizes: tuple[int, int]) -> None:
    timed_by(monkeypatch, clock)
    small, _, _ = compacted()
    assert (small[0].out_features, small[2].out_features) == sizes
    assert len(compaction_report(small).masked) == sum(sizes) - sum(SIZES)


def test_the_whole_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that are faster each for itself are left as they are if the network is slower with them."""
    timed_by(monkeypatch, lambda name, width: float(width))
    monkeypatch.setattr(fastest, "latencies", lambda nets, inputs: [2.0] * (len(nets) - 1) + [1.0])
    small, _, _ = compacted()
    assert (small[0].out_features, small[2].out_features) == (40, 40)
    assert compaction_report(small).masked["reason"].unique().tolist() == ["with them it is as it was, which is faster"]


def test_by_the_clock_of_this_machine() -> None:
    small, exact, inputs = compacted()
    assert small[0].out_features >= exact[0].out_features
