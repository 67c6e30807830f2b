# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Layers by whose weights a network multiplies without a call, as ``F.linear(x, self.proj.weight)`` does: called anyway.

Some modules pass the weights of their layers to a function that does more than a layer does. What hangs on these
layers, as noise does, would then never act, and what looks at calls would not see them.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Collection, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from pyro_bmrs.pruning.examples import run
from pyro_bmrs.pruning.layers import layer_units

# What can be called in the place of a function, and what it is given besides a weight and a bias.
_SETTINGS = ("stride", "padding", "dilation", "groups")
_PRODUCTS: dict[Any, tuple[str, ...]] = {F.linear: (), F.conv1d: _SETTINGS, F.conv2d: _SETTINGS, F.conv3d: _SETTINGS}
_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
# What is asked of a weight that is not its numbers.
_ASKED = frozenset("dtype device shape ndim size dim numel requires_grad is_cuda stride element_size".split())


class CallsByWeight:
    """
    The forward of a module that multiplies by weights of its layers: it calls these layers, and is the same otherwise.

    It takes the place of the module's ``forward``.

    :param module: the module.
    :param names: the names in it of the layers.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> class Functional(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(2, 1)
        ...     def forward(self, x):
        ...         return nn.functional.linear(x, self.layer.weight, self.layer.bias)
        >>> net = Functional()
        >>> handle = net.layer.register_forward_hook(lambda *_: print("called"))
        >>> _ = net(torch.ones(1, 2))
        >>> call_by_weight(net)
        >>> _ = net(torch.ones(1, 2))
        called
    """

    def __init__(self, module: nn.Module, names: Collection[str]) -> None:
        self.module, self.names = module, tuple(names)
        self.inner: Callable[..., Any] | None = vars(module).get("forward")

    @property
    def __code__(self) -> Any:
        """The code of the module's class, whose arguments ``torch.export`` asks for."""
        return type(self.module).forward.__code__

    # A mode that looks at each function is none of what is compiled.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module does."""
        layers = [self.module.get_submodule(name) for name in self.names]
        with _Calling(layers):
            if self.inner is not None:
                return self.inner(*args, **kwargs)
            return type(self.module).forward(self.module, *args, **kwargs)


def call_by_weight(net: nn.Module, chosen: Collection[nn.Module] | None = None) -> None:
    """
    Has modules call the layers by whose weights they multiply, in place.

    :param net: the network.
    :param chosen: layers of which one has to be among a module's; by default all.
    """
    for module, names in read_by_weight(net):
        layers = [module.get_submodule(name) for name in names]
        is_done = isinstance(vars(module).get("forward"), CallsByWeight)
        if not is_done and (chosen is None or any(layer in chosen for layer in layers)):
            vars(module)["forward"] = CallsByWeight(module, names)


def multiply_by_weight(net: nn.Module) -> None:
    """Has modules multiply by weights, as their own code does, where there is nothing around the layers; in place."""
    for module in net.modules():
        forward = vars(module).get("forward")
        layers = [] if not isinstance(forward, CallsByWeight) else map(module.get_submodule, forward.names)
        if isinstance(forward, CallsByWeight) and all("weight" in layer._parameters for layer in layers):
            del vars(module)["forward"]
            if forward.inner is not None:
                vars(module)["forward"] = forward.inner


def called_by_weight(module: nn.Module) -> tuple[str, ...]:
    """The names in a module of the layers that it calls where its code reads their weights."""
    forward = vars(module).get("forward")
    return forward.names if isinstance(forward, CallsByWeight) else ()


def read_by_weight(net: nn.Module) -> Iterator[tuple[nn.Module, list[str]]]:
    """The modules whose code reads weights of layers in them, and the names of these layers."""
    for module in net.modules():
        found = weights_read_by(module)
        if found:
            yield module, found


def uncalled(net: nn.Module, example_inputs: Any) -> set[str]:
    """
    The names of layers that are not called, as by their weights modules compute what no layer does.

    :param net: a network that calls the others.
    :param example_inputs: what it is called with.
    """
    owners = {module.get_submodule(name): module for module, names in read_by_weight(net) for name in names}
    if not owners:
        return set()
    called: set[nn.Module] = set()
    run(net, example_inputs, dict.fromkeys({*owners, *owners.values()}, lambda module, *_: called.add(module)))
    silent = {layer for layer, owner in owners.items() if owner in called and layer not in called}
    return {name for name, module in net.named_modules() if module in silent}


def weights_read_by(module: nn.Module) -> list[str]:
    """The names of the layers in a module whose weights its own code reads."""
    if layer_units(module) is not None or type(module).forward.__module__.startswith("torch.nn"):
        return []
    kind: Any = type(module)
    return [name for name in _weights_read(kind) if _layer(module, name) is not None]


def _layer(module: nn.Module, name: str) -> nn.Module | None:
    try:
        layer = module.get_submodule(name)
    except AttributeError:
        return None
    return layer if layer_units(layer) is not None else None


