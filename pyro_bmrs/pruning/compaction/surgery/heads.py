# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Attention heads that are multiplied by 0, taken out of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.compaction.coupling.dependency import torch_pruning
from pyro_bmrs.pruning.compaction.coupling.ties import Channel
from pyro_bmrs.pruning.compaction.modules.attention import Attention
from pyro_bmrs.pruning.compaction.modules.scaling import scales_of
from pyro_bmrs.pruning.compaction.surgery.attempts import most_that_work
from pyro_bmrs.pruning.compaction.surgery.removal import LAST
from pyro_bmrs.pruning.examples import Outputs, call, evaluation
from pyro_bmrs.pruning.layers import HEAD_COUNTS, linear_width, take_out


def remove_heads(
    net: nn.Module, sizes: Mapping[str, int], example_inputs: Any, outputs: Outputs, importance: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[Channel, str]]:
    """
    Takes attention heads out of a network, with their rows of the projections that make queries, keys and values.

    Which rows those are is seen from the gradients of what the output projection is given. An attention that is no
    :class:`Attention` holds its number of heads as an attribute, and perhaps what its heads are wide together.

    :param net: a network with multiplications of what output projections are given; left as it is.
    :param sizes: for the name of each of these multiplications, the width of a head.
    :param example_inputs: what the network is called with.
    :param outputs: its outputs, which do not change.
    :param importance: for each of these multiplications, which of its elements to rather keep if none would be left.
    :return: the smaller network, and why elements of the multiplications that are 0 are still there.
    """
    scales = scales_of(net)
    left: dict[Channel, str] = {}
    gone: dict[str, Tensor] = {}
    for name, size in sizes.items():
        zero = (scales[name].factor == 0).unflatten(0, (-1, size)).all(1)
        if zero.all():
            best = importance[name].unflatten(0, (-1, size)).sum(1).argmax()
            zero[best] = False
            left.update(dict.fromkeys(_elements(name, best.reshape(1), size), LAST))
        if zero.any():
            gone[name] = zero
    if not gone:
        return net, left
    torch_pruning()  # Whether it is asked for depends on the network; that it is missing is said for each.
    rows = _projection_rows(net, {name: sizes[name] for name in gone}, example_inputs)

    def remove(net: nn.Module, names: Sequence[str], with_width: bool) -> tuple[nn.Module, dict[str, str]]:
        def without(chosen: Sequence[str]) -> nn.Module:
            smaller = deepcopy(net)
            for name in chosen:
                _remove(smaller, name, gone[name], sizes[name], rows[name], with_width)
            return smaller

        smaller, failed = most_that_work(names, without, outputs)
        return smaller, {names[place]: reason for place, reason in failed.items()}

    # Some attentions hold the width of all heads as well: tried where their number alone is not enough.
    smaller, failed = remove(net, list(gone), False)
    smaller, failed = remove(smaller, list(failed), True)
    for name, reason in failed.items():
        left.update(dict.fromkeys(_elements(name, gone[name].nonzero().flatten(), sizes[name]), reason))
    return smaller, left


def _elements(name: str, heads: Tensor, size: int) -> list[Channel]:
    elements = (heads.unsqueeze(-1) * size + torch.arange(size, device=heads.device)).flatten().tolist()
    return [Channel(name, "through", element) for element in elements]


def _projection_rows(net: nn.Module, sizes: Mapping[str, int], example_inputs: Any) -> dict[str, dict[str, Tensor]]:
    """For each multiplication, the layers each of whose outputs reaches one head at most, and which; -1 for none."""
    layers = [name for name, module in net.named_modules() if linear_width(module)]
    scales = scales_of(net)
    given: dict[str, Tensor] = {}
    projected: dict[str, Tensor] = {}
    net = deepcopy(net).requires_grad_(True)

    def note(seen: dict[str, Tensor], name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None = None) -> None:
            seen[name] = args[0] if output is None else output

        return hook

    with evaluation(net), torch.enable_grad(), ExitStack() as hooks:
        for name in layers:
            hooks.callback(net.get_submodule(name).register_forward_hook(note(projected, name)).remove)
        for name in sizes:
            hooks.callback(net.get_submodule(name).register_forward_pre_hook(note(given, name)).remove)
        call(net, example_inputs)
    rows: dict[str, dict[str, Tensor]] = {}
    names = list(projected)
    for name, size in sizes.items():
        heads = given[name].unflatten(-1, (-1, size))
        direction = torch.randn(heads.shape, generator=torch.Generator().manual_seed(0)).to(heads)
        reached: dict[str, list[Tensor]] = {layer: [] for layer in names}
        for head in range(len(scales[name].factor) // size):
            seen = (heads[..., head, :] * direction[..., head, :]).sum()
            outputs = [projected[layer] for layer in names]
            gradients = torch.autograd.grad(seen, outputs, retain_graph=True, allow_unused=True, materialize_grads=True)
            for layer, gradient in zip(names, gradients):
                reached[layer].append((gradient != 0).flatten(0, -2).any(0))
        table = {layer: torch.stack(flags) for layer, flags in reached.items()}
        rows[name] = {
            layer: torch.where(flags.any(0), flags.int().argmax(0), -1)
            for layer, flags in table.items()
            if (flags.sum(0) <= 1).all() and flags.any(1).all()
        }
    return rows


def _remove(net: nn.Module, name: str, heads: Tensor, size: int, rows: Mapping[str, Tensor], with_width: bool) -> None:
    """Takes heads out, in place."""
    scaled = net.get_submodule(name.rpartition(".")[0])
    scale: Any = net.get_submodule(name)
    elements = heads.repeat_interleave(size)
    for layer, owner in rows.items():
        gone = (heads[owner] & (owner >= 0)).nonzero().flatten().tolist()
        take_out(net.get_submodule(layer), "out", gone)
    take_out(scaled.module, "in", elements.nonzero().flatten().tolist())
    scale.factor = scale.factor[~elements]
    _count_heads(net, name, ~heads, size, with_width)


def _count_heads(net: nn.Module, name: str, kept: Tensor, size: int, with_width: bool) -> None:
    """Tells the attention that its heads are fewer: the innermost module around a multiplication that counts them."""
    before, after = len(kept), int(kept.sum())
    while name:
        name = name.rpartition(".")[0]
        attention = net.get_submodule(name)
        if isinstance(attention, Attention):
            return attention.keep_heads(kept)
        counts = [key for key in HEAD_COUNTS if vars(attention).get(key) == before]
        for key in counts:
            setattr(attention, key, after)
        if counts and with_width:
            for key, value in list(vars(attention).items()):
                if type(value) is int and value == before * size and not key.startswith("_"):
                    setattr(attention, key, after * size)
        if counts:
            return None
    return None
