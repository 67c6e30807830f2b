# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Channels that a network ties together, so that they go together or not at all.

A residual sum ties the channels of its summands, a flattening ties the pixels of a channel, and a grouped convolution
ties the channels at the same place of each of its groups. The ties come from the dependency graph of torch-pruning
(G. Fang et al. (2023), *DepGraph: towards any structural pruning*, https://arxiv.org/abs/2301.12900).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.coupling.dependency import dependency_graph, pruning_group
from pyro_bmrs.pruning.compaction.modules.plain import make_plain
from pyro_bmrs.pruning.compaction.modules.scaling import Scale, scale_network, scales_of
from pyro_bmrs.pruning.examples import check_example_inputs
from pyro_bmrs.pruning.layers import can_lose_channels, num_channels, num_groups
from pyro_bmrs.pruning.noise.attachment import detach_noise, noise_sites
from pyro_bmrs.pruning.noise.hooks import noise_hooks_in


class Channel(NamedTuple):
    """
    One channel of a module or of a loose parameter.

    :param module: its name.
    :param side: ``"in"``, ``"out"``, or ``"through"`` for a module that treats each channel by itself.
    :param position: which.
    """

    module: str
    side: str
    position: int


class _Dependent(NamedTuple):
    """
    What has channels that go with elements of a multiplication.

    :param name: its name; empty for the network's output.
    :param target: the module, parameter or output.
    :param side: the side of it that the channels are on.
    :param pairs: the channel and the element that go together.
    """

    name: str
    target: Any
    side: str
    pairs: list[tuple[int, int]]


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


def coupled_units(net: nn.Module, example_inputs: Any) -> list[list[tuple[str, int]]]:
    """
    Units of a network's noise that can only be taken out together.

    :param net: a network with noise attached; left as it is.
    :param example_inputs: what it is called with: a tensor, a sequence of positional arguments, or a mapping of keyword
        arguments.
    :return: groups of two units or more, each unit as the name of its site and its number. A unit in no group is tied
        to none. Heads and blocks are in no group.
    :raises ReductionError: for example inputs that do not fit the network, or one that torch-pruning cannot follow.
    :raises ImportError: without torch-pruning.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import attach_noise, coupled_units
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 3, 1))
        >>> coupled_units(attach_noise(net, "0"), torch.ones(1, 1, 2, 2))
        [[('0', 0), ('0', 2)], [('0', 1), ('0', 3)]]
    """
    sites = {name: site for name, site in noise_sites(net).items() if site.kind == "units"}
    plain = deepcopy(net)
    if any(noise_hooks_in(plain)):
        detach_noise(plain)
    check_example_inputs(plain, example_inputs)
    make_plain(plain)
    like = next(plain.parameters())
    scales = scale_network(plain, {name: like.new_ones(site.noise.num_units) for name, site in sites.items()}, sites)
    places = {module: name for name, module in plain.named_modules()}
    site_at = {places[scale]: name for name, scale in scales.items()}
    ties = _Ties()
    for tied in tied_channels(plain, example_inputs):
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


def tied_channels(net: nn.Module, example_inputs: Any) -> list[TiedChannels]:
    """
    All channels that pass through the multiplications of a network, by their ties.

    :param net: the network; left as it is.
    :param example_inputs: what it is called with.
    :raises ReductionError: for a network that torch-pruning cannot follow.
    """
    net = deepcopy(net)
    graph = dependency_graph(net, example_inputs)
    modules: dict[str, nn.Module] = dict(net.named_modules())
    ties = _Ties()
    obstacles: dict[Channel, str] = {}
    for scale_name, scale in scales_of(net).items():
        if scale.dim is None or scale not in graph.module2node:
            continue
        dependents, failure = _known_dependents(graph, net, scale)
        for element in range(len(scale.factor)) if failure else ():
            channel = Channel(scale_name, "through", element)
            ties.tie(channel, channel)
            obstacles[channel] = f"torch-pruning cannot follow them: {failure}"
        for name, target, side, pairs in dependents:
            for index, element in pairs:
                channel = Channel(name, side, index)
                ties.tie(Channel(scale_name, "through", element), channel)
                if not _can_lose_channels(target, side):
                    obstacles[channel] = f"{name or 'the output'} ({type(target).__name__}) needs all its channels"
    for channel in list(ties.members):
        layer = modules.get(channel.module)
        width, groups = num_channels(layer, channel.side), num_groups(layer)
        if width is not None and groups > 1 and channel.side != "through":
            size = width // groups
            for first in range(0, width, size):
                ties.tie(channel, channel._replace(position=first + channel.position % size))
    return [
        TiedChannels(frozenset(channels), next((obstacles[c] for c in sorted(channels) if c in obstacles), None))
        for channels in ties.groups()
    ]


def _can_lose_channels(target: Any, side: str) -> bool:
    # torch-pruning takes a convolution for a depthwise one by the number of its outputs alone; it is asked for here.
    is_other = isinstance(target, nn.Parameter) if side == "out" else isinstance(target, nn.Parameter | Scale)
    return can_lose_channels(target, side) or (is_other and side != "in")


def _known_dependents(graph: Any, net: nn.Module, scale: Scale) -> tuple[list[_Dependent], str]:
    """What has channels that go with elements of a multiplication; none, and why, if torch-pruning loses its way."""
    try:
        dependents = list(_dependents(graph, net, scale))
    except ReductionError as error:
        return [], str(error)
    except Exception as error:  # of torch-pruning, on operations that it does not know
        return [], repr(error)
    for name, target, side, pairs in dependents:
        size, last = _num_channels(target, side), max((index for index, _ in pairs), default=0)
        if size is not None and last >= size:
            return [], f"it counts {last + 1} channels of {name}, which has {size}"
    return dependents, ""


def _num_channels(target: Any, side: str) -> int | None:
    if isinstance(target, Scale):
        return None if target.dim is None else len(target.factor)
    return num_channels(target, side)


def _dependents(graph: Any, net: nn.Module, scale: Scale) -> Iterator[_Dependent]:
    names: dict[Any, str] = {module: name for name, module in net.named_modules()}
    names.update((parameter, name) for name, parameter in net.named_parameters())
    left = set(range(len(scale.factor)))
    while left:
        group = _complete_group(graph, scale, sorted(left))
        for item in group:
            target = item.dep.target.module
            if target in names or type(target).__name__ == "_OutputOp":
                out = graph.is_out_channel_pruning_fn(item.dep.handler)
                into = graph.is_in_channel_pruning_fn(item.dep.handler)
                side = "through" if out and into else "in" if into else "out"
                yield _Dependent(names.get(target, ""), target, side, list(zip(item.idxs, item.root_idxs)))
            if target is scale:
                left -= set(item.idxs)


def _complete_group(graph: Any, scale: Scale, elements: list[int]) -> Any:
    """
    What goes with some of a multiplication's elements, each of them listed with all that goes with it.

    torch-pruning lists a channel with only the first of the elements that it goes with: begin with those alone.
    """
    while True:
        group = pruning_group(graph, scale, elements)
        first = min((set(item.root_idxs) for item in group), key=len)
        if len(first) == len(elements):
            return group
        elements = sorted(first)


class _Ties:
    """Disjoint sets, grown by ties."""

    def __init__(self) -> None:
        self.members: dict[Channel, Channel] = {}

    def _representative(self, channel: Channel) -> Channel:
        parent = self.members.setdefault(channel, channel)
        while parent != channel:
            grandparent = self.members[parent]
            self.members[channel] = grandparent
            channel, parent = parent, grandparent
        return channel

    def tie(self, channel: Channel, other: Channel) -> None:
        self.members[self._representative(other)] = self._representative(channel)

    def groups(self) -> list[set[Channel]]:
        groups = defaultdict(set)
        for channel in self.members:
            groups[self._representative(channel)].add(channel)
        return list(groups.values())
