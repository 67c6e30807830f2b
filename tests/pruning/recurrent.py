# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks with recurrent layers, as their users write them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Tagger(nn.Module):
    """A prediction for each step, from what the layer puts out, by the mean over steps, or packed."""

    def __init__(self, kind: Any = nn.GRU, packed: bool = False, **options: Any) -> None:
        super().__init__()
        self.first, self.rnn = nn.Linear(4, 6), kind(6, 8, **options)
        self.last, self.packed = nn.Linear(16 if options.get("bidirectional") else 8, 3), packed

    def forward(self, sequences: Tensor, lengths: Tensor | None = None) -> Tensor:
        self.rnn.flatten_parameters()
        given: Any = torch.sigmoid(self.first(sequences))
        if self.packed:
            given = pack_padded_sequence(given, lengths, self.rnn.batch_first, enforce_sorted=False)
        outputs, _ = self.rnn(given)
        if self.packed:
            outputs, _ = pad_packed_sequence(outputs, self.rnn.batch_first)
        return self.last(outputs)


class Classifier(nn.Module):
    """One prediction for a sequence, from the final states: of the last layer, of all, or its cell."""

    def __init__(self, states: str, kind: Any = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.states, self.rnn = states, kind(4, 8, batch_first=True, **options)
        directions = 2 if options.get("bidirectional") else 1
        self.last = nn.Linear(8 * directions * (options.get("num_layers", 1) if states == "all" else 1), 3)

    def forward(self, sequences: Tensor) -> Tensor:
        _, state = self.rnn(sequences)
        hidden = state[int(self.states == "cell")] if isinstance(self.rnn, nn.LSTM) else state
        if self.states == "all":
            return self.last(hidden.transpose(0, 1).flatten(1))
        return self.last(torch.cat([hidden[-2], hidden[-1]], -1) if self.rnn.bidirectional else hidden[-1])


class Residual(nn.Module):
    """A GRU beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn, self.last = nn.Linear(4, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, sequences: Tensor) -> Tensor:
        hidden = F.relu(self.first(sequences))
        return self.last(hidden + self.rnn(hidden)[0])


class Translator(nn.Module):
    """A decoder begins with the state in which the encoder ends."""

    def __init__(self, kind: Any = nn.LSTM) -> None:
        super().__init__()
        self.encoder, self.decoder, self.last = kind(4, 8), kind(4, 8), nn.Linear(8, 3)

    def forward(self, sequences: Tensor) -> Tensor:
        _, state = self.encoder(sequences)
        return self.last(self.decoder(sequences.flip(0), state)[0])


class Started(nn.Module):
    """A GRU with a first state: zeros of a width in the code, a parameter, or what a layer makes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.rnn, self.last = how, nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3)
        self.state, self.make = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(4, 8)

    def forward(self, sequences: Tensor) -> Tensor:
        states = {
            "zeros": sequences.new_zeros(1, len(sequences), 8),
            "parameter": self.state.expand(-1, len(sequences), -1).contiguous(),
            "layer": self.make(sequences[:, 0]).tanh().unsqueeze(0),
        }
        return self.last(self.rnn(sequences, states[self.how])[0])


class Loop(nn.Module):
    """A loop over steps with a cell."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell, self.last = kind(4, 8), nn.Linear(8, 3)

    def forward(self, sequences: Tensor) -> Tensor:
        state, outputs = None, []
        for given in sequences.unbind(1):
            state = self.cell(given, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.last(torch.stack(outputs, 1))
