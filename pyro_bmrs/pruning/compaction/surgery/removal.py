# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Channels that are multiplied by 0, taken out of a network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.coupling.constants import constant_inputs
from pyro_bmrs.pruning.compaction.coupling.dependency import dependency_graph, pruning_group
from pyro_bmrs.pruning.compaction.coupling.ties import Channel, TiedChannels, tied_channels
from pyro_bmrs.pruning.compaction.modules.scaling import Scale, scales_of
from pyro_bmrs.pruning.compaction.surgery.attempts import most_that_work
from pyro_bmrs.pruning.examples import Outputs
from pyro_bmrs.pruning.layers import absorb, can_absorb, num_channels

LAST = "a layer that would vanish keeps its best unit"


def remove_channels(
    net: nn.Module, names: Collection[str], example_inputs: Any, outputs: Outputs, importance: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[Channel, str]]:
    """
    Takes out of a network what its multiplications by 0 make useless.

    Channels that the network ties together are taken out where each layer behind them is given 0 by them, or a constant
    that its bias can take over, whatever the network's input is.

    :param net: a network with multiplications; left as it is.
    :param names: those of the multiplications to look at.
    :param example_inputs: what the network is called with.
    :param outputs: its outputs, which do not change.
    :param importance: for the name of each multiplication, which of its elements to rather keep in a layer that would
        otherwise vanish.
    :return: the smaller network, and why elements of multiplications by 0 are still there.
    """
    scales = scales_of(net)
    zeros = {
        Channel(name, "through", element)
        for name in names
        for element in (scales[name].factor == 0).nonzero().flatten().tolist()
    }
    if not zeros:
        return net, {}
    try:
        ties = [tie for tie in tied_channels(net, example_inputs) if tie.channels & zeros]
    except ReductionError as error:
        return net, dict.fromkeys(zeros, str(error))
    constants = constant_inputs(net, {name for tie in ties for name in tie.of("in")}, example_inputs)
    obstacles = {tie: tie.obstacle or _obstacle(net, scales, tie, constants) for tie in ties}
    removable = [tie for tie, obstacle in obstacles.items() if obstacle is None]
    merits = {name: importance[name] for name in names if name in importance and scales[name].dim is not None}
    for tie in _needed(net, removable, merits):
        obstacles[tie] = LAST
    # What goes with the same layers works, or fails, together.
    bundles = defaultdict(list)
    for tie, obstacle in obstacles.items():
        if obstacle is None:
            bundles[frozenset(channel.module for channel in tie.channels)].append(tie)

    def removed(chosen: Iterable[Sequence[TiedChannels]]) -> nn.Module:
        return _without(net, [tie for bundle in chosen for tie in bundle], constants, example_inputs)

    smaller, failed = most_that_work(list(bundles.values()), removed, outputs)
    obstacles.update((tie, failed[place]) for place in failed for tie in list(bundles.values())[place])
    present = {tie: obstacle for tie, obstacle in obstacles.items() if obstacle is not None}
    reasons = {channel: obstacle for tie, obstacle in present.items() for channel in tie.channels & zeros}
    seen = frozenset().union(*(tie.channels for tie in ties))
    return smaller, {**dict.fromkeys(zeros - seen, "no channels are known that belong to them"), **reasons}


def _obstacle(
    net: nn.Module, scales: Mapping[str, Scale], tie: TiedChannels, constants: Mapping[str, Tensor]
) -> str | None:
    """Why tied channels cannot be taken out, if they cannot."""
    through = {name: channels for name, channels in tie.of("through").items() if name in scales}
    kept = any(
        scales[name].factor[channels].any() for name, channels in through.items() if scales[name].dim is not None
    )
    for name, channels in tie.of("in").items():
        values = constants[name][channels] if name in constants else torch.tensor(torch.nan)
        if values.isnan().any():
            return (
                "they are tied to channels that are kept" if kept else f"more than they reaches {name} in their place"
            )
        if values.any() and not can_absorb(net.get_submodule(name)):
            return f"{name} is given a constant by them, which its bias cannot take over where it pads with zeros"
    return None


def _needed(net: nn.Module, removable: Sequence[TiedChannels], merits: Mapping[str, Tensor]) -> set[TiedChannels]:
    """Channels to keep so that each layer keeps one."""

    def merit(tie: TiedChannels) -> float:
        through = tie.of("through").items()
        return sum(merits[name][channels].sum().item() for name, channels in through if name in merits)

    by_layer = defaultdict(set)
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    for tie in removable:
        for channel in tie.channels:
            by_layer[channel.module, channel.side].add(tie)
            sizes[channel.module, channel.side] += 1
    needed: set[TiedChannels] = set()
    for layer, ties in by_layer.items():
        if sizes[layer] == _width(net, *layer) and not ties & needed:
            needed.add(max(ties, key=lambda tie: (merit(tie), sorted(tie.channels))))
    return needed


def _width(net: nn.Module, name: str, side: str) -> int | None:
    """How many channels a layer has on a side, where that is more than one."""
    parent, _, attribute = name.rpartition(".")
    layer = getattr(net.get_submodule(parent), attribute)
    if isinstance(layer, Scale):
        return None if layer.dim is None else len(layer.factor)
    return num_channels(layer, side)


def _without(
    net: nn.Module, ties: Collection[TiedChannels], constants: Mapping[str, Tensor], example_inputs: Any
) -> nn.Module:
    """A copy of the network without the channels."""
    net = deepcopy(net)
    if not ties:
        return net
    absorbed: dict[str, list[int]] = defaultdict(list)
    for tie in ties:
        for name, channels in tie.of("in").items():
            absorbed[name] += channels
    for name, channels in absorbed.items():
        reader: Any = net.get_submodule(name)
        absorb(reader, channels, constants[name])

    # Each of the ties goes with the first of its multiplications. Elements move up as those before them go.
    scales = scales_of(net)
    elements = {scale: torch.arange(len(scale.factor)) for scale in scales.values()}
    roots: dict[Scale, list[int]] = defaultdict(list)
    for tie in ties:
        name, channels = min((name, channels) for name, channels in tie.of("through").items() if name in scales)
        roots[scales[name]] += channels
    graph = dependency_graph(net, example_inputs)
    for scale, channels in roots.items():
        places = torch.searchsorted(elements[scale], torch.tensor(sorted(channels))).tolist()
        group = pruning_group(graph, scale, places)
        for dependency, indices in group:
            other = dependency.target.module
            if isinstance(other, Scale) and other.dim is not None:
                kept = torch.ones_like(elements[other], dtype=torch.bool)
                kept[indices] = False
                elements[other] = elements[other][kept]
        group.prune()
    return net