@cache
def _weights_read(kind: Any) -> tuple[str, ...]:
    """The names before ``.weight`` of what the code of a class's forward, and of the methods that it calls, reads."""
    found: dict[str, None] = {}
    done, left = set(), ["forward"]
    while left:
        method = left.pop()
        tree = None if method in done else _code(getattr(kind, method, None))
        done.add(method)
        if tree is None or not tree.args.args:
            continue
        own = tree.args.args[0].arg
        asked = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in _ASKED}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "weight" and id(node) not in asked:
                found.update(dict.fromkeys(filter(None, [_path(node.value, own)])))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                left += [node.func.attr] if _path(node.func, own) == node.func.attr else []
    return tuple(found)


def _code(function: Any) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    # There is no code of what is not written in Python, or was typed.
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    return tree if isinstance(tree, ast.FunctionDef) else None


def _path(node: ast.expr, own: str) -> str:
    """The name, in the module that a method is of, of what an expression is; empty for no such."""
    parts: list[str] = []
    while True:
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            parts.append(str(node.slice.value))
        else:
            return ".".join(reversed(parts)) if isinstance(node, ast.Name) and node.id == own else ""
        node = node.value


class _Calling(TorchFunctionMode):
    """
    Calls layers where products with their weights are computed.

    :param layers: the layers, perhaps with something around them that passes for them.
    """

    def __init__(self, layers: Collection[nn.Module]) -> None:
        super().__init__()
        self._layers = layers
        self._restore: list[tuple[dict[str, Any], str, Any]] = []
        # Whether one of the layers computes, by its own weight.
        self.is_inside = False

    def __enter__(self) -> Any:
        for layer in self._layers:
            self._set(layer, "forward", _Inside(self, layer))
            holder = _holder(layer)
            for name in ("weight", "bias") if holder is not None else ():
                # As itself also to a tracer, which gives something symbolic for a parameter.
                if isinstance(holder._parameters.get(name), Tensor):
                    self._set(holder, name, holder._parameters[name])
        parent: Any = super()
        return parent.__enter__()

    def __exit__(self, *error: Any) -> None:
        parent: Any = super()
        parent.__exit__(*error)
        for attributes, name, before in reversed(self._restore):
            if before is None:
                attributes.pop(name, None)
            else:
                attributes[name] = before
        self._restore.clear()

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        attributes = vars(module)
        self._restore.append((attributes, name, attributes.get(name)))
        attributes[name] = value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.is_inside:
            return func(*args, **kwargs)
        known = {
            id(tensor): (layer, name)
            for layer in self._layers
            for name in ("weight", "bias")
            if (tensor := getattr(layer, name, None)) is not None
        }
        if not any(id(leaf) in known for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func in _PRODUCTS:
            names = ("input", "weight", "bias", *_PRODUCTS[func])
            given = {**dict(zip(names, args)), **kwargs}
            layer, name = known.get(id(given["weight"]), (None, ""))
            if name == "weight" and _is_as_set(layer, given, _PRODUCTS[func]):
                return _called(layer, given["input"], given.get("bias"))

        def seen(leaf: Any) -> Any:
            layer, name = known.get(id(leaf), (None, ""))
            around = None if layer is None else _around(layer)
            return leaf if around is None else around.as_seen(name)

        # A function that nothing can be called in the place of is given what is made of a layer's own.
        args, kwargs = tree_map(seen, (args, kwargs))
        return func(*args, **kwargs)


class _Inside:
    """The forward of a layer while it may be called by its weight."""

    def __init__(self, calling: _Calling, layer: nn.Module) -> None:
        self.calling, self.layer, self.inner = calling, layer, vars(layer).get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before, self.calling.is_inside = self.calling.is_inside, True
        try:
            if self.inner is not None:
                return self.inner(*args, **kwargs)
            return type(self.layer).forward(self.layer, *args, **kwargs)
        finally:
            self.calling.is_inside = before


def _around(layer: nn.Module) -> Any:
    """What multiplies a layer's weights, as noise on its columns does; None for no such."""
    inside = vars(layer)["forward"]
    return next((part for part in (layer, inside.inner) if hasattr(part, "as_seen")), None)


def _holder(layer: nn.Module) -> Any:
    """The module that has the weight: the layer, or what is in what is around it."""
    return next((module for module in layer.modules() if "weight" in module._parameters), None)


def _is_as_set(layer: Any, given: dict[str, Any], settings: Collection[str]) -> bool:
    """Whether a function does with a weight what the layer does."""
    if settings and getattr(layer, "padding_mode", "zeros") != "zeros":
        return False
    for name in settings:
        value, own = given.get(name, _DEFAULTS[name]), getattr(layer, name)
        if value != own and value not in (own[:1] if isinstance(own, tuple) and len(set(own)) == 1 else ()):
            if not isinstance(value, list) or tuple(value) != own:
                return False
    return True


def _called(layer: Any, input: Any, bias: Any) -> Any:
    """What the layer makes of an input, with a bias that may not be its own."""
    holder = _holder(layer)
    if bias is holder.bias or isinstance(input, fx.Proxy):
        return layer(input)
    attributes = vars(holder)
    before = attributes.get("bias")
    attributes["bias"] = bias
    try:
        return layer(input)
    finally:
        if before is None:
            del attributes["bias"]
        else:
            attributes["bias"] = before
