# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Layers and directions of any number of units compute what those of torch do that have more."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning.compaction.modules.recurrence import Recurrence, fuse, has_its_sizes, resized, unroll
from pyro_bmrs.pruning.compaction.modules.scaling import Scale
from pyro_bmrs.pruning.layers import take_out

LAYERS = [nn.RNN, nn.LSTM, nn.GRU]


def narrowed(layer: Any, sizes: list[int]) -> Recurrence:
    """The layer without the last units of each part."""
    recurrence, count = Recurrence.of(copy.deepcopy(layer)), layer.hidden_size
    directions = 2 if layer.bidirectional else 1
    for number, (sweep, size) in enumerate(zip(recurrence.sweeps, sizes)):
        gone, steps = range(size, count), sweep.layer
        for side in (steps.input, steps.hidden):
            take_out(side, "out", [gate + unit for gate in range(0, side.out_features, count) for unit in gone])
        take_out(steps.hidden, "in", list(gone))
        below = sizes[number // directions * directions - directions :][:directions] if number >= directions else []
        take_out(steps.input, "in", [place * count + unit for place, s in enumerate(below) for unit in range(s, count)])
    return recurrence


def silenced(layer: Any, sizes: list[int]) -> Any:
    """The layer, of whose last units nothing is read."""
    layer = copy.deepcopy(layer)
    directions = 2 if layer.bidirectional else 1
    kept = [torch.arange(layer.hidden_size) < size for size in sizes]
    with torch.no_grad():
        for number, name in enumerate(name for name, _ in layer.named_parameters() if "weight_hh" in name):
            layer.get_parameter(name).mul_(kept[number])
            if number >= directions:
                below = torch.cat(kept[number // directions * directions - directions :][:directions])
                layer.get_parameter(name.replace("hh", "ih")).mul_(below)
    return layer


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("options", "sizes"), [({"num_layers": 2, "bidirectional": True}, [3, 1, 2, 4]), ({}, [3])])
def test_parts_without_some_of_their_units(kind: Any, options: dict[str, Any], sizes: list[int]) -> None:
    layer = kind(3, 4, batch_first=True, **options).double()
    sequences, silent, recurrence = torch.randn(2, 5, 3).double(), silenced(layer, sizes), narrowed(layer, sizes)
    last, places = sizes[-2:] if options else sizes, range(len(sizes))
    units = [unit + 4 * place for place, size in enumerate(last) for unit in range(size)]
    packed = pack_padded_sequence(sequences, torch.tensor([3, 5]), batch_first=True, enforce_sorted=False)
    for module in (recurrence, recurrence.fused()):
        for given in (sequences, packed, sequences[0]):
            (expected, state), (outputs, own) = silent(given), module(given)
            values = (outputs.data, expected.data) if given is packed else (outputs, expected)
            torch.testing.assert_close(values[0], values[1][..., units], rtol=1e-12, atol=1e-12)
            hidden, expected = (s[0] if kind is nn.LSTM else s for s in (own, state))
            for place in places:
                torch.testing.assert_close(hidden[place], expected[place, ..., : sizes[place]], rtol=1e-12, atol=1e-12)
        firsts = [torch.randn(2, size).double() for size in sizes] if options else torch.randn(1, 2, 3).double()
        wide: Any = torch.stack([nn.functional.pad(first, (0, 4 - first.shape[-1])) for first in firsts])
        both = ((firsts, firsts), (wide, wide)) if kind is nn.LSTM else (firsts, wide)
        values = module(sequences, both[0])[0], silent(sequences, both[1])[0][..., units]
        torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
    assert type(module) is (kind if not options else type(recurrence))


@pytest.mark.parametrize("kind", LAYERS)
def test_equally_many_units_are_one_layer_of_torch(kind: Any) -> None:
    layer = kind(3, 4, num_layers=2, bidirectional=True, dropout=0.5)
    fused = narrowed(layer, [3] * 4).fused()
    assert type(fused) is kind and (fused.hidden_size, fused.input_size, fused.num_layers, fused.dropout) == (
        3,
        3,
        2,
        0.5,
    )
    whole = Recurrence.of(layer).fused()
    assert all(torch.equal(weight, layer.get_parameter(name)) for name, weight in whole.named_parameters())
    torch.manual_seed(0)
    expected = layer(torch.ones(5, 2, 3))[0]
    torch.manual_seed(0)
    dropped = Recurrence.of(layer)(torch.ones(5, 2, 3))[0]
    assert not torch.equal(layer.eval()(torch.ones(5, 2, 3))[0], expected) and dropped.shape == expected.shape


# What torch.export says of torch's own LSTM.
@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights")
def test_passes_for_the_layer_of_torch_and_is_a_module_as_any() -> None:
    recurrence: Any = narrowed(nn.LSTM(3, 4, num_layers=2, batch_first=True), [2, 3]).fused()
    assert isinstance(recurrence, nn.LSTM) and isinstance(recurrence, Recurrence)
    assert (recurrence.input_size, recurrence.num_layers, recurrence.batch_first, recurrence.bias) == (3, 2, True, True)
    recurrence.flatten_parameters()
    given = torch.randn(2, 5, 3)
    expected = recurrence(given)[0]
    with io.BytesIO() as file:
        torch.save(recurrence, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
    for other in (again, copy.deepcopy(recurrence)):
        assert torch.equal(other(given)[0], expected)
    assert recurrence.double()(given.double())[0].dtype is torch.float64
    assert torch.equal(torch.export.export(recurrence.float(), (given,)).module()(given)[0], expected)


def test_states_of_another_width() -> None:
    recurrence = narrowed(nn.GRU(3, 4, num_layers=2), [2, 3])
    with pytest.raises(
        ReductionError, match="layer's l0 has 2 hidden units, and was given a first state of 4: give none"
    ):
        recurrence(torch.randn(5, 2, 3), torch.zeros(2, 2, 4))
    with pytest.raises(ReductionError, match=r"\[2, 3\] hidden units, and not one number"):
        _ = recurrence.hidden_size


def test_what_could_not_be_folded_is_multiplied() -> None:
    factor = torch.tensor([0.5, 2.0, 1.0, 3.0])
    net = nn.Sequential(nn.GRU(3, 4))
    unroll(net)
    net[0].sweeps[0].layer.seen = Scale(factor, -1)
    given = torch.randn(5, 2, 3)
    outputs, states = net(given)
    fuse(net)
    assert isinstance(net[0], Recurrence) and type(net[0].sweeps[0].layer) is nn.GRU
    for own, expected in zip(net(given), (outputs, states)):
        torch.testing.assert_close(own, expected)
    # And so once more.
    unroll(net)
    fuse(net)
    torch.testing.assert_close(net(given)[0], outputs)


def test_a_network_is_what_it_was_when_nothing_was_taken_out() -> None:
    net = nn.ModuleDict(
        {"cell": nn.GRUCell(2, 3), "layer": nn.LSTM(2, 3, 2), "wide": nn.LSTM(4, 5, proj_size=2)}
    ).eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    kinds = {name: type(module) for name, module in net.named_modules()}
    wide = net["wide"]
    unroll(net)
    assert net["wide"] is wide and isinstance(net["layer"], Recurrence) and not net["layer"].training
    fuse(net)
    assert {name: type(module) for name, module in net.named_modules()} == kinds and not net["layer"].training
    assert net.state_dict().keys() == state.keys() and all(
        torch.equal(net.state_dict()[n], v) for n, v in state.items()
    )


def test_sizes() -> None:
    layer, cell = nn.LSTM(3, 4, 2, bidirectional=True), nn.RNNCell(3, 4, nonlinearity="relu")
    smaller: Any = resized(layer, 2, 3, False)
    assert type(smaller) is nn.LSTM and smaller.weight_ih_l1.shape == (12, 6) and not smaller.bias
    other: Any = resized(cell, 3, 2, True)
    assert type(other) is nn.RNNCell and other.nonlinearity == "relu" and other.weight_hh.shape == (2, 2)
    assert has_its_sizes(layer) and has_its_sizes(cell)
    layer.weight_ih_l1 = nn.Parameter(torch.ones(16, 7))
    assert not has_its_sizes(layer)
    for module, sizes in ((layer, (3, 10**12, True)), (cell, (0, 2, True)), (cell, (3, 2.0, True)), (cell, (3, 2, 1))):
        with pytest.raises(ReductionError, match="no part of"):
            resized(module, *sizes)
    with pytest.raises(ReductionError, match="not a Linear"):
        resized(nn.Linear(3, 4), 3, 4, True)
