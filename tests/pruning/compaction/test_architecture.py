# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is described of a network is what another is made by, and no more than that."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.architecture import describe, is_plain, rebuild
from pyro_bmrs.pruning.compaction.modules.recurrence import Recurrence
from pyro_bmrs.pruning.compaction.modules.scaling import Scale


def test_nothing_is_said_of_what_is_the_same() -> None:
    net = nn.Sequential(nn.GRU(2, 3, bidirectional=True), nn.LSTMCell(2, 3), nn.Linear(3, 2), nn.GroupNorm(1, 2))
    assert describe(net, copy.deepcopy(net)) == {}
    assert describe(nn.Linear(3, 4), nn.Linear(3, 2)) == {"attributes": {"out_features": 2}}


def test_what_a_forward_has_stored_is_none_of_the_architecture() -> None:
    called = nn.Linear(3, 4)
    called.seen = 5
    assert describe(nn.Linear(3, 4), called) == {}


@pytest.mark.parametrize("sizes", [[10**12, 1], [4, 5], [9, -1], [2.5], [], "4", None])
def test_groups_that_no_norm_had(sizes: Any) -> None:
    """Which there is no memory for, as one of them."""
    description = {"uneven_groups": sizes, "eps": 1e-5, "affine": True}
    with pytest.raises(ReductionError, match="of a GroupNorm with 8 channels"):
        rebuild(nn.GroupNorm(2, 8), description)
    with pytest.raises(ReductionError, match="no part of a Linear"):
        rebuild(nn.Linear(2, 8), description)


def uneven(scaled: bool) -> Any:
    recurrence = Recurrence.of(nn.LSTM(3, 4, 2, dropout=0.5, batch_first=True)).in_parts()
    recurrence.get_submodule("l1").layer = nn.LSTM(4, 2)
    if scaled:
        # Of which the file says how many there are.
        recurrence.get_submodule("l1").seen = Scale(torch.ones(1), -1)
    return recurrence


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (nn.LSTM(3, 4, 2, dropout=0.5), nn.LSTM(2, 1, 2, dropout=0.5)),
        (nn.GRU(3, 4, bias=False), nn.GRU(3, 2)),
        (nn.RNNCell(3, 4, nonlinearity="relu"), nn.RNNCell(3, 2, nonlinearity="relu")),
        (nn.LSTM(3, 4, 2, dropout=0.5, batch_first=True), uneven(False)),
        (nn.LSTM(3, 4, 2, dropout=0.5, batch_first=True), uneven(True)),
        (uneven(True), nn.LSTM(3, 2, 2, dropout=0.5, batch_first=True)),
    ],
)
def test_recurrent_layers(old: Any, new: Any) -> None:
    made = rebuild(
        nn.ModuleDict({"a": copy.deepcopy(old)}).eval(), describe(nn.ModuleDict({"a": old}), nn.ModuleDict({"a": new}))
    )
    assert repr(made["a"]) == repr(new) and not made["a"].training
    if not isinstance(new, Recurrence):  # Of which shapes are those of the file.
        assert {n: p.shape for n, p in made["a"].named_parameters()} == {n: p.shape for n, p in new.named_parameters()}


def test_recurrent_layers_that_there_were_not() -> None:
    for description in ({"recurrent": [3, 10**12, True]}, {"recurrent": [3, 2, "yes"]}, {"recurrent": [-1, 2, True]}):
        with pytest.raises(ReductionError, match="no part of GRU"):
            rebuild(nn.GRU(3, 4), description)
    for description in ({"recurrent": [3, 4, True]}, {"recurrence": True}):
        with pytest.raises(ReductionError, match="recurrent layer, not a Linear"):
            rebuild(nn.Linear(3, 4), description)


def test_plain_data() -> None:
    assert is_plain((1, [2.0, "a", None, (True,)])) and not is_plain([1, {2}]) and not is_plain(torch.ones(1))
