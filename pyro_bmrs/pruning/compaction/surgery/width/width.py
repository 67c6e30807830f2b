# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Channels of a network's streams that are pruned, taken out of all that is on their way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.coupling.rounding import Rounding
from pyro_bmrs.pruning.compaction.modules.gated_norm import GatedNorm
from pyro_bmrs.pruning.compaction.modules.scaling import Scale, Scaled, substitute
from pyro_bmrs.pruning.compaction.surgery.attempts import most_that_work
from pyro_bmrs.pruning.compaction.surgery.removal import LAST
from pyro_bmrs.pruning.compaction.surgery.width.filling import fill, fillers
from pyro_bmrs.pruning.examples import Outputs
from pyro_bmrs.pruning.layers import layer_kind, num_groups, take_out, weight_rows
from pyro_bmrs.pruning.noise.attachment import NoiseSite
from pyro_bmrs.pruning.streams.experts import experts_of, take_out_of_experts
from pyro_bmrs.pruning.streams.norms import narrow
from pyro_bmrs.pruning.streams.streams import Side, Stream, find_streams

# Attributes in which networks hold their width.
_WIDTHS = frozenset(
    "hidden_dim hidden_size embed_dim embed_dims d_model model_dim dim width num_features n_embd input_size "
    "q_lora_rank kv_lora_rank".split()
)


def gate_norms(net: nn.Module, gates: Mapping[str, Tensor], sites: Mapping[str, NoiseSite]) -> None:
    """
    Puts norms over the channels that are kept where noise on a width acts, in place.

    :param net: a network without noise.
    :param gates: for each site the factors of its units, 0 for those that are pruned.
    :param sites: the sites, of widths.
    """
    for name, site in sites.items():
        for norm in site.norms:
            old = net.get_submodule(norm.name)
            units = torch.tensor(norm.units, device=gates[name].device)
            substitute(net, old, GatedNorm(old, gates[name][units], norm.dim))


class WithoutWidth(NamedTuple):
    """
    A network without some channels of its streams.

    :param net: the network, with all other multiplications.
    :param gone: for each site which units are gone.
    :param left: for sites whose pruned units are still there, or some of them, why.
    """

    net: nn.Module
    gone: dict[str, Tensor]
    left: dict[str, str]


class _Way(NamedTuple):
    """
    How channels of a stream are taken out.

    :param is_filled: whether some of those that are pruned stay, and hold what the norms take from the others.
    :param is_counted: whether attributes that are the number of channels are told that they are fewer.
    :param is_whole: whether all of them stay like that.
    """

    is_filled: bool = False
    is_counted: bool = False
    is_whole: bool = False


# Some networks hold their width as an attribute: tried where it is not seen from what there is. Where all channels
# have to stay, norms that are as they were are faster than such that leave some out.
_WAYS = [
    *(_Way(is_filled=filled, is_counted=counted) for filled in (True, False) for counted in (False, True)),
    _Way(is_whole=True),
]


@dataclass(frozen=True)
class Widths:
    """
    A network with streams of which some channels are pruned.

    :param net: the network, without noise and multiplications; left as it is.
    :param gates: for each site the factors of its units, 0 for those that are pruned.
    :param sites: the sites, of widths.
    :param example_inputs: what the network is called with.
    :param outputs: what it computes with all multiplications.
    :param importance: for each site, which of its units to rather keep if none would be left.
    :param merits: for each site, which of its units to rather keep where sizes are rounded up.
    :param finish: puts all other multiplications into a network.
    """

    net: nn.Module
    gates: Mapping[str, Tensor]
    sites: Mapping[str, NoiseSite]
    example_inputs: Any
    outputs: Outputs
    importance: Mapping[str, Tensor]
    merits: Mapping[str, Tensor]
    finish: Callable[[nn.Module], None]

    @cached_property
    def _streams(self) -> dict[str, Stream]:
        found = find_streams(deepcopy(self.net), self.example_inputs) if self.sites else []
        by_site = ((name, [s for s in found if s.norms == site.norms]) for name, site in self.sites.items())
        return {name: own[0] for name, own in by_site if own}

    def removed(self, rounding: Rounding) -> WithoutWidth:
        """
        Takes channels of streams out of the network, and multiplies what their norms put out.

        :param rounding: what sizes are rounded up to, by channels that say nothing.
        """
        if not self.sites:
            smaller = deepcopy(self.net)
            self.finish(smaller)
            return WithoutWidth(smaller, {}, {})
        left = dict.fromkeys(
            self.sites.keys() - self._streams.keys(),
            "on these inputs the network does not use the norms as it did when noise was attached",
        )
        gone: dict[str, Tensor] = {}
        back: dict[str, Tensor] = {}
        reasons: dict[str, str] = {}
        for name in self.sites:
            gone[name] = self.gates[name] == 0
            if gone[name].all():
                gone[name][self.importance[name].argmax()] = False
                left[name] = LAST
            elif name in self._streams:
                back[name], reasons[name] = fillers(rounding, self._streams[name], gone[name], self.merits[name])
        ways: dict[str, _Way] = {}
        failed: dict[str, str] = {}
        smaller = self._without(gone, back, {})
        for way in _WAYS:
            chosen = [name for name in self._streams if name not in ways and _is_for(way, back.get(name))]
            if chosen:

                def build(names: Sequence[str], way: _Way = way, ways: Mapping[str, _Way] = ways) -> nn.Module:
                    return self._without(gone, back, {**ways, **dict.fromkeys(names, way)})

                smaller, lost = most_that_work(chosen, build, self.outputs)
                for place, name in enumerate(chosen):
                    if place not in lost:
                        ways[name] = way
                    elif not way.is_whole:
                        failed[name] = lost[place]
        for name, site_gone in gone.items():
            way = ways.get(name, _Way(is_whole=True))
            if way.is_filled:
                gone[name] = site_gone & ~back[name]
                left[name] = reasons[name]
            elif way.is_whole:
                gone[name] = torch.zeros_like(site_gone)
                left.setdefault(name, failed.get(name, ""))
        return WithoutWidth(smaller, gone, left)

    def _without(self, gone: Mapping[str, Tensor], back: Mapping[str, Tensor], ways: Mapping[str, _Way]) -> nn.Module:
        """The network with some of its streams smaller, each in its way."""
        smaller = deepcopy(self.net)
        for name, way in ways.items():
            stream, out, gates = self._streams[name], gone[name], self.gates[name]
            if way.is_filled or way.is_whole:
                staying = back[name] if way.is_filled else out
                gates = gates * fill(smaller, stream, ~out, staying).to(gates)
                out = out & ~staying
            _remove(smaller, stream, out, gates)
            if way.is_counted:
                _count_width(smaller, stream, out)
        gate_norms(smaller, self.gates, {name: site for name, site in self.sites.items() if name not in ways})
        self.finish(smaller)
        return smaller


