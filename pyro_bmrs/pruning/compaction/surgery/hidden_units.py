# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Hidden units of experts that are multiplied by 0, taken out of all experts; the other factors are in the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.compaction.coupling.rounding import Rounding
from pyro_bmrs.pruning.compaction.coupling.ties import Channel
from pyro_bmrs.pruning.compaction.modules.scaling import Scaled, scales_of, substitute
from pyro_bmrs.pruning.compaction.surgery.attempts import most_that_work
from pyro_bmrs.pruning.compaction.surgery.removal import LAST
from pyro_bmrs.pruning.examples import Outputs
from pyro_bmrs.pruning.streams.experts import take_out_of_experts


def remove_hidden_units(
    net: nn.Module,
    outputs: Outputs,
    importance: Mapping[str, Tensor],
    rounding: Rounding,
    merits: Mapping[str, Tensor],
) -> tuple[nn.Module, set[str], dict[Channel, str]]:
    """
    The network with experts that have fewer hidden units.

    :param net: a network with multiplications; left as it is.
    :param outputs: its outputs, which do not change.
    :param importance: for the name of each multiplication, which of its units to rather keep if none would be left.
    :param rounding: what sizes are rounded up to.
    :param merits: for the name of each multiplication, which of its units to rather keep for that.
    :return: the network, in which no hidden units of experts are multiplied; the names of their multiplications; and
        why units are still there.
    """
    around = {name: part for name, part in net.named_modules() if isinstance(part, Scaled) and part.when == "hidden"}
    names = {name: place for place, scale in scales_of(net).items() for name in around if around[name].scale is scale}
    if not around:
        return net, set(), {}
    gone: dict[str, Tensor] = {}
    left: dict[Channel, str] = {}
    for name, part in around.items():
        place, zero = names[name], part.scale.factor == 0
        gone[name] = zero.clone()
        if zero.all():
            gone[name][importance[place].argmax()] = False
            left.update(dict.fromkeys(_channels(place, ~gone[name]), LAST))
            continue
        number, reason = rounding.fill(frozenset({name}), int((~zero).sum()), len(zero), 1)
        best = torch.where(zero, merits[place].to(part.scale.factor), -torch.inf).argsort(descending=True, stable=True)
        gone[name][best[:number]] = False
        left.update(dict.fromkeys(_channels(place, zero & ~gone[name]), reason))

    def without(chosen: Sequence[str]) -> nn.Module:
        smaller = deepcopy(net)
        for name in around:
            _fold(smaller, name, gone[name] if name in chosen else None)
        return smaller

    order = list(around)
    smaller, failed = most_that_work(order, without, outputs)
    for number, reason in failed.items():
        left.update(dict.fromkeys(_channels(names[order[number]], gone[order[number]]), reason))
    return smaller, set(names.values()), left


def _fold(net: nn.Module, name: str, gone: Tensor | None) -> None:
    """Has experts multiply by their weights, and have only the hidden units that are not gone, in place."""
    part: Any = net.get_submodule(name)
    module: Any = part.module
    module.down_proj = nn.Parameter(part.scale(module.down_proj.detach()), module.down_proj.requires_grad)
    if gone is not None:
        take_out_of_experts(module, "hidden", gone.nonzero().flatten().tolist())
    substitute(net, part, module)


def _channels(place: str, units: Tensor) -> list[Channel]:
    return [Channel(place, "through", unit) for unit in units.nonzero().flatten().tolist()]
