# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Streams of a network: channels to which many layers add and which many read, each time through a norm over all of them.

The width of a transformer is one, and so is that of each stage of a ConvNeXt. All layers, norms and loose parameters
along a stream have its channels, and a channel goes from all of them or from none. It can go while the network is
trained: where the norms, and nothing else, lead out of the stream, a norm over the channels that are kept is all that
is asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from pyro_bmrs.pruning.examples import call, evaluation, results
from pyro_bmrs.pruning.layers import (
    ATTENTION,
    channel_dim,
    is_channelwise,
    kernel_dims,
    layer_kind,
    linear_width,
    normalised_width,
    num_channels,
    num_groups,
)
from pyro_bmrs.pruning.streams.experts import experts_of
from pyro_bmrs.pruning.streams.labels import Labels
from pyro_bmrs.pruning.streams.norms import UnevenGroupNorm
from pyro_bmrs.pruning.streams.operations import memory_of

# Loose parameters with more numbers than this are not followed.
_MOST_LOOSE = 4_000_000


class Side(NamedTuple):
    """
    A side of a module, or a dimension of a loose parameter, that has channels of a stream.

    :param name: the name of the module or parameter.
    :param side: ``"in"``, ``"out"`` or ``"through"`` of a layer or norm; ``"parameter"``.
    :param dim: the dimension of the parameter; of what a norm is given, the one that it is over; else 0.
    """

    name: str
    side: str
    dim: int


class NormPlace(NamedTuple):
    """
    A norm over the channels of a stream.

    :param name: its name.
    :param dim: the dimension of what it is given that has the channels, counted from the end.
    :param units: for each of its channels the unit.
    """

    name: str
    dim: int
    units: tuple[int, ...]


@dataclass(frozen=True)
class Stream:
    """
    Channels that run through a network.

    :param num_units: how many.
    :param units: for each side of what is on their way, the unit of each of its channels; -1 for one of no unit.
    """

    num_units: int
    units: Mapping[Side, Tensor]

    @property
    def norms(self) -> tuple[NormPlace, ...]:
        """The norms over the channels, the first of which numbers them."""
        norms = [side for side in self.units if side.side == "norm"]
        return tuple(NormPlace(side.name, side.dim, tuple(self.units[side].tolist())) for side in norms)

    @property
    def writers(self) -> list[str]:
        """The layers that put the channels out, in the order of their calls."""
        return [side.name for side in self.units if side.side == "out"]

    @property
    def layers(self) -> set[str]:
        """The layers whose outputs are of the channels."""
        return {side.name for side in self.units if side.side in ("out", "through")}


def find_streams(net: nn.Module, example_inputs: Any) -> list[Stream]:
    """
    The streams of a network whose channels can be left out: of all of them the norms alone are read.

    :param net: the network; left as it is.
    :param example_inputs: what it is called with.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.norm, self.up = nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 8)
        ...         self.down, self.last_norm, self.head = nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 1)
        ...     def forward(self, x):
        ...         x = self.embed(x)
        ...         return self.head(self.last_norm(x + self.down(self.up(self.norm(x)).relu())))
        >>> (stream,) = find_streams(Block(), torch.ones(1, 2))
        >>> stream.num_units, [norm.name for norm in stream.norms], stream.writers
        (4, ['norm', 'last_norm'], ['embed', 'down'])
    """
    walk = _Walk(net)
    walk.run(example_inputs)
    return list(walk.streams())


