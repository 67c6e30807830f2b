# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Where noise can go in a network: found by following each layer's output through the network's graph.

The graph is traced symbolically (:mod:`torch.fx`), without an input. A network whose forward cannot be traced is read
part by part; of what cannot be traced at all, each layer's own output is the place.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

# What acts on each unit by itself, and what makes the value that the next layer sees of it.
_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Hardtanh),
    *(nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Threshold),
)
_ACTIVATION_NAMES = frozenset(
    "relu relu_ relu6 leaky_relu leaky_relu_ prelu rrelu elu elu_ selu selu_ celu celu_ gelu silu mish tanh tanh_ "
    "sigmoid sigmoid_ softplus softsign tanhshrink softshrink hardshrink hardtanh hardtanh_ hardsigmoid hardswish "
    "logsigmoid threshold".split()
)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
# Parameters, but no weights between units.
_UNWEIGHTED = (*_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
_POOLINGS: tuple[type[nn.Module], ...] = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)
_PASSIVE = (nn.Identity, nn.modules.dropout._DropoutNd, *_POOLINGS, nn.Upsample, nn.ZeroPad2d)
_PASSIVE_NAMES = frozenset(
    "contiguous dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout interpolate pad".split()
) | frozenset(f"{kind}_pool{n}d" for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg") for n in (1, 2, 3))
_SUMS = (operator.add, operator.iadd, torch.add)
_CONVOLUTIONS = nn.modules.conv._ConvNd
_ATTENTION = nn.MultiheadAttention
_TRANSFORMER_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
HEAD_COUNTS = ("num_heads", "n_heads", "n_head", "nhead", "num_attention_heads", "heads", "h")
_PROJECTED = frozenset(
    "q k v qkv kv qk q_proj k_proj v_proj qkv_proj kv_proj in_proj query key value queries keys values to_q to_k to_v "
    "to_qkv to_kv wq wk wv wqkv w_q w_k w_v c_attn q_lin k_lin v_lin query_key_value".split()
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


def find_placements(net: nn.Module, kinds: Collection[str], heads: Mapping[str, int]) -> list[Placement]:
    """
    All the places for noise in a network, in the order of its modules.

    :param net: the network.
    :param kinds: the kinds of units asked for.
    :param heads: for output projections of attentions that are not recognised, the number of heads.
    """
    modules = dict(net.named_modules())
    recognised = _recognised_heads(modules)
    attentions = tuple(modules[_attention_of(modules, place)] for place in recognised)
    flows = [_Flow(*part) for part in _graphs(net, attentions)]
    units = [*_units(net, modules, flows), *_transformer_units(modules)]
    blocks = [*_blocks(flows), *_transformer_blocks(modules)]
    found = [*units, *_heads(modules, {**recognised, **heads}), *blocks]
    order = {name: position for position, name in enumerate(modules)}
    asked = [placement for placement in found if placement.kind in kinds]
    return sorted(_unique(asked), key=lambda placement: order[placement.place])


def layer_units(layer: nn.Module) -> int | None:
    """How many units a layer puts out; None for what is no linear or convolutional layer."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, _CONVOLUTIONS) else None


def has_channels_in_columns(module: Any) -> bool:
    """Whether it is a convolution whose weight has all the channels that it is given in its second dimension."""
    return type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and module.groups == 1


def _unique(placements: Sequence[Placement]) -> Iterator[Placement]:
    """Site names once: a block, or heads, that would have the name of another site say what they are."""
    taken: set[str] = set()
    for placement in placements:
        name = placement.name
        if name in taken:
            name = f"{name}.{placement.kind}"
        taken.add(name)
        yield replace(placement, name=name)


class _Tracer(fx.Tracer):
    def __init__(self, leaves: Collection[nn.Module]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.leaves or layer_units(m) is not None or super().is_leaf_module(m, module_qualified_name)


def _trace(module: nn.Module, leaves: Collection[nn.Module]) -> fx.Graph | None:
    try:
        return _Tracer(leaves).trace(module)
    # A forward may fail on a symbolic input in whatever way it likes; that it cannot be traced is the answer.
    except Exception:
        return None


def _graphs(
    module: nn.Module, attentions: Collection[nn.Module], prefix: str = ""
) -> Iterator[tuple[str, nn.Module, fx.Graph]]:
    """The graph of a module, or of those parts of it that can be traced; attentions are one step if they have to be."""
    if layer_units(module) is not None or isinstance(module, (_ATTENTION, *_TRANSFORMER_LAYERS)):
        return
    graph = _trace(module, ())
    if graph is None and attentions and module not in attentions:
        graph = _trace(module, attentions)
    if graph is not None:
        yield prefix, module, graph
        return
    for name, child in module.named_children():
        yield from _graphs(child, attentions, f"{prefix}{name}.")


class _Flow:
    """The graph of a module, as it is asked here."""

    def __init__(self, prefix: str, module: nn.Module, graph: fx.Graph) -> None:
        self.prefix, self.module, self.graph = prefix, module, graph
        self.calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        self.ancestors: dict[fx.Node, frozenset[fx.Node]] = {}
        for node in graph.nodes:
            inputs = node.all_input_nodes
            self.ancestors[node] = frozenset(inputs).union(*(self.ancestors[source] for source in inputs))

    def called(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def is_weighted(self, node: fx.Node) -> bool:
        module = self.called(node)
        return module is not None and any(True for _ in module.parameters()) and not isinstance(module, _UNWEIGHTED)

    def name(self, node: fx.Node) -> str:
        """The name in the whole network of the module that is called."""
        return self.prefix + str(node.target)

    def is_once(self, node: fx.Node) -> bool:
        return self.calls[node.target] == 1

    def is_last(self, node: fx.Node) -> bool:
        """Whether no further layer follows."""
        return not any(node in self.ancestors[other] and self.is_weighted(other) for other in self.graph.nodes)

    def steps(self, node: fx.Node) -> Iterator[fx.Node]:
        """What happens to a value, one after the other, while it goes one way only."""
        while True:
            users = [user for user in node.users if not _is_shape(user)]
            if len(users) != 1:
                return
            node = users[0]
            yield node


def _name(node: fx.Node) -> str:
    target: Any = node.target
    return target if node.op == "call_method" else getattr(target, "__name__", "")


def _is_shape(node: fx.Node) -> bool:
    """Whether a step asks for sizes and not for values."""
    return _name(node) in ("size", "dim") or (node.target is getattr and node.args[1] in ("shape", "ndim"))


def _is_flattening(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether all but the examples and the units are made one dimension with the units, which vary slowest."""
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    rest: tuple[Any, ...] = node.args[1:]
    if _name(node) == "flatten":
        return rest in ((1,), (1, -1)) or (not rest and dict(node.kwargs) == {"start_dim": 1})
    if _name(node) in ("view", "reshape"):
        sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
        return len(sizes) == 2 and isinstance(sizes[1], int) and sizes[1] == -1
    return False


def _units(net: nn.Module, modules: Mapping[str, nn.Module], flows: Sequence[_Flow]) -> Iterator[Placement]:
    seen: set[str] = set()
    for flow in flows:
        for node in flow.graph.nodes:
            layer = flow.called(node)
            if layer is None or layer_units(layer) is None:
                continue
            name = flow.name(node)
            seen.add(name)
            is_last = flow.is_last(node) and (flow.module is net or _is_last_layer(modules, name))
            # Of a layer called twice the noise would be two variables of one name.
            if flow.is_once(node) and not is_last:
                yield _place_of(flow, node, layer)
    if any(flow.module is net for flow in flows):
        return
    whole = [name for name, module in modules.items() if isinstance(module, (_ATTENTION, *_TRANSFORMER_LAYERS))]
    inside = tuple(f"{name}." for name in whole)
    for name, layer in modules.items():
        units = layer_units(layer)
        if units is not None and name not in seen and not name.startswith(inside) and not _is_last_layer(modules, name):
            yield Placement(name, name, name, "output", "units", units, _unit_dim(layer))


def _is_last_layer(modules: Mapping[str, nn.Module], name: str) -> bool:
    return [other for other, module in modules.items() if layer_units(module) is not None][-1] == name


def _unit_dim(layer: nn.Module) -> int:
    return 1 if isinstance(layer, _CONVOLUTIONS) else -1


def _place_of(flow: _Flow, node: fx.Node, layer: nn.Module) -> Placement:
    """After the activation, else at the input of the next layer, else after the batch norm or the layer itself."""
    name, units, is_image = flow.name(node), layer_units(layer), isinstance(layer, _CONVOLUTIONS)
    assert units is not None
    own = Placement(name, name, name, "output", "units", units, _unit_dim(layer))
    activated = flattened = False
    for step in flow.steps(node):
        module, called = flow.called(step), "" if step.op == "call_module" else _name(step)
        if isinstance(module, _ACTIVATIONS) or called in _ACTIVATION_NAMES:
            activated = True
            if module is not None and flow.is_once(step) and not flattened:
                return _behind_activation(own, flow, step)
        elif isinstance(module, _NORMS):
            if flow.is_once(step) and not (activated or flattened):
                own = replace(own, place=flow.name(step))
        elif is_image and _is_flattening(step, module):
            flattened = True
        elif module is not None and layer_units(module) is not None:
            is_next = activated and flow.is_once(step) and bool(step.args)
            return _at_input(own, module, flow.name(step), flattened) if is_next else own
        elif not isinstance(module, _PASSIVE) and called not in _PASSIVE_NAMES:
            is_sum = step.target in _SUMS or called == "add"
            return replace(own, is_default=activated or own.place != name or (is_image and is_sum))
    return replace(own, is_default=activated or own.place != name or is_image)


def _behind_activation(own: Placement, flow: _Flow, node: fx.Node) -> Placement:
    """
    Where noise has less to do than on an activation: what follows at once, and is the same.

    That is the last of the poolings, with which noise, never negative, commutes, and then the weight of a convolution.
    """
    for step in flow.steps(node):
        module: Any = flow.called(step)
        if not flow.is_once(step):
            break
        if has_channels_in_columns(module):
            return replace(own, place=flow.name(step), when="input")
        if not isinstance(module, _POOLINGS) or getattr(module, "return_indices", False):
            break
        node = step
    return replace(own, place=flow.name(node))


def _at_input(own: Placement, consumer: nn.Module, place: str, flattened: bool) -> Placement:
    if not flattened:
        return replace(own, place=place, when="input")
    width = consumer.in_features if isinstance(consumer, nn.Linear) else 0
    if not width or width % own.num_units:
        return own
    return replace(own, place=place, when="input", unit_size=width // own.num_units, dim=-1)


def _transformer_units(modules: Mapping[str, nn.Module]) -> Iterator[Placement]:
    """The hidden units of torch's own transformer layers, which are one module to the tracer."""
    for name, module in modules.items():
        if isinstance(module, _TRANSFORMER_LAYERS):
            hidden, place = _join(name, "linear1"), _join(name, "linear2")
            yield Placement(hidden, hidden, place, "input", "units", module.linear1.out_features, -1)


def _transformer_blocks(modules: Mapping[str, nn.Module]) -> Iterator[Placement]:
    for name, module in modules.items():
        if isinstance(module, _TRANSFORMER_LAYERS):
            branches = [("self_attn", "dropout1"), ("linear2", "dropout2")]
            if isinstance(module, nn.TransformerDecoderLayer):
                branches = [("self_attn", "dropout1"), ("multihead_attn", "dropout2"), ("linear2", "dropout3")]
            for layer, dropout in branches:
                place = _join(name, dropout)
                yield Placement(place, _join(name, layer), place, "output", "block", 1, None, is_default=False)


def _recognised_heads(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """The output projections of attentions written as projections: of modules that hold a number of heads."""
    found = {}
    for name, module in modules.items():
        counts = [value for value in (getattr(module, key, None) for key in HEAD_COUNTS) if type(value) is int]
        if not counts or isinstance(module, _ATTENTION):
            continue
        linear = {child: layer for child, layer in module.named_modules() if isinstance(layer, nn.Linear)}
        projected = [child for child in linear if child.rpartition(".")[2].lower() in _PROJECTED]
        others = [child for child in linear if child not in projected]
        if projected and len(others) == 1 and linear[others[0]].in_features % counts[0] == 0:
            found[_join(name, others[0])] = counts[0]
    return found


def _attention_of(modules: Mapping[str, nn.Module], projection: str) -> str:
    """The module whose output projection this is, which may be in a sequence with a dropout."""
    name = projection.rpartition(".")[0]
    while name and isinstance(modules[name], nn.Sequential):
        name = name.rpartition(".")[0]
    return name


def _heads(modules: Mapping[str, nn.Module], projections: Mapping[str, int]) -> Iterator[Placement]:
    for name, module in modules.items():
        if isinstance(module, _ATTENTION):
            place, count, width = _join(name, "out_proj"), module.num_heads, module.head_dim
            yield Placement(name, name, place, "input", "heads", count, -1, width)
    for place, count in projections.items():
        layer: Any = modules[place]
        name = _attention_of(modules, place) or place
        yield Placement(name, name, place, "input", "heads", count, -1, layer.in_features // count)


def _blocks(flows: Sequence[_Flow]) -> Iterator[Placement]:
    """The branches of residual sums; the branch is the summand with more layers since the two parted."""
    for flow in flows:
        branches = []
        for node in flow.graph.nodes:
            is_sum = node.target in _SUMS or (node.op == "call_method" and _name(node) in ("add", "add_"))
            end = _branch_end(flow, *node.all_input_nodes) if is_sum and len(node.all_input_nodes) == 2 else None
            if end is not None:
                branches.append((_owner(node), flow.name(end)))
        owners = Counter(owner for owner, _ in branches)
        for owner, place in branches:
            name = flow.prefix + owner if owner and owners[owner] == 1 else place
            yield Placement(name, name, place, "output", "block", 1, None, is_default=False)


def _branch_end(flow: _Flow, one: fx.Node, other: fx.Node) -> fx.Node | None:
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
