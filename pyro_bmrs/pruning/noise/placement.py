# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Where noise can go in a network: found by following each layer's output through the network's graph.

The graph is traced symbolically (:mod:`torch.fx`), without an input. A network whose forward cannot be traced is read
part by part; of what cannot be traced at all, each layer's own output is the place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import fx, nn

from pyro_bmrs.pruning.examples import copy_network
from pyro_bmrs.pruning.layers import (
    ACTIVATION_NAMES,
    ATTENTION,
    PASSIVE,
    PASSIVE_NAMES,
    POOLINGS,
    TRANSFORMER_LAYERS,
    has_channels_in_columns,
    is_channelwise,
    kernel_dims,
    layer_units,
    linear_width,
    normalised_width,
    unit_dim,
)
from pyro_bmrs.pruning.noise.graph import Flow, called_name, flows_of, is_flattening, is_linear, is_sum
from pyro_bmrs.pruning.noise.recognition.activations import is_activation
from pyro_bmrs.pruning.noise.recognition.attentions import Heads, attention_of, recognised_heads
from pyro_bmrs.pruning.noise.recognition.calls_by_weight import call_by_weight, uncalled
from pyro_bmrs.pruning.noise.recognition.embeddings import read_embeddings
from pyro_bmrs.pruning.noise.recognition.gates import is_by_number, is_open_at_zero, reader_of_halves, reader_of_product
from pyro_bmrs.pruning.noise.recognition.norms import behind_sum, comes_to_norm, is_over_units
from pyro_bmrs.pruning.noise.recognition.recurrences import CELLS, Part, is_recurrent, parts_of
from pyro_bmrs.pruning.streams.experts import experts_of, is_router, num_hidden
from pyro_bmrs.pruning.streams.streams import NormPlace, Stream, find_streams

# What moves channels, or combines them one by one, so that those of a convolution can be followed through it.
_FOLLOWED = (nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.GLU, nn.Unflatten)
_FOLLOWED_NAMES = frozenset(
    "add sub mul cat concat concatenate chunk split tensor_split getitem glu pixel_shuffle pixel_unshuffle "
    "channel_shuffle".split()
)


@dataclass(frozen=True)
class Placement:
    """
    A place where noise can go; the fields of :class:`~pyro_bmrs.pruning.NoiseSite`, and the shape of the noise.

    :param is_default: whether to use it where the user names no layers: its units can be followed to the next layer.
    """

    name: str
    module: str
    place: str
    when: str
    kind: str
    num_units: int
    dim: int | None
    unit_size: int = 1
    is_default: bool = True
    norms: tuple[NormPlace, ...] = ()
    part: Part | None = None


def find_placements(
    net: nn.Module, kinds: Collection[str], heads: Mapping[str, int], example_inputs: Any = None
) -> list[Placement]:
    """
    All the places for noise in a network, in the order of its modules.

    :param net: the network.
    :param kinds: the kinds of units asked for.
    :param heads: for output projections of attentions that are not recognised, the number of heads.
    :param example_inputs: what the network is called with, to follow its streams.
    """
    # What its forward stores in it is something symbolic while it is traced.
    net = copy_network(net)
    call_by_weight(net)
    streams = find_streams(copy_network(net), example_inputs) if "width" in kinds else []
    modules = dict(net.named_modules())
    recognised = [attention for attention in recognised_heads(modules) if attention.output not in heads]
    flows = flows_of(net, [modules[attention.attention] for attention in recognised])
    known = {name for attention in recognised for name in (*attention.projections, attention.output)}
    units = [*_units(net, modules, flows), *_transformer_units(modules), *_recurrent_units(net, modules, flows)]
    units += [Placement(name, name, name, "output", "units", n, -1) for name, n in read_embeddings(modules, flows)]
    # Of the layers of an attention, only heads can be taken out, and what is of a stream has its noise there.
    known |= {name for stream in streams for name in stream.layers}
    known |= set() if example_inputs is None else uncalled(copy_network(net), example_inputs)
    units = [replace(unit, is_default=unit.is_default and unit.module not in known) for unit in units]
    units += _experts_units(modules)
    blocks = [*_blocks(flows), *_transformer_blocks(modules)]
    found = [*units, *_heads(modules, recognised, heads), *blocks, *map(_width, streams)]
    order = {name: position for position, name in enumerate(modules)}
    asked = [placement for placement in found if placement.kind in kinds]
    return sorted(_unique(asked), key=lambda placement: order[placement.place])


