# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Attention heads that are multiplied by 0, taken out of a network with all that is theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy, deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.compaction.coupling.rounding import Rounding
from pyro_bmrs.pruning.compaction.coupling.ties import Channel
from pyro_bmrs.pruning.compaction.modules.attention import Attention
from pyro_bmrs.pruning.compaction.modules.scaling import Scaled, scales_of
from pyro_bmrs.pruning.compaction.modules.shared_positions import SharedPositions
from pyro_bmrs.pruning.compaction.surgery.attempts import attempt, most_that_work
from pyro_bmrs.pruning.compaction.surgery.removal import LAST
from pyro_bmrs.pruning.examples import Outputs, call, evaluation
from pyro_bmrs.pruning.layers import GROUP_COUNTS, HEAD_COUNTS, layer_kind, num_channels, take_out


class HeadPlace(NamedTuple):
    """
    Where heads are multiplied.

    :param size: the features of one of them.
    :param attention: the name of the attention that they are in.
    """

    size: int
    attention: str


class _Part(NamedTuple):
    """
    A parameter that belongs to heads.

    :param name: its name.
    :param dim: the dimension of it that is divided among the heads.
    :param owners: for each place along this dimension the head; -1 for none.
    """

    name: str
    dim: int
    owners: Tensor


def remove_heads(
    net: nn.Module,
    places: Mapping[str, HeadPlace],
    example_inputs: Any,
    outputs: Outputs,
    importance: Mapping[str, Tensor],
    rounding: Rounding | None = None,
    merits: Mapping[str, Tensor] | None = None,
) -> tuple[nn.Module, dict[Channel, str]]:
    """
    Takes attention heads out of a network, with all of the attention's parameters that are theirs: rows of what makes
    queries, keys and values, and columns of tables of positions.

    Which these are is seen from the gradients of what the output projection is given. An attention that is no
    :class:`Attention` holds its number of heads as an attribute, and perhaps what its heads are wide together.

    :param net: a network with multiplications of what output projections are given; left as it is.
    :param places: for the name of each of these multiplications, the heads.
    :param example_inputs: what the network is called with.
    :param outputs: its outputs, which do not change.
    :param importance: for each of these multiplications, which of its elements to rather keep if none would be left.
    :param rounding: what sizes are rounded up to; by default they are not.
    :param merits: for each of these multiplications, which of its elements to rather keep for that; by default those
        that are important.
    :return: the smaller network, and why elements of the multiplications that are 0 are still there.
    """
    scales = scales_of(net)
    rounding = rounding or Rounding()
    merits = importance if merits is None else merits
    left: dict[Channel, str] = {}
    gone: dict[str, Tensor] = {}
    for name, (size, attention) in places.items():
        zero = (scales[name].factor == 0).unflatten(0, (-1, size)).all(1)
        if zero.all():
            best = importance[name].unflatten(0, (-1, size)).sum(1).argmax()
            zero[best] = False
            left.update(dict.fromkeys(_elements(name, best.reshape(1), size), LAST))
        if zero.any():
            left.update(
                _fill(
                    name,
                    zero,
                    size,
                    rounding or Rounding(),
                    attention,
                    (importance if merits is None else merits)[name],
                )
            )
        if zero.any():
            gone[name] = zero
    if not gone:
        return net, left
    parts = _parts_of_heads(net, {name: places[name] for name in gone}, example_inputs)

    def without(net: nn.Module, with_width: bool, chosen: Sequence[str]) -> nn.Module:
        smaller = deepcopy(net)
        for name in chosen:
            _remove(smaller, name, gone[name], places[name], parts[name], with_width)
        return smaller

    def most(net: nn.Module, names: Sequence[str], with_width: bool) -> tuple[nn.Module, dict[str, str]]:
        smaller, failed = most_that_work(names, partial(without, net, with_width), outputs)
        return smaller, {names[place]: reason for place, reason in failed.items()}

    # Some attentions hold the width of all heads as well: tried where their number alone is not enough. What goes for
    # all is found at once.
    for with_width in (False, True):
        whole, _ = attempt(partial(without, net, with_width, list(gone)), outputs)
        if whole is not None:
            return whole, left
    smaller, failed = most(net, list(gone), False)
    if failed:
        smaller, failed = most(smaller, list(failed), True)
    for name, reason in failed.items():
        left.update(dict.fromkeys(_elements(name, gone[name].nonzero().flatten(), places[name].size), reason))
    return smaller, left


