# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Sizes that are rounded up: which of the units that could go stay, as what they are made of is faster so."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from torch import Tensor

from pyro_bmrs.pruning.compaction.coupling.ties import TiedChannels

# Modules whose channels go together.
Layers = frozenset[str]
# In the place of a multiple: the size that there was.
WHOLE = 0


@dataclass(frozen=True)
class Rounding:
    """
    What sizes are rounded up to.

    :param multiple: a size is rounded up to the next multiple of this, and at most to what there was.
    :param multiples: for some layers another; :data:`WHOLE` for all that there was.
    :param asked: collects which layers there are, for which it was asked.
    """

    multiple: int = 1
    multiples: Mapping[Layers, int] = field(default_factory=dict)
    asked: set[Layers] = field(default_factory=set)

    def fill(self, layers: Layers, left: int, whole: int, per_unit: int) -> tuple[int, str]:
        """
        How many units come back.

        :param layers: the modules that they are of.
        :param left: how many are left.
        :param whole: how many there were.
        :param per_unit: how many channels, or features, each of them is.
        :return: the number, and why.

        Example::

            >>> Rounding(8).fill(frozenset({"0"}), 9, 50, 1)
            (7, 'with them its size is a multiple of 8')
        """
        self.asked.add(layers)
        multiple = self.multiples.get(layers, self.multiple)
        if multiple == WHOLE:
            return whole - left, "with them it is as it was, which is faster"
        size = next((size for size in range(left, whole) if size * per_unit % multiple == 0), whole)
        even = whole * per_unit % multiple == 0 or size < whole
        reason = f"with them its size is a multiple of {multiple}"
        return size - left, reason if even else f"{reason}, or what it was"


def spared(
    rounding: Rounding,
    ties: Sequence[TiedChannels],
    going: Set[TiedChannels],
    merits: Mapping[str, Tensor],
) -> dict[TiedChannels, str]:
    """
    Which channels that could go come back, and why.

    :param rounding: what sizes are rounded up to.
    :param ties: all channels that go together.
    :param going: those of them that could go.
    :param merits: for the name of each multiplication, for each of its elements what speaks for keeping it.
    """
    by_layers: dict[Layers, list[TiedChannels]] = defaultdict(list)
    for tie in ties:
        by_layers[frozenset(channel.module for channel in tie.channels)].append(tie)
    back: dict[TiedChannels, str] = {}
    for layers, own in by_layers.items():
        candidates = [tie for tie in own if tie in going]
        if not candidates:
            continue
        # Behind a flattening, a channel is several; in a layer of groups, one of each.
        counts = Counter((channel.module, channel.side) for channel in candidates[0].channels)
        number, reason = rounding.fill(layers, len(own) - len(candidates), len(own), min(counts.values()))
        best = sorted(candidates, key=lambda tie: (-merit(tie, merits), sorted(tie.channels)))
        back.update(dict.fromkeys(best[:number], reason))
    return back


def merit(tie: TiedChannels, merits: Mapping[str, Tensor]) -> float:
    """What speaks for keeping channels that go together: the sum over those of which it is known."""
    through = tie.of("through").items()
    return sum(merits[name][channels].sum().item() for name, channels in through if name in merits)
