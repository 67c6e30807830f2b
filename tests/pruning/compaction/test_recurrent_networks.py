# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Hidden units of recurrent layers go, and what is left computes what it did with them at 0."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning import attach_noise, compaction_report, load_compact, noise_sites, save_compact
from pyro_bmrs.pruning.compaction.compact import compact_gated
from pyro_bmrs.pruning.compaction.coupling.ties import coupled_units
from pyro_bmrs.pruning.compaction.modules.recurrence import Recurrence
from tests.pruning.compaction.gated import difference, random_gates, with_noise_at
from tests.pruning.recurrent import Classifier, Loop, Residual, Started, Tagger, Translator

SEQUENCES, LENGTHS = (3, 4, 4), torch.tensor([2, 4, 1])
UNEVEN = "the final states of all layers and directions are taken together, so that these have to be equally wide"


def compacted(
    net: nn.Module,
    modules: Any = None,
    same: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 1,
) -> tuple[nn.Module, nn.Module, Tensor]:
    """The network with noise, the compact one, and an input, on which both agree."""
    torch.manual_seed(seed)
    inputs = torch.randn(SEQUENCES, dtype=dtype)
    given = (inputs, LENGTHS) if getattr(net, "packed", False) else (inputs,)
    attach_noise(net.to(dtype).eval(), modules)
    gates = {name: gate.clamp(max=1.0) for name, gate in random_gates(net, seed).items()}
    gates |= {name: gates[other] for name, other in (same or {}).items()}
    small = compact_gated(net, gates, noise_sites(net), given)
    expected = with_noise_at(net, gates, *given)
    assert difference(expected, small(*given)) <= {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    return net, small, inputs


def masked(net: nn.Module) -> set[str]:
    return set(compaction_report(net).masked["reason"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {}),
        (nn.GRU, {"bias": False, "batch_first": True}),
        (nn.RNN, {"bidirectional": True}),
        (partial(nn.RNN, nonlinearity="relu"), {}),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}),
        (nn.GRU, {"packed": True, "bidirectional": True, "batch_first": True}),
    ],
)
def test_all_pruned_units_go(kind: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    net, small, inputs = compacted(Tagger(kind, **options), dtype=dtype)
    sites = compaction_report(small).sites
    assert not masked(small) and not compaction_report(small).multiplied and sites["removed"].sum() > 0
    assert all(sites.loc[name, "kept"] == int(size) for name, size in zip(sites.index, _sizes(small)))
    units = sites.loc["first", "kept"]
    assert small.rnn.input_size == small.first.out_features == units
    # It is trained as any network is.
    small.train()(*((inputs, LENGTHS) if small.packed else (inputs,))).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def _sizes(small: Any) -> list[int]:
    is_uneven = isinstance(small.rnn, Recurrence)
    return [small.first.out_features, *(small.rnn.hidden_sizes if is_uneven else _even(small.rnn))]


def _even(rnn: Any) -> list[int]:
    return [rnn.hidden_size] * rnn.num_layers * (2 if rnn.bidirectional else 1)


@pytest.mark.parametrize(
    ("net", "modules", "same", "left"),
    [
        (Classifier("last", bidirectional=True), None, {}, set()),
        (Classifier("last", nn.GRU, num_layers=2), None, {}, set()),
        (Classifier("all", num_layers=2), None, {}, {UNEVEN}),
        (Classifier("cell"), None, {}, {"more than they reaches last in their place"}),
        (Residual(), ["first", "rnn"], {}, {"they are tied to channels that are kept"}),
        (Residual(), ["first", "rnn"], {"first": "rnn"}, set()),
        (Translator(), None, {"encoder": "decoder"}, set()),
        (Translator(nn.GRU), None, {"encoder": "decoder"}, set()),
        (Started("layer"), ["rnn"], {}, set()),
        (Started("parameter"), ["rnn"], {}, set()),
        (Loop(nn.LSTMCell), None, {}, set()),
        (Loop(nn.RNNCell), None, {}, set()),
    ],
)
def test_what_is_tied_goes_together(net: nn.Module, modules: Any, same: dict[str, str], left: set[str]) -> None:
    net, small, _ = compacted(net, modules, same)
    assert masked(small) == left
    assert left - {UNEVEN} or compaction_report(small).sites["removed"].sum() > 0
    assert not any(
        "Unrolled" in type(module).__name__ or type(module).__name__ == "Steps" for module in small.modules()
    )


def test_a_first_state_of_the_former_width_is_told() -> None:
    _, small, _ = compacted(Started("zeros"), ["rnn"])
    [reason] = masked(small)
    assert "layer's l0 has 4 hidden units, and was given a first state of 8: give none, for zeros" in reason


class Zeroed(nn.Module):
    """Gives zeros of the width that it holds for a first state, of both layers, or of a cell's in a loop."""

    def __init__(self, is_cell: bool) -> None:
        super().__init__()
        self.hidden_size, self.is_cell = 9, is_cell
        self.lstm, self.last = nn.LSTMCell(4, 9) if is_cell else nn.LSTM(4, 9, 2), nn.Linear(9, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.is_cell:
            state = inputs.new_zeros(2, inputs.shape[1], self.hidden_size)
            return self.last(self.lstm(inputs, (state, state))[0])
        state = inputs.new_zeros(inputs.shape[1], self.hidden_size), inputs.new_zeros(inputs.shape[1], self.hidden_size)
        for step in inputs:
            state = self.lstm(step, state)
        return self.last(state[0])


@pytest.mark.parametrize("is_cell", [True, False])
def test_a_first_state_has_the_width_that_a_module_holds(is_cell: bool) -> None:
    # Of two layers other numbers go, of which as many do as go from both.
    _, small, _ = compacted(Zeroed(is_cell))
    assert masked(small) <= {UNEVEN}
    assert small.hidden_size == small.lstm.hidden_size < 9


def test_units_that_a_sum_ties() -> None:
    net = attach_noise(Residual(), ["first", "rnn"])
    assert coupled_units(net, torch.randn(SEQUENCES)) == [[("first", unit), ("rnn", unit)] for unit in range(8)]


def test_in_files_and_once_more(tmp_path: Path) -> None:
    build = partial(Tagger, nn.LSTM, num_layers=2, bidirectional=True, bias=False)
    _, small, inputs = compacted(build())
    _, smaller, _ = compacted(copy.deepcopy(small), seed=5)
    sites = compaction_report(smaller).sites
    assert list(sites.index) == list(compaction_report(small).sites.index) and sites["removed"].sum() > 5
    for net in (small, smaller):
        save_compact(net, tmp_path / "net.pt")
        loaded = load_compact(tmp_path / "net.pt", lambda: build().double()).eval()
        torch.manual_seed(0)
        assert torch.equal(loaded(inputs), net(inputs)) and repr(loaded) == repr(net)


# What torch.export says of torch's own LSTM.
@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights")
def test_exports(tmp_path: Path) -> None:
    _, small, inputs = compacted(Classifier("last", bidirectional=True), dtype=torch.float32)
    exported = torch.export.export(small, (inputs,)).module()
    assert difference(small(inputs), exported(inputs)) <= 1e-5