def _fill(name: str, gone: Tensor, size: int, rounding: Rounding, attention: str, merits: Tensor) -> dict[Channel, str]:
    """Takes heads out of those that go so that the size is a multiple, in place, and tells why they are there."""
    number, reason = rounding.fill(frozenset({attention}), int((~gone).sum()), len(gone), size)
    of_heads = merits.unflatten(0, (-1, size)).sum(1).masked_fill(~gone, -torch.inf)
    back = of_heads.topk(number).indices
    gone[back] = False
    return dict.fromkeys(_elements(name, back, size), reason)


def _elements(name: str, heads: Tensor, size: int) -> list[Channel]:
    elements = (heads.unsqueeze(-1) * size + torch.arange(size, device=heads.device)).flatten().tolist()
    return [Channel(name, "through", element) for element in elements]


def _parts_of_heads(net: nn.Module, places: Mapping[str, HeadPlace], example_inputs: Any) -> dict[str, list[_Part]]:
    """For each multiplication, the parameters of the attention of which each head has a part of its own."""
    given: dict[str, Tensor] = {}
    net = deepcopy(net).requires_grad_(True)

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # What an attention that is called again makes of its own results is of all heads.
        given.setdefault(name, args[0])

    hooks = [net.get_submodule(name).register_forward_pre_hook(partial(note, name)) for name in places]
    try:
        with evaluation(net), torch.enable_grad():
            call(net, example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for name, place in places.items():
        attention = place.attention
        found[name] = _parts_within(net, attention, given[name], place.size)
        # An attention that is no more than its output projection is in what is around it.
        while attention and not any(part.owners.numel() > 1 for part in found[name]):
            attention = attention.rpartition(".")[0]
            found[name] = _parts_within(net, attention, given[name], place.size)
    return found


def _parts_within(net: nn.Module, attention: str, given: Tensor, size: int) -> list[_Part]:
    if not given.requires_grad:  # A weight that torch's function takes is multiplied, and nothing that is made.
        return []
    prefix = f"{attention}." if attention else ""
    parameters = {f"{prefix}{name}": part for name, part in net.get_submodule(attention).named_parameters()}
    heads = given.unflatten(-1, (-1, size))
    direction = torch.randn(heads.shape, generator=torch.Generator().manual_seed(0)).to(heads)
    reached: dict[tuple[str, int], list[Tensor]] = {}
    for head in range(heads.shape[-2]):
        seen = (heads[..., head, :] * direction[..., head, :]).sum()
        gradients = torch.autograd.grad(
            seen, list(parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for (name, parameter), gradient in zip(parameters.items(), gradients):
            for dim in range(parameter.dim()):
                along = gradient.movedim(dim, 0).flatten(1) if parameter.dim() > 1 else gradient.unsqueeze(1)
                reached.setdefault((name, dim), []).append((along != 0).any(1))
    parts = []
    for (name, dim), flags in reached.items():
        table = torch.stack(flags)
        if (table.sum(0) <= 1).all() and table.any(1).all():
            parts.append(_Part(name, dim, torch.where(table.any(0), table.int().argmax(0), -1)))
    return parts


def _remove(
    net: nn.Module, name: str, heads: Tensor, place: HeadPlace, parts: Sequence[_Part], with_width: bool
) -> None:
    """Takes heads out, in place."""
    scaled = net.get_submodule(name.rpartition(".")[0])
    scale: Any = net.get_submodule(name)
    elements = heads.repeat_interleave(place.size)
    attention = net.get_submodule(place.attention)
    projections = [f"{place.attention}.{name}." for name in ("q", "k", "v")]
    for part in parts:
        # A bias of positions that others share stays whole.
        if isinstance(attention, SharedPositions) and not part.name.startswith(tuple(projections)):
            continue
        _take_part(net, part, (heads[part.owners] & (part.owners >= 0)).nonzero().flatten().tolist())
    take_out(scaled.module, "in", elements.nonzero().flatten().tolist())
    scale.factor = scale.factor[~elements]
    _count_heads(net, place, ~heads, with_width)


def _take_part(net: nn.Module, part: _Part, places: Sequence[int]) -> None:
    """Takes some places of a parameter out, and of what goes with it."""
    name, _, attribute = part.name.rpartition(".")
    layer: Any = net.get_submodule(name)
    kind = layer_kind(layer)
    # A layer's weight goes first or last; its bias goes with it.
    if kind is not None and attribute == "bias" and num_channels(layer, "out") != len(part.owners):
        return
    if kind is not None and not kind.is_channelwise and attribute in ("weight", "bias"):
        take_out(layer, "out", places)
        around = net.get_submodule(name.rpartition(".")[0])
        if isinstance(around, Scaled) and around.when == "output":
            around.scale.factor = _without(around.scale.factor, 0, places)
        return
    if isinstance(layer, Attention):  # It sees to its own when its heads are counted.
        return
    parameter = getattr(layer, attribute)
    setattr(layer, attribute, nn.Parameter(_without(parameter.detach(), part.dim, places), parameter.requires_grad))
    for other, buffer in _like(layer, parameter):
        setattr(layer, other, _without(buffer, part.dim, places))


def _like(layer: nn.Module, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Buffers beside a parameter of numbers for each feature of the heads, as keys without a bias have."""
    for name, buffer in list(layer.named_buffers(recurse=False)):
        if parameter.dim() == 1 and buffer.shape == parameter.shape and buffer.is_floating_point():
            yield name, buffer


def _without(tensor: Tensor, dim: int, places: Sequence[int]) -> Tensor:
    kept = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
    kept[list(places)] = False
    return tensor.index_select(dim, kept.nonzero().flatten())


def _count_heads(net: nn.Module, place: HeadPlace, kept: Tensor, with_width: bool) -> None:
    """Tells the attention, and what is in it, that its heads are fewer."""
    before, after = len(kept), int(kept.sum())
    attention = net.get_submodule(place.attention)
    if isinstance(attention, Attention):
        return attention.keep_heads(kept)
    if isinstance(attention, SharedPositions):
        attention.keep_heads(kept)
    for module in attention.modules():
        for key, value in list(vars(module).items()):
            is_number = type(value) is int and not key.startswith("_") and layer_kind(module) is None
            is_count = key in HEAD_COUNTS or key in GROUP_COUNTS
            is_width = with_width and value == before * place.size
            # Of queries, as many heads as share each of keys and values are counted for one.
            if is_number and ((is_count and value % before == 0) or is_width):
                setattr(module, key, value // before * after)
            if with_width and not isinstance(value, Tensor | nn.Module) and _counts_heads(value, before):
                # Settings that others hold too stay theirs.
                own = copy(value)
                for count in _counts_heads(value, before):
                    setattr(own, count, getattr(value, count) // before * after)
                setattr(module, key, own)
    return None


def _counts_heads(settings: Any, before: int) -> list[str]:
    """The attributes by which an object of settings, as transformers have one for a network, counts heads."""
    held = getattr(settings, "__dict__", {})
    names = HEAD_COUNTS + GROUP_COUNTS
    return [name for name in names if type(held.get(name)) is int and held[name] and held[name] % before == 0]
