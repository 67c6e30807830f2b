# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Channels are followed through whatever networks do with them, in as many steps as these have operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning import (
    attach_noise,
    compaction_report,
    coupled_units,
    load_compact,
    noise_sites,
    save_compact,
)
from pyro_bmrs.pruning.compaction.compact import compact_gated
from pyro_bmrs.pruning.compaction.coupling.flow import ChannelFlow
from pyro_bmrs.pruning.streams.operations import Operation
from tests.pruning.compaction.gated import difference, with_noise_at
from tests.pruning.dividing import DIVIDING, Split

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


def half_of_the_groups(net: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Factors that are 0 for every second unit, with those that the network ties to it."""
    sites = noise_sites(net)
    gates = {name: torch.linspace(0.5, 1.0, site.noise.num_units) for name, site in sites.items()}
    tied = coupled_units(net, inputs)
    lone = {(name, unit) for name, gate in gates.items() for unit in range(len(gate))} - {u for g in tied for u in g}
    seen: dict[frozenset[str], int] = {}
    for group in [*tied, *([unit] for unit in sorted(lone))]:
        kind = frozenset(name for name, _ in group)
        seen[kind] = seen.get(kind, 0) + 1
        for name, unit in group if seen[kind] % 2 else ():
            gates[name][unit] = 0.0
    return gates


@pytest.mark.parametrize("name", DIVIDING)
def test_all_that_is_tied_and_pruned_is_taken_out(name, tmp_path):
    make, example = DIVIDING[name]
    inputs = example().double()
    net = attach_noise(make().double().eval())
    gates = half_of_the_groups(net, inputs)
    small = compact_gated(net, gates, noise_sites(net), inputs)
    assert difference(with_noise_at(net, gates, inputs), small(inputs)) <= 1e-12
    report = compaction_report(small)
    assert (report.units["fate"] != "masked").all(), report
    assert (report.sites["removed"] > 0).all()
    outputs = small.train()(inputs)
    sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else [outputs])).backward()
    save_compact(small, tmp_path / "net")
    loaded = load_compact(tmp_path / "net", lambda: make().double())
    assert torch.equal(loaded.eval()(inputs), small.eval()(inputs))


def test_units_that_are_named_are_there():
    for make, example in DIVIDING.values():
        net = attach_noise(make().eval())
        sites = noise_sites(net)
        for group in coupled_units(net, example()):
            assert len(set(group)) == len(group) > 1
            assert all(0 <= unit < sites[name].noise.num_units for name, unit in group)


def test_halves_that_are_shuffled_are_tied_by_their_places():
    # Two halves of four; what goes of one, goes of the other.
    net = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.ChannelShuffle(2), nn.Conv2d(8, 3, 1))
    assert coupled_units(attach_noise(net, "0"), torch.ones(1, 1, 2, 2)) == []

    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 8, 1), nn.Conv2d(4, 3, 1)

        def forward(self, images):
            one, other = self.first(images).chunk(2, 1)
            return self.last(one.relu()) + self.last(other.relu())

    groups = coupled_units(attach_noise(Halved(), "first"), torch.ones(1, 1, 2, 2))
    assert groups == [[("first", unit), ("first", unit + 4)] for unit in range(4)]


class Repeated(nn.Module):
    """Blocks each of which splits, turns and joins what comes in twice, so that the ways through them double."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(depth)])

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.first(inputs)
        for block in self.blocks:
            one, other = features.chunk(2, -1)
            features = torch.cat([other, -one], -1) * features + block(features)
        return self.last(features)


@pytest.mark.parametrize("count", ["operations", "ties"])
def test_the_work_grows_with_the_depth_and_not_faster(monkeypatch, count):
    through, asked = ChannelFlow.through, []

    def counting(self: ChannelFlow, operation: Operation):
        asked.append(operation)
        return through(self, operation)

    monkeypatch.setattr(ChannelFlow, "through", counting)

    def work(depth: int) -> int:
        asked.clear()
        flow = ChannelFlow(Repeated(depth))
        flow.follow(torch.ones(2, 3))
        return len(asked) if count == "operations" else sum(map(len, flow.pairs))

    some, more, most = work(10), work(20), work(40)
    assert most - more == 2 * (more - some) > 0


def test_sizes_that_are_written_into_the_code_are_named():
    class Fixed(Split):
        def forward(self, images):
            one, other = self.stem(images).split([4, 12], 1)
            return self.last(self.next(torch.cat([self.parts[0](one), other], 1)).mean((2, 3)))

    net = attach_noise(Fixed(False).double().eval())
    inputs = torch.randn(2, 3, 4, 4).double()
    gates = half_of_the_groups(net, inputs)
    small = compact_gated(net, gates, noise_sites(net), inputs)
    assert difference(with_noise_at(net, gates, inputs), small(inputs)) <= 1e-12
    reasons = compaction_report(small).masked["reason"]
    assert reasons.str.contains(
        "the network divides them into parts: have its forward ask tensors for their sizes"
    ).all()
    assert len(reasons)


def test_what_is_written_in_place_is_what_is_seen():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.last = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)

        def forward(self, inputs):
            features = inputs.new_zeros(len(inputs), 8)
            features[:, ::2], features[:, 1::2] = self.one(inputs), self.other(inputs)
            return self.last(features.relu_())

    flow = ChannelFlow(Written())
    flow.follow(torch.ones(2, 3))
    begins = {place: begin for place, (begin, _) in flow.begins.items()}
    pairs = {frozenset(pair) for pairs in flow.pairs for pair in pairs.tolist()}
    expected = {
        frozenset((begins["last", "in"] + 2 * unit + shift, begins[name, "out"] + unit))
        for shift, name in enumerate(("one", "other"))
        for unit in range(4)
    }
    assert pairs == expected and set(flow.obstacles) == set(range(begins["last", "out"], flow.size))


class InPlace(nn.Module):
    """An operation that only reshapes, and does it in place."""

    def __init__(self, reshape):
        super().__init__()
        self.reshape = reshape

    def forward(self, x):
        return self.reshape(x)


@pytest.mark.parametrize(
    "reshape",
    [
        lambda x: x.squeeze_(3).squeeze_(2),
        lambda x: x.transpose_(1, 2).transpose_(1, 2).flatten(1),
        lambda x: x.as_strided_((x.shape[0], 4), (4, 1)),
    ],
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_what_is_reshaped_in_place_keeps_its_channels(reshape, layout):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), InPlace(reshape), nn.Linear(4, 2))
    flow = ChannelFlow(net)
    flow.follow(torch.randn(2, 3, 5, 5).to(memory_format=layout))
    outputs = flow.channels_of("0", "out", 4)
    assert not set(outputs.tolist()) & set(flow.obstacles)
    assert torch.equal(torch.cat(flow.pairs).sort(1).values, torch.stack([outputs, flow.channels_of("3", "in", 4)], 1))