def _unique(placements: Sequence[Placement]) -> Iterator[Placement]:
    """Site names once: a block, or heads, that would have the name of another site say what they are."""
    taken: set[str] = set()
    for placement in placements:
        name = placement.name
        if name in taken:
            name = f"{name}.{placement.kind}"
        taken.add(name)
        yield replace(placement, name=name)


def _units(net: nn.Module, modules: Mapping[str, nn.Module], flows: Sequence[Flow]) -> Iterator[Placement]:
    seen: set[str] = set()
    places: set[tuple[str, str]] = set()
    for flow in flows:
        for node in flow.graph.nodes:
            layer = flow.called(node)
            if layer is None or layer_units(layer) is None:
                continue
            name = flow.name(node)
            if name in seen:
                continue
            seen.add(name)
            calls = flow.calls_of(node)
            is_last = any(map(flow.is_last, calls)) and (flow.module is net or _is_last_layer(modules, name))
            placement = _place_of_all(flow, calls, layer)
            # Layers whose outputs are added have one noise, behind the sum.
            if not is_last and (placement.when, placement.place) not in places:
                yield placement
            places.add((placement.when, placement.place))
    if any(flow.module is net for flow in flows):
        return
    whole = [name for name, module in modules.items() if isinstance(module, (ATTENTION, *TRANSFORMER_LAYERS))]
    inside = tuple(f"{name}." for name in whole)
    # Units as many as a norm is over are likely to come to it, and cannot be taken out then.
    widths = {normalised_width(module) for module in modules.values()}
    for name, layer in modules.items():
        units = layer_units(layer)
        if units is not None and name not in seen and not name.startswith(inside) and not _is_last_layer(modules, name):
            is_default = units > 1 and units not in widths and not is_router(modules, name, units)
            yield Placement(name, name, name, "output", "units", units, unit_dim(layer), is_default=is_default)


def _is_last_layer(modules: Mapping[str, nn.Module], name: str) -> bool:
    last = [other for other, module in modules.items() if _has_units(module)][-1]
    return f"{last}.".startswith(f"{name}.")


def _has_units(module: nn.Module) -> bool:
    return layer_units(module) is not None or isinstance(module, (nn.RNNBase, nn.RNNCellBase))


def _place_of_all(flow: Flow, calls: Sequence[fx.Node], layer: nn.Module) -> Placement:
    """The place of a layer's noise behind all its calls: where each of them leads, and nothing else; else the layer."""
    found = [_place_of(flow, node, layer) for node in calls]
    place, name = found[0][0], flow.name(calls[0])
    reached = {node for _, node in found}
    is_all = reached == set(flow.calls_of(found[0][1])) and layer not in flow.elsewhere
    if is_all and all(other == place for other, _ in found):
        return place
    own = replace(place, place=name, when="output", unit_size=1, dim=unit_dim(layer))
    return replace(own, is_default=all(other.is_default for other, _ in found))


