# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What recurrent layers are made of, against what they compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import attach_noise, noise_sites, unit_costs
from pyro_bmrs.pruning.noise.recognition.recurrences import num_steps, parts_of, rows_of_units, why_without_noise
from tests.pruning.recurrent import Loop, Tagger


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_parts_have_the_names_and_the_order_of_torch(kind: Any) -> None:
    layer = kind(3, 4, num_layers=2, bidirectional=True)
    names = [f"weight_{source}_{part.name}" for part in parts_of(layer) for source in ("ih", "hh")]
    assert names == [name for name, _ in layer.named_parameters() if name.startswith("weight")]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU, nn.LSTMCell])
def test_the_rows_of_a_unit_are_what_its_first_state_depends_on(kind: Any) -> None:
    layer = kind(3, 4)
    part = None if kind is nn.LSTMCell else parts_of(layer)[0]
    inputs, state = torch.randn(1, 3), torch.randn(1, 4)
    output: Any = layer(inputs, (state, state) if "LSTM" in kind.__name__ else state)
    first = output[0] if isinstance(output, tuple) else output
    weights = {name: weight for name, weight in layer.named_parameters() if name.startswith("weight")}
    for unit in range(4):
        reached = sum(
            int((g != 0).sum()) for g in torch.autograd.grad(first[0, unit], [*weights.values()], retain_graph=True)
        )
        assert rows_of_units(layer, part).shape == (4, reached)
        own = torch.cat([weight.reshape(-1, 4, weight.shape[1])[:, unit].flatten() for weight in weights.values()])
        torch.testing.assert_close(rows_of_units(layer, part)[unit].sort().values, own.sort().values)


def test_costs_count_steps() -> None:
    sequences = torch.randn(2, 5, 4)
    for batch_first, steps in ((True, 5), (False, 2)):
        net = attach_noise(Tagger(nn.LSTM, batch_first=batch_first, bidirectional=True))
        weights, products = unit_costs(net), unit_costs(net, sequences)
        assert (
            weights["rnn.l0_reverse"] == 4 * (6 + 8) and products["rnn.l0_reverse"] == steps * weights["rnn.l0_reverse"]
        )
    net = attach_noise(Loop(nn.LSTMCell))
    assert unit_costs(net, sequences)["cell"] == 5 * unit_costs(net)["cell"] == 5 * 4 * (4 + 8)
    packed = pack_padded_sequence(torch.randn(4, 3, 2), torch.tensor([4, 2, 1]))
    assert num_steps(nn.GRU(2, 3), nn.GRU(2, 3)(packed)[0]) == 4


def test_what_has_no_noise_says_why() -> None:
    class Own(nn.GRU):
        pass

    for kind, sentence in (
        (nn.GRUCell, "keeps its state in what it returns"),
        (lambda *sizes: nn.LSTM(*sizes, proj_size=2), "projections of its hidden units"),
        (Own, "a Own may do more"),
    ):
        net = nn.ModuleDict({"first": nn.Linear(2, 4), "cell": kind(4, 8), "last": nn.Linear(8, 3)})
        assert "cell" not in noise_sites(attach_noise(net))
        with pytest.raises(ReductionError, match=sentence):
            attach_noise(nn.ModuleDict({"cell": kind(4, 8)}), "cell")
    assert why_without_noise(nn.GRU(2, 2)) is why_without_noise(nn.Linear(2, 2)) is None
