# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Gates, and what they are for: where two values are multiplied, one unit of each makes one unit of the product.

It is gone where the product is, whatever a gate is at 0: half of what it is for stays of a sigmoid's. Gated linear
units are of Y. Dauphin, A. Fan, M. Auli and D. Grangier (2017), https://arxiv.org/abs/1612.08083.
"""

from __future__ import annotations

import operator

from torch import fx, nn

from pyro_bmrs.pruning.layers import ACTIVATION_NAMES, PASSIVE, PASSIVE_NAMES, is_channelwise, linear_width
from pyro_bmrs.pruning.noise.graph import Flow, called_name
from pyro_bmrs.pruning.noise.recognition.activations import is_activation

_BY_NUMBER = frozenset("add sub mul truediv add_ sub_ mul_ div div_".split())
# Functions that make something of 0. Their modules have noise behind them.
_OPEN_AT_ZERO = frozenset("sigmoid sigmoid_ hardsigmoid softplus logsigmoid cos exp".split())


def reader_of_halves(flow: Flow, node: fx.Node, units: int) -> fx.Node | None:
    """
    The layer that takes a product of the halves of what a layer puts out, one of them behind an activation.

    Such a layer makes gates and what they are for at once, as in SwiGLU, and each unit is a row of either half.

    :param flow: the graph.
    :param node: the call of the layer.
    :param units: how many it puts out.
    """
    halves = next(flow.steps(node), None)
    if halves is None or not flow.is_once(node):
        return None
    product = halves if _is_gated_linear(flow, halves) else _product_of(flow, halves)
    reader = None if product is None else _reader(flow, product, units // 2)
    return reader if reader is not None and flow.is_once(reader) else None


def reader_of_product(flow: Flow, product: fx.Node, units: int) -> fx.Node | None:
    """
    The layer that takes a product of two values, with as many features as each of them has units.

    Nothing, where one of them is what the module of an activation puts out: noise is behind that.

    :param flow: the graph.
    :param product: a step.
    :param units: how many units one of its factors has.
    """
    factors = product.all_input_nodes
    if called_name(product) not in ("mul", "mul_") or len(factors) != 2:
        return None
    return None if any(_is_behind_activation(flow, factor) for factor in factors) else _reader(flow, product, units)


def is_by_number(step: fx.Node) -> bool:
    """
    Whether a step adds a number to its input, or multiplies it by one.

    :param step: the step.
    """
    return called_name(step) in _BY_NUMBER and len(step.all_input_nodes) == 1


def is_open_at_zero(flow: Flow, step: fx.Node) -> bool:
    """
    Whether a step is a function that makes something of 0, so that a gate at 0 lets a part through.

    :param flow: the graph.
    :param step: the step.
    """
    return flow.called(step) is None and called_name(step) in _OPEN_AT_ZERO


def _is_behind_activation(flow: Flow, node: fx.Node) -> bool:
    while isinstance(flow.called(node), PASSIVE):
        node = node.all_input_nodes[0]
    return is_activation(flow.called(node))


def _reader(flow: Flow, product: fx.Node, units: int) -> fx.Node | None:
    """What takes it next, if that is a layer of so many features; norms of each unit by itself may be between."""
    for step in flow.steps(product):
        module = flow.called(step)
        if linear_width(module) == units:
            return step
        is_passed = module is None and called_name(step) in PASSIVE_NAMES
        if not (is_passed or isinstance(module, PASSIVE) or is_channelwise(module)):
            return None
    return None


def _product_of(flow: Flow, halves: fx.Node) -> fx.Node | None:
    parts = list(halves.users)
    if len(parts) != 2 or not _is_in_two(halves):
        return None
    products, activated = set(), 0
    for part in parts:
        if part.target is not operator.getitem:
            return None
        for step in flow.steps(part):
            module, called = flow.called(step), "" if step.op == "call_module" else called_name(step)
            if is_activation(module) or called in ACTIVATION_NAMES:
                activated += 1
            elif not isinstance(module, PASSIVE):
                products.add(step)
                break
    product = products.pop() if len(products) == 1 else None
    return product if product is not None and activated == 1 and called_name(product) == "mul" else None


def _is_in_two(node: fx.Node) -> bool:
    """Whether a step parts its input into the halves of its last dimension, whatever their size."""
    given = dict(zip(("input", "chunks", "dim"), node.args)) | dict(node.kwargs)
    return called_name(node) == "chunk" and (given.get("chunks"), given.get("dim")) == (2, -1)


def _is_gated_linear(flow: Flow, node: fx.Node) -> bool:
    """Whether a step multiplies one half of the last dimension by a sigmoid of the other."""
    module = flow.called(node)
    if module is not None:
        return isinstance(module, nn.GLU) and module.dim == -1
    given = dict(zip(("input", "dim"), node.args)) | dict(node.kwargs)
    return called_name(node) == "glu" and bool(given.get("dim", -1) == -1)
