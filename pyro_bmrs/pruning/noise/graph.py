# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The graph of a network, traced symbolically, without an input.

A network whose forward cannot be traced (:mod:`torch.fx`) is read part by part.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from threading import get_ident
from typing import Any

import torch
from torch import fx, nn

from pyro_bmrs.pruning.layers import (
    ATTENTION,
    TRANSFORMER_LAYERS,
    has_weights_between_units,
    layer_kind,
    layer_units,
    normalised_width,
)
from pyro_bmrs.pruning.noise.recognition.activations import is_activation
from pyro_bmrs.structure.vectorised import TURN


class _Tracer(fx.Tracer):
    def __init__(self, leaves: Collection[nn.Module]) -> None:
        super().__init__()
        self.leaves, self.thread = leaves, get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # While it traces, calls of modules come here from all threads.
        return super().call_module(m, forward, args, kwargs) if get_ident() == self.thread else forward(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_step = layer_kind(m) is not None or isinstance(m, nn.RNNBase) or is_activation(m)
        return m in self.leaves or is_step or super().is_leaf_module(m, module_qualified_name)


def _trace(module: nn.Module, leaves: Collection[nn.Module]) -> fx.Graph | None:
    # In training more may be called, as auxiliary classifiers are, than in evaluation; it may want more, too.
    for training in (True, False):
        module.train(training)
        try:
            # Tracing changes what modules do everywhere while it lasts.
            with TURN:
                return _Tracer(leaves).trace(module)
        # A forward may fail on a symbolic input in whatever way it likes; that it cannot be traced is the answer.
        except Exception:
            continue
    return None


def graphs(
    module: nn.Module, attentions: Collection[nn.Module], prefix: str = ""
) -> Iterator[tuple[str, nn.Module, fx.Graph]]:
    """
    The graph of a module, or of those parts of it that can be traced; attentions are one step if they have to be.

    Its training mode is not kept.
    """
    if layer_units(module) is not None or isinstance(module, (ATTENTION, *TRANSFORMER_LAYERS, nn.RNNBase)):
        return
    graph = _trace(module, ())
    if graph is None and attentions and module not in attentions:
        graph = _trace(module, attentions)
    if graph is not None:
        yield prefix, module, graph
        return
    for name, child in module.named_children():
        yield from graphs(child, attentions, f"{prefix}{name}.")


def flows_of(net: nn.Module, attentions: Collection[nn.Module]) -> list[Flow]:
    """
    The graph of a network, or those of its parts, to be asked.

    :param net: the network.
    :param attentions: what is one step if it has to be.
    """
    parts = list(graphs(net, attentions))
    names: dict[nn.Module, str] = {}
    places: Counter[nn.Module] = Counter()
    for name, module in net.named_modules(remove_duplicate=False):
        names.setdefault(module, name)
        places[module] += 1
    is_whole = any(module is net for _, module, _ in parts)
    # What has several names, as an activation that blocks share, may be called by any that has it.
    elsewhere = set() if is_whole else {module for module, count in places.items() if count > 1}
    return [Flow(*part, names, elsewhere) for part in parts]


class Flow:
    """
    The graph of a module, as it is asked here.

    :param prefix: what the names of its parts begin with in the whole network.
    :param module: the module.
    :param graph: its graph.
    :param names: the names of modules in the whole network; that of a part where it is none of these.
    :param elsewhere: modules that may be called outside of the graph, too.
    """

    def __init__(
        self,
        prefix: str,
        module: nn.Module,
        graph: fx.Graph,
        names: Mapping[nn.Module, str] | None = None,
        elsewhere: Collection[nn.Module] = (),
    ) -> None:
        self.prefix, self.module, self.graph = prefix, module, graph
        self.names, self.elsewhere = names or {}, elsewhere
        self.calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        # Over how many units norms are in it.
        self.normalised_widths = {normalised_width(part) for part in module.modules()} - {0}
        self.ancestors: dict[fx.Node, frozenset[fx.Node]] = {}
        for node in graph.nodes:
            inputs = node.all_input_nodes
            self.ancestors[node] = frozenset(inputs).union(*(self.ancestors[source] for source in inputs))

    def called(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def is_weighted(self, node: fx.Node) -> bool:
        module = self.called(node)
        return module is not None and has_weights_between_units(module)

    def name(self, node: fx.Node) -> str:
        """The name in the whole network of the module that is called."""
        called = self.called(node)
        whole = self.prefix + str(node.target)
        return whole if called is None else self.names.get(called, whole)

    def is_once(self, node: fx.Node) -> bool:
        return self.calls[node.target] == 1 and self.called(node) not in self.elsewhere

    def is_as_often(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether two modules are called the same number of times."""
        is_whole = self.called(node) not in self.elsewhere and self.called(other) not in self.elsewhere
        return node is other or (is_whole and self.calls[node.target] == self.calls[other.target])

    def calls_of(self, node: fx.Node) -> list[fx.Node]:
        """All calls of the module that is called."""
        return [other for other in self.graph.nodes if other.op == "call_module" and other.target == node.target]

    def is_last(self, node: fx.Node) -> bool:
        """Whether no further layer follows."""
        return not any(node in self.ancestors[other] and self.is_weighted(other) for other in self.graph.nodes)

    def is_read_by_layers(self, node: fx.Node) -> bool:
        """Whether what a step gives comes to layers before it comes to a norm, or to a sum with something else."""
        return self.readers(node) is not None

    def readers(self, node: fx.Node) -> list[nn.Module] | None:
        """The layers that what a step gives comes to first; None where it comes to a norm, or a sum with others."""
        left, seen, found = list(node.users), set(), []
        while left:
            step = left.pop()
            module = self.called(step)
            if step in seen or _is_shape(step):
                continue
            seen.add(step)
            if module is not None and self.is_weighted(step):
                found.append(module)
                continue
            own = {source for source in step.all_input_nodes if source is node or node in self.ancestors[source]}
            if (module is not None and normalised_width(module)) or (is_sum(step) and own != {*step.all_input_nodes}):
                return None
            left += step.users
        return found

    def steps(self, node: fx.Node) -> Iterator[fx.Node]:
        """What happens to a value, one after the other, while it goes one way only."""
        while True:
            users = [user for user in node.users if not _is_shape(user)]
            if len(users) != 1:
                return
            node = users[0]
            yield node


def called_name(node: fx.Node) -> str:
    """The name of the function or method that a step calls."""
    target: Any = node.target
    return target if node.op == "call_method" else getattr(target, "__name__", "")


def is_sum(node: fx.Node) -> bool:
    """Whether a step adds."""
    is_method = node.op == "call_method" and called_name(node) in ("add", "add_")
    return is_method or node.target in (operator.add, operator.iadd, torch.add)


def is_linear(node: fx.Node, value: fx.Node) -> bool:
    """Whether a step multiplies a value by a number, or by a matrix from the left, as that of a graph's edges."""
    called, factors = called_name(node), node.all_input_nodes
    is_scaled = called in ("mul", "imul", "truediv", "div", "neg") and len(factors) == 1
    is_mixed = called in ("matmul", "mm", "bmm") and list(node.args)[1:2] == [value] and len(factors) == 2
    return is_scaled or is_mixed


def _is_shape(node: fx.Node) -> bool:
    """Whether a step asks for sizes and not for values."""
    return called_name(node) in ("size", "dim") or (node.target is getattr and node.args[1] in ("shape", "ndim"))


def is_flattening(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether all but the examples and the units are made one dimension with the units, which vary slowest."""
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    rest: tuple[Any, ...] = node.args[1:]
    if called_name(node) == "flatten":
        return rest in ((1,), (1, -1)) or (not rest and dict(node.kwargs) == {"start_dim": 1})
    if called_name(node) in ("view", "reshape"):
        sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
        return len(sizes) == 2 and isinstance(sizes[1], int) and sizes[1] == -1
    return False