def _place_of(flow: Flow, node: fx.Node, layer: nn.Module) -> tuple[Placement, fx.Node]:
    """
    After the activation, else at the input of the next layer, else after the batch norm or the layer itself.

    With the place comes the call of the module that it is at, which is called as often as the layer is.
    """
    name, units, is_image = flow.name(node), layer_units(layer), kernel_dims(layer) > 0
    assert units is not None
    own, at = Placement(name, name, name, "output", "units", units, unit_dim(layer)), node
    gated = reader_of_halves(flow, node, units) if units % 2 == 0 and not is_image else None
    if gated is not None:
        return replace(own, place=flow.name(gated), when="input", num_units=units // 2), gated
    # A stage of images that a norm over channels comes to keeps its width, whatever is between them.
    reaches_norm = units in flow.normalised_widths
    activated = flattened = is_open = False
    for value, step in pairwise([node, *flow.steps(node)]):
        module, called = flow.called(step), "" if step.op == "call_module" else called_name(step)
        if is_activation(module) or called in ACTIVATION_NAMES:
            activated, is_open = True, is_open_at_zero(flow, step)
            if module is not None and flow.is_as_often(step, node) and not flattened:
                return _behind_activation(replace(own, is_default=not comes_to_norm(flow, step)), flow, step)
        elif is_channelwise(module):
            if flow.is_as_often(step, node) and not (activated or flattened):
                own, at = replace(own, place=flow.name(step)), step
        elif is_image and is_flattening(step, module):
            flattened = True
        elif module is not None and layer_units(module) is not None:
            is_next = activated and flow.is_as_often(step, node) and bool(step.args)
            following = _at_input(own, module, flow.name(step), flattened) if is_next else None
            return (own, at) if following is None else (following, step)
        elif activated and not is_image and is_by_number(step):
            continue
        elif not (isinstance(module, PASSIVE) or called in PASSIVE_NAMES or is_linear(step, value)):
            reader = None if is_image or flattened else reader_of_product(flow, step, units)
            if reader is not None and flow.is_as_often(reader, node):
                return replace(own, place=flow.name(reader), when="input"), reader
            is_followed = is_sum(step) or called in _FOLLOWED_NAMES or isinstance(module, _FOLLOWED)
            behind = behind_sum(flow, step) if is_sum(step) and own.place != name and not activated else None
            if behind is not None and flow.is_as_often(behind, node):
                return replace(own, place=flow.name(behind)), behind
            is_known = activated or own.place != name or (is_image and is_followed and not reaches_norm)
            is_left = is_over_units(flow, step) or (is_open and called_name(step) == "mul")
            return replace(own, is_default=is_known and not is_left), at
    return replace(own, is_default=activated or own.place != name or (is_image and not reaches_norm)), at


def _behind_activation(own: Placement, flow: Flow, node: fx.Node) -> tuple[Placement, fx.Node]:
    """
    Where noise has less to do than on an activation: what follows at once, and is the same.

    That is the last of the poolings, with which noise, never negative, commutes, and then the weight of a convolution.
    """
    for step in flow.steps(node):
        module: Any = flow.called(step)
        if not flow.is_as_often(step, node):
            break
        if has_channels_in_columns(module):
            return replace(own, place=flow.name(step), when="input"), step
        if not isinstance(module, POOLINGS) or getattr(module, "return_indices", False):
            break
        node = step
    return replace(own, place=flow.name(node)), node


def _at_input(own: Placement, consumer: nn.Module, place: str, flattened: bool) -> Placement | None:
    """At the input of the layer that takes the value, if that has a multiple of as many features as there are units."""
    if not flattened:
        return replace(own, place=place, when="input")
    width = linear_width(consumer)
    if not width or width % own.num_units:
        return None
    return replace(own, place=place, when="input", unit_size=width // own.num_units, dim=-1)


def _transformer_units(modules: Mapping[str, nn.Module]) -> Iterator[Placement]:
    """The hidden units of torch's own transformer layers, which are one module to the tracer."""
    for name, module in modules.items():
        if isinstance(module, TRANSFORMER_LAYERS):
            hidden, place = _join(name, "linear1"), _join(name, "linear2")
            yield Placement(hidden, hidden, place, "input", "units", module.linear1.out_features, -1)


def _experts_units(modules: Mapping[str, nn.Module]) -> Iterator[Placement]:
    """The hidden units of experts, each that of all of them; the noise is along a dimension of what reads them."""
    for name, module in modules.items():
        kind = experts_of(module)
        if kind is not None:
            yield Placement(name, name, name, "hidden", "units", num_hidden(module), kind.hidden_dim)


def _transformer_blocks(modules: Mapping[str, nn.Module]) -> Iterator[Placement]:
    for name, module in modules.items():
        if isinstance(module, TRANSFORMER_LAYERS):
            branches = [("self_attn", "dropout1"), ("linear2", "dropout2")]
            if isinstance(module, nn.TransformerDecoderLayer):
                branches = [("self_attn", "dropout1"), ("multihead_attn", "dropout2"), ("linear2", "dropout3")]
            for layer, dropout in branches:
                place = _join(name, dropout)
                yield Placement(place, _join(name, layer), place, "output", "block", 1, None, is_default=False)


def _recurrent_units(net: nn.Module, modules: Mapping[str, nn.Module], flows: Sequence[Flow]) -> Iterator[Placement]:
    """The hidden units of recurrent layers and cells, but those that the network puts out."""
    widths = {normalised_width(module) for module in modules.values()}
    found: dict[str, Any] = {name: module for name, module in modules.items() if name}
    for name, module in found.items():
        if not (is_recurrent(module) or type(module) in CELLS):
            continue
        # Compaction may have left a module for each part; what is called is the one around them.
        around = next((o for o in found if isinstance(found[o], nn.RNNBase) and name.startswith(f"{o}.")), name)
        whole = found[around]
        calls = [(flow, node) for flow in flows for node in flow.graph.nodes if flow.called(node) is whole]
        if not calls and any(flow.module is net for flow in flows):
            continue
        is_last = not calls or any(flow.is_last(node) for flow, node in calls)
        is_last = is_last and (any(flow.module is net for flow, _ in calls) or _is_last_layer(modules, around))
        own = Placement(name, name, name, "output", "units", module.hidden_size, -1)
        if type(module) in CELLS:
            if not is_last:
                yield own
            continue
        # Where a norm, or a sum with others, comes first, the units are likely to have to stay.
        is_read = all(flow.is_read_by_layers(node) for flow, node in calls)
        is_read = is_read if calls else not widths & {module.hidden_size, 2 * module.hidden_size}
        parts = parts_of(module)
        for part in parts:
            place = next((p for p in parts_of(whole) if name.startswith(f"{around}.{p.name}.")), part)
            is_inside = place.layer < whole.num_layers - 1
            site = f"{name}.{part.name}" if len(parts) > 1 else name.removesuffix(".layer")
            if is_inside or not is_last:
                yield replace(own, name=site, part=part, is_default=is_inside or is_read)


def _heads(
    modules: Mapping[str, nn.Module], recognised: Sequence[Heads], projections: Mapping[str, int]
) -> Iterator[Placement]:
    for name, module in modules.items():
        if isinstance(module, ATTENTION):
            place, count, width = _join(name, "out_proj"), module.num_heads, module.head_dim
            yield Placement(name, name, place, "input", "heads", count, -1, width)
    for found in recognised:
        name = found.attention or found.output
        own = Placement(name, name, found.output, "input", "heads", found.num_units, -1, found.unit_size)
        yield replace(own, is_default=not found.is_mixed)
    for place, count in projections.items():
        name = attention_of(modules, place) or place
        yield Placement(name, name, place, "input", "heads", count, -1, linear_width(modules[place]) // count)


def _width(stream: Stream) -> Placement:
    """The channels of a stream, at the norms that lead out of it."""
    first = stream.norms[0]
    name, count = f"{stream.writers[0]}.width", stream.num_units
    return Placement(name, stream.writers[0], first.name, "output", "width", count, first.dim, norms=stream.norms)


def _blocks(flows: Sequence[Flow]) -> Iterator[Placement]:
    """The branches of residual sums; the branch is the summand with more layers since the two parted."""
    for flow in flows:
        branches = []
        for node in flow.graph.nodes:
            summands = node.all_input_nodes if is_sum(node) else []
            end = _branch_end(flow, *summands) if len(summands) == 2 else None
            if end is not None:
                branches.append((_owner(node), flow.name(end)))
        owners = Counter(owner for owner, _ in branches)
        for owner, place in branches:
            name = flow.prefix + owner if owner and owners[owner] == 1 else place
            yield Placement(name, name, place, "output", "block", 1, None, is_default=False)


def _branch_end(flow: Flow, one: fx.Node, other: fx.Node) -> fx.Node | None:
    """The last module of a residual branch, the one that noise on the whole branch hangs on."""
    own = [flow.ancestors[node] | {node} for node in (one, other)]
    layers = [sum(map(flow.is_weighted, own[i] - own[1 - i])) for i in range(2)]
    if layers[0] == layers[1]:
        return None
    end, own_nodes = (one, own[0] - own[1]) if layers[0] > layers[1] else (other, own[1] - own[0])
    while end in own_nodes and len(end.users) == 1:
        if flow.called(end) is not None:
            return end if flow.is_once(end) else None
        inputs = end.all_input_nodes
        if len(inputs) != 1:
            return None
        end = inputs[0]
    return None


def _owner(node: fx.Node) -> str:
    """The module in whose forward an operation stands."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _join(*names: str) -> str:
    return ".".join(filter(None, names))
