# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Channels that a network ties together, so that they go together or not at all.

A residual sum ties the channels of its summands, a flattening ties the pixels of a channel, and a grouped convolution
ties the channels at the same place of each of its groups. What has to go together is a graph of dependencies, as in
G. Fang et al. (2023), *DepGraph: towards any structural pruning*, https://arxiv.org/abs/2301.12900. Here it is of
single channels, found by following the elements of tensors, so that it holds of whatever a network does with them: it
may split, shuffle, reshape and join them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.compaction.coupling.flow import ChannelFlow
from pyro_bmrs.pruning.compaction.modules.plain import make_plain
from pyro_bmrs.pruning.compaction.modules.scaling import scale_network, scales_of
from pyro_bmrs.pruning.examples import (
    check_example_inputs,
    copy_network,
    evaluation,
    failure_in_training,
    paths_of_training,
    real_parameter,
)
from pyro_bmrs.pruning.layers import channel_dims, num_groups
from pyro_bmrs.pruning.noise.attachment import detach_noise, noise_sites
from pyro_bmrs.pruning.noise.hooks import noise_hooks_in


class Channel(NamedTuple):
    """
    One channel of a module or of a loose parameter.

    :param module: its name.
    :param side: ``"in"``, ``"out"``, or ``"through"`` for a module that treats each channel by itself; of a parameter
        the dimension.
    :param position: which.
    """

    module: str
    side: str
    position: int


@dataclass(frozen=True)
class TiedChannels:
    """
    Channels that go together or not at all.

    :param channels: which.
    :param obstacle: why they cannot go, if they cannot.
    """

    channels: frozenset[Channel]
    obstacle: str | None = None

    def of(self, side: str) -> dict[str, list[int]]:
        """For each module, its channels on one side, ascending."""
        positions: dict[str, list[int]] = defaultdict(list)
        for channel in sorted(self.channels):
            if channel.side == side:
                positions[channel.module].append(channel.position)
        return dict(positions)


@dataclass(frozen=True)
class ChannelTies:
    """
    The ties in a network.

    :param tied: all channels that pass through its multiplications.
    :param divisions: where channels are divided into parts, in the forward of which module, and the channels of each.
    """

    tied: list[TiedChannels]
    divisions: list[tuple[str, list[list[Channel]]]]


def coupled_units(net: nn.Module, example_inputs: Any) -> list[list[tuple[str, int]]]:
    """
    Units of a network's noise that can only be taken out together.

    :param net: a network with noise attached; left as it is.
    :param example_inputs: what it is called with: a tensor, a sequence of positional arguments, or a mapping of keyword
        arguments.
    :return: groups of two units or more, each unit as the name of its site and its number. A unit in no group is tied
        to none. Heads and blocks are in no group.
    :raises ReductionError: for example inputs that do not fit the network.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import attach_noise, coupled_units
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 3, 1))
        >>> coupled_units(attach_noise(net, "0"), torch.ones(1, 1, 2, 2))
        [[('0', 0), ('0', 2)], [('0', 1), ('0', 3)]]
    """
    sites = {name: site for name, site in noise_sites(net).items() if site.kind == "units"}
    plain = copy_network(net)
    if any(noise_hooks_in(plain)):
        detach_noise(plain)
    check_example_inputs(plain, example_inputs)
    make_plain(plain)
    like = real_parameter(plain)
    scales = scale_network(plain, {name: like.new_ones(site.noise.num_units) for name, site in sites.items()}, sites)
    places = {module: name for name, module in plain.named_modules()}
    site_at = {places[scale]: name for name, scale in scales.items()}
    ties: _Sets[Channel] = _Sets()
    for tied in channel_ties(plain, example_inputs).tied:
        units = [
            Channel(
                site_at[channel.module], "through", channel.position // sites[site_at[channel.module]].noise.unit_size
            )
            for channel in sorted(tied.channels)
            if channel.module in site_at
        ]
        for unit in units:
            ties.tie(units[0], unit)
    groups = [sorted((channel.module, channel.position) for channel in group) for group in ties.groups()]
    return [group for group in groups if len(group) > 1]


