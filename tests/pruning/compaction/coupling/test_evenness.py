# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Of layers that have to be equally wide, as many channels go of each as can of all."""

from __future__ import annotations

from torch import nn

from pyro_bmrs.pruning.compaction.coupling.evenness import equally_many
from pyro_bmrs.pruning.compaction.coupling.ties import Channel, TiedChannels
from pyro_bmrs.pruning.compaction.modules.recurrence import unroll


def ties(**units: list[int]) -> list[TiedChannels]:
    """Channels of hidden units, by the name of the part."""
    return [
        TiedChannels(
            frozenset({Channel(f"{part.replace('_of_', '.')}.layer.hidden", "in", unit), Channel("last", "in", unit)})
        )
        for part, numbers in units.items()
        for unit in numbers
    ]


def test_as_many_of_each_part() -> None:
    net = nn.ModuleDict({"a": nn.GRU(2, 4, bidirectional=True), "b": nn.LSTM(2, 4, 2), "last": nn.Linear(8, 1)})
    unroll(net)
    given = ties(a_of_l0=[0, 2, 3], a_of_l0_reverse=[1, 2], b_of_l0=[0])
    [(together, others)] = equally_many(net, given)
    assert together == [*given[:2], *given[3:5]] and others == given[2:3]
    # Of another part of the second none can go, and so of the first.
    assert not equally_many(net, ties(b_of_l0=[0]))
    assert not equally_many(net, [TiedChannels(frozenset({Channel("last", "in", 0)}))])


def test_parts_that_are_tied() -> None:
    net = nn.ModuleDict({"a": nn.GRU(2, 4, 2), "b": nn.GRU(2, 4, 2)})
    unroll(net)
    both = [
        TiedChannels(one.channels | other.channels)
        for one, other in zip(ties(a_of_l0=[0, 1], a_of_l1=[2]), ties(b_of_l0=[0, 1], b_of_l1=[2]))
    ]
    assert equally_many(net, both) == [([both[0], both[2]], [both[1]])]
    # By itself a part may be of any width.
    assert not equally_many(net, both[:2])