class _Walk:
    """One call of a network, with the labels of the channels of its layers, norms and loose parameters."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._labels = Labels()
        self._next = 1
        # For each side, the labels of its channels, of each call.
        self._sides: dict[Side, list[Tensor]] = defaultdict(list)
        # Linear layers by their weights, which some networks use without a call.
        linear = ((name, part) for name, part in net.named_modules() if linear_width(part))
        self._linear = {memory_of(part.weight): (name, part) for name, part in linear}
        self._labels.is_layer = self._read_by_weight

    def run(self, example_inputs: Any) -> None:
        """Calls the network."""
        parts = dict(self._net.named_modules())
        steps = {name: part for name, part in parts.items() if layer_kind(part) or _is_norm(part) or _is_closed(part)}
        inside = tuple(f"{name}." for name, part in steps.items() if _is_closed(part))
        with evaluation(self._net), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), ExitStack() as stack:
            for name, part in steps.items():
                if not name.startswith(inside):
                    enter, leave = partial(self._enter, name), partial(self._leave, name)
                    stack.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
                    stack.callback(part.register_forward_hook(leave, with_kwargs=True).remove)
            for name, part in parts.items():
                if name not in steps and not name.startswith(inside):
                    self._begin_loose(name, part)
            self._begin_inputs(example_inputs)
            self._labels.first_of_layers = self._next
            stack.enter_context(self._labels)
            output = call(self._net, example_inputs)
        for leaf in tree_leaves(results(output)):
            if torch.is_tensor(leaf):
                self._labels.stick(self._labels.of(leaf), "the network's output")

    def _begin_loose(self, name: str, module: nn.Module) -> None:
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.dim() and tensor.is_floating_point() and tensor.numel() <= _MOST_LOOSE:
                whole = f"{name}.{key}" if name else key
                labels = self._new(tensor.numel()).reshape(tensor.shape)
                self._labels.put(tensor, labels)
                self._sides[Side(whole, "parameter", 0)].append(labels)

    def _begin_inputs(self, example_inputs: Any) -> None:
        """What the network is given is as wide as it is, and what is added to it."""
        for given in tree_leaves(example_inputs):
            if torch.is_tensor(given) and given.is_floating_point():
                label = self._new(1)
                self._labels.begin(given, int(label))
                self._labels.stick(label, "the network's input")

    def _new(self, count: int) -> Tensor:
        self._next += count
        return torch.arange(self._next - count, self._next)

    def _enter(self, name: str, module: Any, args: Any, kwargs: Any) -> None:
        if self._labels.paused == 0:
            for given in (leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)):
                self._read(name, module, given)
        self._labels.paused += 1

    def _read(self, name: str, module: Any, given: Tensor) -> None:
        kind, labels = layer_kind(module), self._labels.of(given)
        has_inputs = kind is None or kind.inputs is not None or is_channelwise(module)
        # An embedding is given numbers of rows, of whatever they are.
        if not has_inputs or not labels.any():
            return
        if _is_closed(module):
            dim, side = given.dim() - 1, "in"
        elif _is_norm(module):
            dim, side = _norm_dim(module, given), "norm"
        else:
            dim, side = channel_dim(module, given), "through" if _is_through(module) else "in"
        rows = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)
        if side == "in" and num_groups(module) > 1:
            self._labels.stick(labels, f"{name}, whose channels are in groups")
        # A layer has one channel for all places.
        channels = rows.abs().amax(1)
        self._labels.tie(channels.unsqueeze(1), rows)
        # What is no sum of norms keeps something of a channel that is left out.
        if side == "in" and (rows > 0).any():
            self._labels.stick(rows[rows > 0], f"{name}, which no norm comes before")
        self._sides[Side(name, side, dim - given.dim() if side == "norm" else 0)].append(channels)

    def _read_by_weight(self, given: Tensor, matrix: Tensor) -> bool:
        name, layer = self._linear.get(memory_of(matrix), ("", None))
        if layer is None or matrix.dim() != 2 or matrix.shape[0] != num_channels(layer, "in"):
            return False
        # As the layer multiplies: by its weight the other way round, if it is not stored like that.
        if (matrix.stride() == layer.weight.stride()) != bool(getattr(layer_kind(layer), "is_transposed", False)):
            return False
        self._read(name, layer, given)
        return True

    def _leave(self, name: str, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        self._labels.paused -= 1
        result = output[0] if isinstance(output, tuple) else output
        if self._labels.paused or not torch.is_tensor(result) or not result.is_floating_point():
            return
        given = args[0] if args else next(iter(kwargs.values()), None)
        if _is_norm(module) or _is_through(module):
            labels = self._labels.of(given).abs() if torch.is_tensor(given) else torch.tensor(0)
            if labels.shape == result.shape:
                self._labels.put(result, -labels if _is_norm(module) else labels)
            return
        count = num_channels(module, "out") or result.shape[-1]
        dim = result.dim() - 1 if _is_closed(module) else result.dim() - 1 - kernel_dims(module)
        side = Side(name, "out", 0)
        channels = self._sides[side][0] if side in self._sides else self._new(count)
        shape = [1] * result.dim()
        shape[dim] = -1
        self._labels.put(result, channels.reshape(shape).expand(result.shape))
        self._sides[side].append(channels)

    def streams(self) -> Iterator[Stream]:
        """The streams that are left when all is followed."""
        parent: dict[int, int] = {}

        def top(label: int) -> int:
            while (above := parent.get(label, label)) != label:
                parent[label] = label = parent.get(above, above)
            return label

        for calls in self._sides.values():
            for other in calls[1:]:
                self._labels.ties.update(
                    (one, two) for one, two in zip(calls[0].tolist(), other.tolist()) if one and two
                )
        self._tie_shared_weights()
        for first, second in self._labels.ties:
            parent[top(second)] = top(first)
        obstacles = {top(label) for label in self._labels.stuck}
        tops = {
            side: torch.tensor([top(label) if label else 0 for label in calls[0].abs().flatten().tolist()])
            for side, calls in self._sides.items()
        }
        members: dict[int, set[Side]] = defaultdict(set)
        for side, channels in tops.items():
            for channel in set(channels.tolist()) - {0}:
                members[channel].add(side)
        groups: dict[frozenset[Side], list[int]] = defaultdict(list)
        for channel, sides in members.items():
            kinds = {side.side for side in sides}
            if channel not in obstacles and {"norm", "out"} <= kinds:
                groups[frozenset(sides)].append(channel)
        for around, numbers in _by_norms(groups):
            stream = self._stream([side for side in tops if side in around], numbers, tops)
            if stream is not None:
                yield stream

    def _tie_shared_weights(self) -> None:
        """Layers that have one weight have one set of channels along each of its dimensions."""
        columns: dict[tuple[int, int], Tensor] = {}
        for side, calls in self._sides.items():
            layer: Any = self._net.get_submodule(side.name) if side.side in ("in", "out") else None
            # A weight that is computed is another tensor each time that it is asked for.
            kind, weight = layer_kind(layer), None if layer is None else layer._parameters.get("weight")
            if kind is not None and weight is not None:
                key = id(weight), int((side.side == "in") != kind.is_transposed)
                self._labels.tie(columns.setdefault(key, calls[0]), calls[0])

    def _stream(self, sides: list[Side], channels: list[int], tops: Mapping[Side, Tensor]) -> Stream | None:
        first = next(side for side in sides if side.side == "norm")
        order = [channel for channel in dict.fromkeys(tops[first].tolist()) if channel in set(channels)]
        numbers = {channel: unit for unit, channel in enumerate(order)}
        units: dict[Side, Tensor] = {}
        for side in sides:
            found = torch.tensor([numbers.get(channel, -1) for channel in tops[side].tolist()])
            if side.side == "parameter":
                divided = _along_one(found.reshape(self._sides[side][0].shape))
                if divided is None:
                    return None
                units[side._replace(dim=divided[0])] = divided[1]
            else:
                units[side] = found
        # A norm over more than the stream is another function without it, and is left.
        if any((units[side] < 0).any() for side in units if side.side == "norm"):
            return None
        return Stream(len(order), units)


def _by_norms(groups: Mapping[frozenset[Side], list[int]]) -> list[tuple[frozenset[Side], list[int]]]:
    """Groups of channels together that come to one norm, as those do that are split between norms."""
    joined: list[tuple[frozenset[Side], list[int]]] = []
    for around, numbers in groups.items():
        norms = {side for side in around if side.side == "norm"}
        met = [group for group in joined if norms & group[0]]
        joined = [group for group in joined if group not in met]
        joined.append((around.union(*(sides for sides, _ in met)), sum((found for _, found in met), []) + numbers))
    return joined


def _along_one(units: Tensor) -> tuple[int, Tensor] | None:
    """The one dimension of a parameter along which its units differ, and these; parts of it may not have been used."""
    for dim in reversed(range(units.dim())):
        rows = units.movedim(dim, 0).reshape(units.shape[dim], -1)
        along = rows.amax(1)
        if ((rows == along.unsqueeze(1)) | (rows < 0)).all():
            return dim, along
    return None


def _is_norm(module: nn.Module) -> bool:
    return normalised_width(module) > 0


def _is_closed(module: nn.Module) -> bool:
    return isinstance(module, ATTENTION) or experts_of(module) is not None


def _is_through(module: nn.Module) -> bool:
    """Whether each channel of a layer's output is of the one in its place."""
    outputs = num_channels(module, "out")
    return is_channelwise(module) or (num_groups(module) > 1 and num_groups(module) == outputs)


def _norm_dim(norm: nn.Module, given: Tensor) -> int:
    """The dimension that a norm is over: the last, or that of the channels of images."""
    width = normalised_width(norm)
    if isinstance(norm, nn.GroupNorm | UnevenGroupNorm):
        return 1
    channels_first = given.dim() > 2 and given.shape[1] == width
    says_first = "2d" in type(norm).__name__ or getattr(norm, "data_format", "") == "channels_first"
    return 1 if channels_first and (says_first or given.shape[-1] != width) else given.dim() - 1
