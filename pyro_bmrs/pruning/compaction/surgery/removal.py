# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Channels that are multiplied by 0, taken out of a network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.compaction.coupling.constants import constant_inputs
from pyro_bmrs.pruning.compaction.coupling.evenness import UNEVEN, equally_many
from pyro_bmrs.pruning.compaction.coupling.rounding import Rounding, merit, spared
from pyro_bmrs.pruning.compaction.coupling.ties import Channel, ChannelTies, TiedChannels, channel_ties
from pyro_bmrs.pruning.compaction.modules.scaling import Scale, scales_of
from pyro_bmrs.pruning.compaction.surgery.attempts import attempt, most_that_work
from pyro_bmrs.pruning.compaction.surgery.divisions import divided_by, resize_divisions
from pyro_bmrs.pruning.examples import Outputs
from pyro_bmrs.pruning.layers import absorb, can_absorb, num_channels, take_out

LAST = "a layer that would vanish keeps its best unit"


def remove_channels(
    net: nn.Module,
    names: Collection[str],
    example_inputs: Any,
    outputs: Outputs,
    importance: Mapping[str, Tensor],
    rounding: Rounding | None = None,
    merits: Mapping[str, Tensor] | None = None,
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
    :param rounding: what sizes are rounded up to; by default they are not.
    :param merits: for the name of each multiplication, which of its elements to rather keep for that; by default those
        that are important.
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
    all_ties = channel_ties(net, example_inputs)
    ties = [tie for tie in all_ties.tied if tie.channels & zeros]
    constants = constant_inputs(net, {name for tie in ties for name in tie.of("in")}, example_inputs)
    obstacles = {tie: tie.obstacle or _obstacle(net, scales, tie, constants) for tie in ties}
    removable = [tie for tie, obstacle in obstacles.items() if obstacle is None]
    along = [name for name in names if scales[name].dim is not None]
    for tie in _needed(net, removable, {name: importance[name] for name in along if name in importance}):
        obstacles[tie] = LAST
    going = {tie for tie in removable if obstacles[tie] is None}
    best = importance if merits is None else merits
    obstacles.update(
        spared(rounding or Rounding(), all_ties.tied, going, {name: best[name] for name in along if name in best})
    )
    # What goes with the same layers works, or fails, together.
    bundles = defaultdict(list)
    for tie, obstacle in obstacles.items():
        if obstacle is None:
            bundles[frozenset(channel.module for channel in tie.channels)].append(tie)
    smaller, failed = _most_removed(net, list(bundles.values()), all_ties, constants, outputs)
    obstacles.update(failed)
    present = {tie: obstacle for tie, obstacle in obstacles.items() if obstacle is not None}
    reasons = {channel: obstacle for tie, obstacle in present.items() for channel in tie.channels & zeros}
    seen = frozenset().union(*(tie.channels for tie in ties))
    return smaller, {**dict.fromkeys(zeros - seen, "no channels are known that belong to them"), **reasons}


def _most_removed(
    net: nn.Module,
    bundles: Sequence[Sequence[TiedChannels]],
    ties: ChannelTies,
    constants: Mapping[str, Tensor],
    outputs: Outputs,
) -> tuple[nn.Module, dict[TiedChannels, str]]:
    """The network without as many bundles of channels as can go, and why each of the others cannot."""

    def removed(chosen: Iterable[Sequence[TiedChannels]], resized: Iterable[Sequence[TiedChannels]] = ()) -> nn.Module:
        together = [*_channels(chosen), *_channels(resized)]
        smaller = _without(net, together, constants)
        resize_divisions(smaller, ties.divisions, set(together), set(_channels(resized)))
        return smaller

    divided = {channel for _, parts in ties.divisions for part in parts for channel in part}
    parted = [place for place, bundle in enumerate(bundles) if divided.intersection(_channels([bundle]))]
    # What goes for all is found at once.
    for resizing in ([], parted) if parted else ():
        others = [bundle for place, bundle in enumerate(bundles) if place not in resizing]
        whole, _ = attempt(partial(removed, others, [bundles[place] for place in resizing]), outputs)
        if whole is not None:
            return whole, {}
    smaller, failed = most_that_work(bundles, removed, outputs)
    gone = [bundle for place, bundle in enumerate(bundles) if place not in failed]
    # Some modules hold the sizes of the parts that they divide channels into: tried where the channels alone do not do.
    again = [place for place in failed if place in parted]
    resized: list[Sequence[TiedChannels]] = []
    if again:
        smaller, failed_again = most_that_work([bundles[place] for place in again], partial(removed, gone), outputs)
        resized = [bundles[place] for number, place in enumerate(again) if number not in failed_again]
        failed = {
            place: f"{reason}{divided_by(ties.divisions, bundles[place])}"
            for place, reason in failed.items()
            if place not in again or again.index(place) in failed_again
        }
    left = {tie: reason for place, reason in failed.items() for tie in bundles[place]}
    # Some networks take the final states of recurrent layers as one tensor.
    even = equally_many(net, left)
    if even:
        chosen = [together for together, _ in even]
        smaller, uneven = most_that_work(chosen, lambda more: removed([*gone, *more], resized), outputs)
        if len(uneven) == len(chosen):  # What gives first states may hold their width.
            smaller, uneven = most_that_work(chosen, lambda more: removed(gone, [*resized, *more]), outputs)
        for place, (together, rest) in enumerate(even):
            if place not in uneven:
                left = {tie: reason for tie, reason in left.items() if tie not in together}
                left.update(dict.fromkeys(rest, UNEVEN))
    return smaller, left


def _channels(bundles: Iterable[Sequence[TiedChannels]]) -> list[Channel]:
    return [channel for bundle in bundles for tie in bundle for channel in tie.channels]


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
    by_layer = defaultdict(set)
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    for tie in removable:
        for channel in tie.channels:
            by_layer[channel.module, channel.side].add(tie)
            sizes[channel.module, channel.side] += 1
    needed: set[TiedChannels] = set()
    for layer, ties in by_layer.items():
        if sizes[layer] == _width(net, *layer) and not ties & needed:
            needed.add(max(ties, key=lambda tie: (merit(tie, merits), sorted(tie.channels))))
    return needed


def _width(net: nn.Module, name: str, side: str) -> int | None:
    """How many channels a layer has on a side, where that is more than one."""
    parent, _, attribute = name.rpartition(".")
    layer = getattr(net.get_submodule(parent), attribute)
    if isinstance(layer, Scale):
        return None if layer.dim is None else len(layer.factor)
    return num_channels(layer, side)


def _without(net: nn.Module, channels: Iterable[Channel], constants: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the network without the channels."""
    net = deepcopy(net)
    gone: dict[str, dict[str, list[int]]] = {side: defaultdict(list) for side in ("in", "out", "through")}
    for channel in channels:
        gone.setdefault(channel.side, defaultdict(list))[channel.module].append(channel.position)
    for name, places in gone["in"].items():
        reader: Any = net.get_submodule(name)
        absorb(reader, places, constants[name])
    with _shared_parameters(net):
        for side, by_name in gone.items():
            for name, places in by_name.items():
                _take_out(net, name, side, places)
    return net


def _take_out(net: nn.Module, name: str, side: str, channels: list[int]) -> None:
    parent, _, attribute = name.rpartition(".")
    owner = net.get_submodule(parent)
    target: Any = getattr(owner, attribute)
    if isinstance(target, Scale):
        target.factor = _rest(target.factor, 0, channels)
    elif isinstance(target, nn.Parameter):
        setattr(owner, attribute, nn.Parameter(_rest(target.detach(), int(side), channels), target.requires_grad))
    elif torch.is_tensor(target):
        setattr(owner, attribute, _rest(target, int(side), channels))
    else:
        take_out(target, side, channels)


def _rest(values: Tensor, dim: int, gone: list[int]) -> Tensor:
    kept = torch.ones(values.shape[dim], dtype=torch.bool)
    kept[gone] = False
    return values.index_select(dim, kept.nonzero().flatten().to(values.device))


@contextmanager
def _shared_parameters(net: nn.Module) -> Iterator[None]:
    """Parameters that several modules share when it begins, they share when it ends, whatever became of each."""
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in net.modules():
        for name, parameter in module._parameters.items():
            places[id(parameter)].append((module, name))
    yield
    for (module, name), *others in places.values():
        for other, other_name in others:
            if module._parameters[name] is not None:
                setattr(other, other_name, module._parameters[name])
