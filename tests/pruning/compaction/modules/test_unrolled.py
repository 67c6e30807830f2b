# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is written out computes what torch's cells and layers do, and becomes one of these again."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning.compaction.modules.recurrence import Recurrence
from pyro_bmrs.pruning.compaction.modules.scaling import Scale
from pyro_bmrs.pruning.compaction.modules.unrolled import Steps, UnrolledCell

CELLS = [nn.RNNCell, partial(nn.RNNCell, nonlinearity="relu"), nn.LSTMCell, nn.GRUCell]
LAYERS = [nn.RNN, partial(nn.RNN, nonlinearity="relu"), nn.LSTM, nn.GRU]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell(kind: Any, bias: bool) -> None:
    cell = kind(3, 4, bias=bias).double()
    unrolled = UnrolledCell.of(cell)
    assert isinstance(unrolled, type(cell)) and (unrolled.input_size, unrolled.hidden_size, unrolled.bias) == (
        3,
        4,
        bias,
    )
    given, state = torch.randn(2, 3).double(), torch.randn(2, 4).double()
    state = (state, 2 * state) if isinstance(cell, nn.LSTMCell) else state
    fused = unrolled.fused()
    assert type(fused) is type(cell) and fused.bias is bias
    for other in (unrolled, fused):
        for own, its in ((cell(given), other(given)), (cell(given, state), other(given, state))):
            torch.testing.assert_close(own, its, rtol=1e-13, atol=1e-13)
    with pytest.raises(ReductionError, match="cell has 4 hidden units, and was given a first state of 5"):
        unrolled(given, torch.randn(2, 5).double())


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_whose_units_are_multiplied(kind: Any) -> None:
    layer, factor = kind(3, 4).double(), torch.tensor([0.5, 0.0, 1.0, 2.0]).double()
    steps = Recurrence.of(layer).sweeps[0].layer
    assert isinstance(steps, Steps)
    steps.seen = Scale(factor, -1)
    outputs, state = steps(torch.randn(5, 2, 3).double())
    assert not outputs[..., 1].any() and torch.equal(outputs[-1], state[0])
    # Its gates read the products, which are in the weights of the one that it becomes.
    fused = steps.fused()
    assert torch.equal(fused.weight_hh_l0, layer.weight_hh_l0 * factor) and torch.equal(
        fused.bias_hh_l0, layer.bias_hh_l0
    )
    given = torch.randn(5, 2, 3).double()
    torch.testing.assert_close(fused(given)[0] * factor, steps(given)[0], rtol=1e-13, atol=1e-13)


def test_a_constant_that_a_layer_without_biases_takes_over() -> None:
    steps = Recurrence.of(nn.GRU(3, 4, bias=False)).sweeps[0].layer
    steps.input.bias = nn.Parameter(torch.ones(12))
    fused = steps.fused()
    assert fused.bias and torch.equal(fused.bias_ih_l0, torch.ones(12)) and not fused.bias_hh_l0.any()
    given = torch.randn(5, 2, 3)
    torch.testing.assert_close(fused(given)[0], steps(given)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_sequences_of_several_lengths(kind: Any) -> None:
    layer = kind(3, 4, num_layers=2, bidirectional=True).double()
    packed = pack_padded_sequence(torch.randn(6, 4, 3).double(), torch.tensor([2, 6, 1, 6]), enforce_sorted=False)
    state = torch.randn(4, 4, 4).double()
    given: Any = (state, 2 * state) if kind is nn.LSTM else state
    for own, its in (
        (layer(packed), Recurrence.of(layer)(packed)),
        (layer(packed, given), Recurrence.of(layer)(packed, given)),
    ):
        torch.testing.assert_close(own[0].data, its[0].data, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own[1], its[1], rtol=1e-12, atol=1e-12)
        assert torch.equal(own[0].unsorted_indices, its[0].unsorted_indices)