def channel_ties(net: nn.Module, example_inputs: Any) -> ChannelTies:
    """
    Which channels a network ties.

    :param net: the network; left as it is.
    :param example_inputs: what it is called with.
    """
    net = deepcopy(net)
    flow = ChannelFlow(net)
    with evaluation(net):
        flow.follow(example_inputs)
    if flow.missed and failure_in_training(net, example_inputs) is None:
        with paths_of_training(net):
            flow.follow(example_inputs)
    sets: _Sets[int] = _Sets()
    for number in range(flow.size):
        sets.tie(number, number)
    pairs = [*flow.pairs, *_groups(flow, net), *_shared(flow, net)]
    # What happens in each step of a loop ties the same.
    for one, other in torch.cat(pairs).unique(dim=0).tolist() if pairs else ():
        sets.tie(one, other)
    for one, other in _divided(flow, sets):
        sets.tie(one, other)
    begins = sorted((begin, *place) for place, (begin, _) in flow.begins.items())
    firsts = [begin for begin, _, _ in begins]

    def channel(number: int) -> Channel:
        begin, name, side = begins[bisect_right(firsts, number) - 1]
        return Channel(name, side, number - begin)

    scales = scales_of(net)
    tied = []
    for group in sets.groups():
        channels = frozenset(map(channel, group))
        if any(channel.module in scales for channel in channels):
            obstacle = next((flow.obstacles[number] for number in sorted(group) if number in flow.obstacles), None)
            tied.append(TiedChannels(channels, obstacle))
    divisions = [
        (module, [[channel(number) for number in part if number >= 0] for part in parts])
        for module, parts in flow.divisions
    ]
    return ChannelTies(tied, divisions)


def _groups(flow: ChannelFlow, net: nn.Module) -> Iterator[Tensor]:
    """Ties of the channels at the same place of each group of a layer."""
    for (name, side), (begin, size) in flow.begins.items():
        groups = num_groups(net.get_submodule(name)) if side in ("in", "out") else 1
        numbers = torch.arange(begin, begin + size).reshape(groups, -1)
        yield from (torch.stack([numbers[0], other], 1) for other in numbers[1:])


def _shared(flow: ChannelFlow, net: nn.Module) -> Iterator[Tensor]:
    """Ties of the channels of layers that share a parameter, which is an embedding's and the last layer's, say."""
    first: dict[tuple[int, int], Tensor] = {}
    for (name, side), (begin, size) in flow.begins.items():
        numbers = torch.arange(begin, begin + size)
        for parameter, dim in _counted(net, name, side, size):
            other = first.setdefault((id(parameter), dim), numbers)
            if other is not numbers and len(other) == size:
                yield torch.stack([other, numbers], 1)


def _counted(net: nn.Module, name: str, side: str, size: int) -> Iterable[tuple[Tensor, int]]:
    """The parameters of a layer one of whose dimensions counts its channels on a side, and which does."""
    if side.isdigit():
        owner, _, attribute = name.rpartition(".")
        return [(getattr(net.get_submodule(owner), attribute), int(side))]
    layer = net.get_submodule(name)
    dims = channel_dims(layer, side, size)
    parameters = dict(layer.named_parameters(recurse=False))
    return [(parameters[key], dim) for key, dim in dims.items() if key in parameters]


def _divided(flow: ChannelFlow, sets: _Sets[int]) -> Iterator[tuple[int, int]]:
    """
    Ties of channels that are divided into parts of one size.

    Where each part is of channels that go together, it can go as a whole. Otherwise the same goes of each part, which
    leaves parts of one size.
    """
    for _, rows in flow.divisions:
        is_even = len({len(row) for row in rows}) == 1 and all(number >= 0 for row in rows for number in row)
        if not is_even or all(len({sets.representative(number) for number in row}) == 1 for row in rows):
            continue
        for row in rows[1:]:
            yield from zip(rows[0], row)


Member = TypeVar("Member", bound=Hashable)


class _Sets(Generic[Member]):
    """Disjoint sets, grown by ties."""

    def __init__(self) -> None:
        self._parents: dict[Member, Member] = {}

    def representative(self, member: Member) -> Member:
        parent = self._parents.setdefault(member, member)
        while parent != member:
            grandparent = self._parents[parent]
            self._parents[member] = grandparent
            member, parent = parent, grandparent
        return member

    def tie(self, member: Member, other: Member) -> None:
        self._parents[self.representative(other)] = self.representative(member)

    def groups(self) -> list[list[Member]]:
        groups: dict[Member, list[Member]] = defaultdict(list)
        for member in self._parents:
            groups[self.representative(member)].append(member)
        return list(groups.values())
