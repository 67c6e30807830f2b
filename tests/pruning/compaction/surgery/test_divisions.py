# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Modules that hold the sizes of the parts into which they divide channels hold the new ones."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from pyro_bmrs.pruning.compaction.coupling.ties import Channel
from pyro_bmrs.pruning.compaction.surgery.divisions import resize_divisions


def parts(*sizes: int) -> list[list[Channel]]:
    channels = iter(range(sum(sizes)))
    return [[Channel("layer", "out", next(channels)) for _ in range(size)] for size in sizes]


def gone(*positions: int) -> set[Channel]:
    return {Channel("layer", "out", position) for position in positions}


@pytest.mark.parametrize(
    "sizes, out, value, resized",
    [
        ((4, 4), (0, 4), 4, 3),  # the size of each part
        ((4, 4), (0, 4), [4, 4], [3, 3]),
        ((4, 4), (0, 4), (4, 4), (3, 3)),
        ((2, 6), (1, 5, 6), [2, 6], [1, 4]),
        ((2, 6), (1, 5, 6), 6, 4),
        ((2, 2, 2), (0, 1), 3, 2),  # the number of parts, one of which is gone
        ((2, 2, 2), (0, 1), 2, 2),
        ((4, 4), (0, 4), 8, 6),  # half of which is the size of each part
        ((4, 4), (0, 4), 9, 9),  # of something else
        ((4, 4), (0, 4), "4", "4"),
        ((4, 4), (0, 4), True, True),
    ],
)
def test_an_attribute_of_the_old_size_is_of_the_new(sizes, out, value, resized):
    module: Any = nn.Identity()
    module.held = value
    resize_divisions(nn.Sequential(module), [("0", parts(*sizes))], gone(*out), gone(*out))
    assert module.held == resized and type(module.held) is type(value)


def test_the_size_of_all_is_of_something_else_beside_that_of_a_part():
    module: Any = nn.Identity()
    module.held, module.other = 4, 8
    resize_divisions(nn.Sequential(module), [("0", parts(4, 4))], gone(0, 4), gone(0, 4))
    assert (module.held, module.other) == (3, 8)


def test_what_is_not_looked_at_stays():
    module: Any = nn.Identity()
    module.held = 4
    resize_divisions(nn.Sequential(module), [("0", parts(4, 4))], gone(0, 4), set())
    assert module.held == 4
