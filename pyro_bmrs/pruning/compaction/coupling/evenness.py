# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Channels of recurrent layers all of whose parts have to be equally wide, as their final states are taken together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from torch import nn

from pyro_bmrs.pruning.compaction.coupling.ties import TiedChannels
from pyro_bmrs.pruning.compaction.modules.recurrence import Recurrence
from pyro_bmrs.pruning.compaction.modules.unrolled import Steps

UNEVEN = "the final states of all layers and directions are taken together, so that these have to be equally wide"


def equally_many(net: nn.Module, ties: Iterable[TiedChannels]) -> list[tuple[list[TiedChannels], list[TiedChannels]]]:
    """
    As many channels of each part of a recurrent layer as can go from all of them.

    :param net: a network whose recurrent layers are written out.
    :param ties: the channels that can go but for that.
    :return: for each recurrent layer, or several whose channels are tied, those that go together, and those that stay.
    """
    parts = {
        f"{name}.{inner}.hidden": name
        for name, recurrence in net.named_modules()
        if isinstance(recurrence, Recurrence)
        for inner, module in recurrence.named_modules()
        if isinstance(module, Steps)
    }
    by_layer: dict[frozenset[str], dict[frozenset[str], list[TiedChannels]]] = defaultdict(lambda: defaultdict(list))
    for tie in ties:
        touched = frozenset(name for name in tie.of("in") if name in parts)
        by_layer[frozenset(parts[name] for name in touched)][touched].append(tie)
    together = []
    for layers, by_parts in by_layer.items():
        touched_once = sorted(name for group in by_parts for name in group)
        if len(by_parts) > 1 and touched_once == sorted(name for name, layer in parts.items() if layer in layers):
            fewest = min(map(len, by_parts.values()))
            ways = (slice(fewest), slice(fewest, None))
            chosen, others = ([tie for group in by_parts.values() for tie in group[way]] for way in ways)
            together.append((chosen, others))
    return together
