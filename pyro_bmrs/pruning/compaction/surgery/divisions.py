# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Sizes that modules hold of the parts into which they divide channels, as what splits them is told."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence, Set
from typing import Any

from torch import nn

from pyro_bmrs.pruning.compaction.coupling.ties import Channel, TiedChannels

Divisions = Sequence[tuple[str, list[list[Channel]]]]


def resize_divisions(net: nn.Module, divisions: Divisions, gone: Set[Channel], looked_at: Set[Channel]) -> None:
    """
    Tells modules that divide channels into parts of the new sizes of these, in place.

    A module's attributes that are the size of a part, the number of parts, or the sizes of all of them, are taken for
    these; where there are none, those that are the size of all parts together, by which the code may know the others.
    Whether they are is seen from what the network then computes.

    :param net: the network, whose channels are gone.
    :param divisions: where channels were divided, and into which parts.
    :param gone: the channels that are gone.
    :param looked_at: of these, those whose divisions are to be told.
    """
    changes: dict[str, list[tuple[list[int], list[int]]]] = {}
    for place, parts in divisions:
        if any(channel in looked_at for part in parts for channel in part):
            before, after = [len(part) for part in parts], [sum(c not in gone for c in part) for part in parts]
            changes.setdefault(place, []).append((before, after))
    for name, sizes in changes.items():
        module = net.get_submodule(name)
        held = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        resized = {key: _resized(value, sizes, _numbers(sizes)) for key, value in held.items()}
        if resized == held:
            totals = _numbers([([sum(before)], [sum(after)]) for before, after in sizes])
            resized = {key: _resized(value, [], totals) for key, value in held.items()}
        for key, value in resized.items():
            if value is not held[key]:
                setattr(module, key, value)


def divided_by(divisions: Divisions, ties: Collection[TiedChannels]) -> str:
    """What is said of the modules that divide channels which cannot be taken out."""
    channels = {channel for tie in ties for channel in tie.channels}
    names = [name or "the network" for name, parts in divisions if any(channels.intersection(part) for part in parts)]
    listed = ", ".join(dict.fromkeys(names))
    return (
        f"; {listed} divides them into parts: have its forward ask tensors for their sizes, and they can go"
        if listed
        else ""
    )


def _numbers(sizes: Sequence[tuple[list[int], list[int]]]) -> dict[int, int]:
    """What becomes of the sizes and numbers of parts, of those of which that is one thing."""
    found: dict[int, set[int]] = {}
    for before, after in sizes:
        # A part that is gone as a whole is told by the number of parts.
        left = [(one, other) for one, other in zip(before, after) if other]
        counts = [(len(before), len(left))] if len(left) < len(before) else []
        for one, other in [*left, *counts]:
            found.setdefault(one, set()).add(other)
    return {one: others.pop() for one, others in found.items() if len(others) == 1}


def _resized(value: Any, sizes: Sequence[tuple[list[int], list[int]]], numbers: dict[int, int]) -> Any:
    if type(value) is int:
        return numbers.get(value, value)
    if isinstance(value, tuple | list) and value and all(type(part) is int for part in value):
        for before, after in sizes:
            if list(value) == before:
                return type(value)(after)
            if math.prod(value) == sum(before):
                return type(value)(numbers.get(part, part) for part in value)
    return value
