# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Sizes are rounded up by the units that are worth most."""

from __future__ import annotations

import pytest
import torch

from pyro_bmrs.pruning.compaction.coupling.rounding import WHOLE, Rounding, spared
from pyro_bmrs.pruning.compaction.coupling.ties import Channel, TiedChannels

LAYERS = frozenset({"layer", "scale"})


@pytest.mark.parametrize(
    ("multiple", "left", "whole", "per_unit", "back"),
    [
        *((1, 5, 50, 1, 0), (8, 5, 50, 1, 3), (8, 8, 50, 1, 0), (8, 49, 50, 1, 1), (64, 3, 50, 1, 47)),
        # Of units of several channels, the channels are counted.
        *((8, 3, 12, 4, 1), (8, 3, 12, 16, 0), (16, 1, 12, 12, 3), (WHOLE, 1, 12, 12, 11)),
    ],
)
def test_how_many_come_back(multiple: int, left: int, whole: int, per_unit: int, back: int) -> None:
    rounding = Rounding(multiple)
    assert rounding.fill(LAYERS, left, whole, per_unit)[0] == back
    assert rounding.asked == {LAYERS}


def test_layers_have_multiples_of_their_own() -> None:
    rounding = Rounding(1, {LAYERS: 8})
    assert [rounding.fill(layers, 3, 9, 1)[0] for layers in (LAYERS, frozenset({"other"}))] == [5, 0]


def ties(layer: str, count: int) -> list[TiedChannels]:
    """Channels of a layer with a multiplication, each of them two pixels of the next."""
    return [
        TiedChannels(
            frozenset(
                {
                    *(Channel(layer, "out", place), Channel(f"{layer}.scale", "through", place)),
                    *(Channel(f"{layer}.next", "in", 2 * place + pixel) for pixel in range(2)),
                }
            )
        )
        for place in range(count)
    ]


def test_the_best_come_back() -> None:
    one, other = ties("one", 6), ties("other", 5)
    merits = {"one.scale": torch.tensor([-1.0, -5.0, -2.0, -4.0, -3.0, -6.0])}
    # Two of one are left, and three of the other, of which nothing is known: the first in order comes back.
    back = spared(Rounding(4), [*one, *other], {*one[:4], *other[:2]}, merits)
    assert back.keys() == {one[0], one[2], other[0]}
    assert all("multiple of 4" in reason for reason in back.values())
    assert not spared(Rounding(), [*one, *other], {*one[:4], *other[:2]}, merits)
