# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What networks take is measured in turn, and as they are used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.compaction.reporting.latency import batches, latencies, latencies_of_modules


class Noting(nn.Module):
    """Notes each call of it, and under which conditions."""

    def __init__(self, name: str, calls: list[str], width: int = 1) -> None:
        super().__init__()
        self.name, self.calls = name, calls
        self.layer = nn.Linear(width, width)

    def forward(self, input: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.calls.append(self.name)
        # What it writes to is a copy.
        return self.layer(input.add_(1.0))


def test_networks_take_turns() -> None:
    calls: list[str] = []
    nets = [Noting(name, calls).train() for name in ("one", "other")]
    inputs = torch.zeros(2, 1)
    assert all(time > 0 for time in latencies(nets, inputs))
    rounds = calls[-18:]
    assert rounds[::2] == ["one"] * 9 and rounds[1::2] == ["other"] * 9
    assert calls.count("one") == calls.count("other")
    assert not inputs.any() and all(net.training for net in nets)


def test_time_grows_with_what_is_done() -> None:
    small, large = latencies([nn.Linear(600, width) for width in (4, 2000)], torch.ones(50, 600))
    assert 0 < small < large


def test_single_modules() -> None:
    net = nn.Sequential(nn.Linear(400, 400), nn.Identity(), nn.Linear(400, 1))
    net.append(net[1])
    net.not_called = nn.Linear(1, 1)
    net.forward = lambda input: net[3](net[2](net[1](net[0](input))))  # type: ignore[method-assign]
    (times,) = latencies_of_modules([net], [["0", "1", "2", "not_called"]], torch.ones(50, 400))
    assert times["0"] > times["2"] > 0 and times["1"] > 0 and times["not_called"] == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_other_devices_are_waited_for() -> None:
    large = nn.Linear(4096, 4096).cuda()
    inputs = torch.ones(4096, 4096, device="cuda")
    # Far longer than it takes to ask for it.
    assert latencies([large], inputs)[0] > 1e6 * 2 * 4096**3 / 1e15


def test_batches() -> None:
    inputs = {"tokens": torch.arange(6).reshape(2, 3), "mask": torch.ones(3, 3), "number": 5, "scalar": torch.ones(())}
    found = batches(inputs, [1, 5])
    assert found[1]["tokens"].tolist() == [[0, 1, 2]]
    assert found[5]["tokens"][:, 0].tolist() == [0, 3, 0, 3, 0]
    assert all(found[5][name] is inputs[name] for name in ("mask", "number", "scalar"))