def _is_for(way: _Way, back: Tensor | None) -> bool:
    """Whether a way is one for a stream of which these come back; None for one of which no others could."""
    if back is None:
        return not (way.is_filled or way.is_whole)
    return not way.is_filled or bool(back.any())


def _remove(net: nn.Module, stream: Stream, gone: Tensor, gates: Tensor) -> None:
    """Takes channels out, in place."""
    shared = _shared_parameters(net)
    for side, units in stream.units.items():
        units = units.to(gone.device)
        is_gone = gone[units] & (units >= 0)
        if side.side == "norm":
            kept = (~is_gone).nonzero().flatten()
            norm = net.get_submodule(side.name)
            substitute(net, norm, _narrowed(side, norm, kept, gates[units[kept]]))
        elif is_gone.any():
            _take(net, side, is_gone.nonzero().flatten().tolist())
    for old, places in shared:
        _share_again(old, places)


def _narrowed(side: Side, norm: nn.Module, kept: Tensor, factors: Tensor) -> nn.Module:
    """A norm over the channels that are kept, multiplied: by its own parameters, or else behind it."""
    small = narrow(norm, kept, factors, side.dim)
    if small is not None:
        return small
    small = narrow(norm, kept, torch.ones_like(factors), side.dim)
    if small is None:
        raise ReductionError(f"{side.name} is no norm that can be over fewer channels")
    return Scaled(small, Scale(factors, side.dim), "output")


def _count_width(net: nn.Module, stream: Stream, gone: Tensor) -> None:
    """Tells modules that hold the number of channels that they are fewer."""
    before, after = len(gone), len(gone) - int(gone.sum())
    loose = {side.name.rpartition(".")[0] for side in stream.units if side.side == "parameter"}
    for name, module in net.named_modules():
        # By any name where a parameter has the channels, as what it is multiplied with may be reshaped.
        keys = vars(module).keys() if name in loose else _WIDTHS & vars(module).keys()
        for key in list(keys) if layer_kind(module) is None else ():
            if not key.startswith("_"):
                setattr(module, key, _counted(vars(module)[key], before, after))


def _counted(value: Any, before: int, after: int) -> Any:
    if type(value) is int:
        return after if value == before else value
    if isinstance(value, tuple | list) and all(type(size) is int for size in value):
        return type(value)(_counted(size, before, after) for size in value)
    return value


def _take(net: nn.Module, side: Side, channels: Sequence[int]) -> None:
    if side.side == "parameter":
        parent, _, name = side.name.rpartition(".")
        module = net.get_submodule(parent)
        tensor = getattr(module, name)
        kept = torch.ones(tensor.shape[side.dim], dtype=torch.bool, device=tensor.device)
        kept[list(channels)] = False
        values = tensor.detach().index_select(side.dim, kept.nonzero().flatten())
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(module, name, nn.Parameter(values, tensor.requires_grad) if is_parameter else values)
        return
    layer: Any = net.get_submodule(side.name)
    if experts_of(layer) is not None:
        take_out_of_experts(layer, side.side, channels)
        return
    take_out(layer, side.side, channels)
    kind = layer_kind(layer)
    if side.side == "through" and kind is not None and kind.groups is not None:
        # Each channel is a group.
        setattr(layer, kind.groups, getattr(layer, str(kind.outputs)))


def _shared_parameters(net: nn.Module) -> list[tuple[nn.Parameter, list[tuple[Any, str]]]]:
    """Parameters that are at several places, as the weights of an embedding and of a head, with these."""
    places: dict[nn.Parameter, list[tuple[Any, str]]] = defaultdict(list)
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places[parameter].append((module, name))
    return [(parameter, found) for parameter, found in places.items() if len(found) > 1]


def _share_again(old: nn.Parameter, places: Sequence[tuple[Any, str]]) -> None:
    """Puts what has become of a shared parameter at each of its places, called in this network or not."""
    changed = [(module, name) for module, name in places if getattr(module, name) is not old]
    for module, name in places if changed else ():
        source, its = changed[0]
        setattr(module, name, getattr(source, its))
        kind = layer_kind(module)
        for side, count in (("in", kind and kind.inputs), ("out", kind and kind.outputs)):
            if count in vars(module):
                rows = weight_rows(module)
                setattr(module, str(count), rows.shape[0] if side == "out" else rows.shape[1] * num_groups(module))
