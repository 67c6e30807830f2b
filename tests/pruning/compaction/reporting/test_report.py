# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a compaction did, unit by unit and layer by layer."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import CompactionReport, attach_noise, compaction_report, noise_sites
from pyro_bmrs.pruning.compaction.compact import compact_gated
from tests.pruning.networks import make


@pytest.fixture
def compacted() -> nn.Module:
    net, inputs = make("lenet-5")
    sites = noise_sites(attach_noise(net))
    gates = {name: torch.full((site.noise.num_units,), 0.5) for name, site in sites.items()}
    gates["conv1"][[0, 3]] = 0.0
    gates["fc2"][:] = 0.0
    evidence = {name: torch.arange(float(site.noise.num_units)) for name, site in sites.items()}
    return compact_gated(net, gates, sites, inputs, delta_evidence=evidence)


def test_units(compacted: nn.Module) -> None:
    report = compaction_report(compacted)
    fates = {"units": 6, "kept": 4, "removed": 2, "masked": 0, "delta_evidence": 0.0 + 3.0}
    assert report.sites.loc["conv1"].to_dict() == fates
    fates = {"units": 12, "kept": 0, "removed": 11, "masked": 1, "delta_evidence": 66.0}
    assert report.sites.loc["fc2"].to_dict() == fates
    assert report.sites.loc["fc1", "delta_evidence"] == 0.0
    assert report.units.loc[("conv1", 3), "fate"] == "removed"
    assert report.units.loc[("conv1", 4), "gate"] == 0.5
    assert report.units.loc[("conv1", 4), "delta_evidence"] == 4.0
    assert len(report.masked) == 1


def test_layers(compacted: nn.Module) -> None:
    layers = compaction_report(compacted).layers
    assert layers.loc["conv1"].tolist() == [6 * 26, 4 * 26, 2 * 6 * 25 * 24**2, 2 * 4 * 25 * 24**2]
    assert layers.loc["conv2"].tolist() == [8 * 151, 8 * 101, 2 * 8 * 150 * 8**2, 2 * 8 * 100 * 8**2]
    assert layers.index.tolist() == ["conv1", "conv2", "fc1", "fc2", "fc3"]


def test_is_read_at_a_glance(compacted: nn.Module) -> None:
    lines = repr(compaction_report(compacted)).splitlines()
    assert "46 ->" in lines[0] and "33" in lines[0]
    assert any(line.startswith("1 masked in fc2") for line in lines)


def test_goes_with_copies_and_as_plain_data(compacted: nn.Module) -> None:
    report = compaction_report(copy.deepcopy(compacted))
    other = CompactionReport.from_data(report.as_data())
    assert other.units.equals(report.units) and other.layers.equals(report.layers)
    assert repr(other) == repr(report)


def test_of_a_network_that_is_not_compact() -> None:
    with pytest.raises(ReductionError, match="not been compacted"):
        compaction_report(nn.Linear(2, 2))


def test_latency(monkeypatch: pytest.MonkeyPatch, compacted: nn.Module) -> None:
    """Of the network as it was, and the compact one, on batches of the sizes that were asked for."""
    seen = []

    def clock(nets: list[nn.Module], inputs: torch.Tensor) -> list[float]:
        seen.append(([net(inputs) for net in nets], len(inputs)))
        return [30.0 * len(inputs), 10.0 * len(inputs)]

    # The module, which a function in it hides.
    monkeypatch.setattr(sys.modules[compact_gated.__module__], "latencies", clock)
    original, inputs = make("lenet-5")
    net = attach_noise(copy.deepcopy(original))
    sites = noise_sites(net)
    gates = {name: (torch.arange(site.noise.num_units) % 2).float() for name, site in sites.items()}
    small = compact_gated(net, gates, sites, inputs, batch_sizes=(1, 5))
    report = compaction_report(small)
    assert report.latency.loc[5].tolist() == [150.0, 50.0] and report.latency.index.tolist() == [1, 5]
    assert "3.00 times as fast" in repr(report)
    assert CompactionReport.from_data(report.as_data()).latency.equals(report.latency)
    for ((before, after), size), expected in zip(seen, (1, 5), strict=True):
        assert size == expected and len(before) == len(after) == size
        batch = inputs[torch.arange(size) % len(inputs)]
        assert torch.equal(before, original(batch)) and torch.equal(after, small(batch))
    without = compaction_report(compacted)
    assert without.latency.empty and "not measured" in repr(without)
