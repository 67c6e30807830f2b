# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Recurrent cells written out: a linear layer of the input, one of the hidden state, and what joins them.

So each channel is followed, and taken out, as in any network. What was a loop inside of torch is one of Python, and is
put back as soon as nothing is to be taken out.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.modules.scaling import Scale

# The hidden state; of an LSTM that and the cell.
State: TypeAlias = tuple[Tensor, ...]

LAYERS: dict[str, type[Any]] = {"RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
_CELLS: dict[str, type[Any]] = {
    "RNN_TANH": nn.RNNCell,
    "RNN_RELU": nn.RNNCell,
    "LSTM": nn.LSTMCell,
    "GRU": nn.GRUCell,
}


class UnrolledCell(nn.Module):
    """
    A step of a recurrent layer.

    :meth:`of` makes one that passes for a cell of torch's, where a network asks what it is.

    :param mode: the name that torch has for what it computes, such as ``"LSTM"`` or ``"RNN_TANH"``.
    :param input: the linear layer of the input, whose outputs are the gates one after the other.
    :param hidden: the linear layer of the hidden state.
    """

    def __init__(self, mode: str, input: nn.Linear, hidden: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.mode, self.input, self.hidden = mode, input, hidden

    @staticmethod
    def of(cell: Any) -> UnrolledCell:
        """The same as one of torch's cells, with its weights."""
        return _UNROLLED[type(cell)](
            mode_of(cell), linear(cell.weight_ih, cell.bias_ih), linear(cell.weight_hh, cell.bias_hh)
        )

    def fused(self) -> nn.Module:
        """The same as one of torch's cells."""
        return self._as(_CELLS[self.mode], "", self.hidden.weight)

    def _as(self, kind: type[nn.Module], ending: str, hidden_weight: Tensor) -> nn.Module:
        """
        A recurrent module of torch's with the same weights.

        :param kind: its class.
        :param ending: that of its parameters' names.
        :param hidden_weight: the weight of the hidden state.
        """
        bias = self.bias or self.hidden.bias is not None
        module = unfilled(kind, self.mode, (self.input_size, self.hidden_size), hidden_weight, bias=bias)
        values = {"weight_ih": self.input.weight, "weight_hh": hidden_weight}
        values |= {"bias_ih": self.input.bias, "bias_hh": self.hidden.bias} if bias else {}
        with torch.no_grad():
            for name, value in values.items():
                own = getattr(module, f"{name}{ending}")
                own.copy_(torch.zeros_like(own) if value is None else value)
        return module.train(self.training)

    @property
    def input_size(self) -> int:
        """The features of the input."""
        return self.input.in_features

    @property
    def hidden_size(self) -> int:
        """The hidden units."""
        return self.hidden.in_features

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return self.input.bias is not None

    def extra_repr(self) -> str:
        return self.mode

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """What torch's cell does, with the same arguments."""
        state = zero_state(self.mode, input, self.hidden_size) if hx is None else hx
        state = state if isinstance(state, tuple) else (state,)
        check_width(state, self.hidden_size, "cell")
        state = self.step(self.input(input), state[0], state)
        return state if self.mode == "LSTM" else state[0]

    def step(self, gates: Tensor, shown: Tensor, state: State) -> State:
        """
        The next state.

        :param gates: what the input gives to the gates.
        :param shown: the hidden state as the gates see it.
        :param state: the state as each unit has kept it.
        """
        own = self.hidden(shown)
        if self.mode == "LSTM":
            in_gate, forget_gate, new, out_gate = _parts(gates + own, 4)
            cell = forget_gate.sigmoid() * state[1] + in_gate.sigmoid() * new.tanh()
            return out_gate.sigmoid() * cell.tanh(), cell
        if self.mode == "GRU":
            (reset, update, new), (own_reset, own_update, own_new) = _parts(gates, 3), _parts(own, 3)
            new = (new + (reset + own_reset).sigmoid() * own_new).tanh()
            return ((state[0] - new) * (update + own_update).sigmoid() + new,)
        return ((gates + own).relu() if self.mode == "RNN_RELU" else (gates + own).tanh(),)


# For each of torch's cells a class that passes for it.
_UNROLLED: dict[type[nn.Module], type[UnrolledCell]] = {
    kind: type(f"Unrolled{kind.__name__}", (UnrolledCell, kind), {}) for kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell)
}


class Steps(UnrolledCell):
    """
    One recurrent layer in one direction, step by step.

    ``seen`` multiplies its hidden units as all others see them: what is put out, and what the gates read.
    """

    def __init__(self, mode: str, input: nn.Linear, hidden: nn.Linear) -> None:
        super().__init__(mode, input, hidden)
        self.seen: nn.Module = nn.Identity()

    def forward(self, input: Any, hx: State | None = None) -> Any:
        """
        The outputs, and the last state.

        :param input: of shape ``(length, batch, features)``, or packed.
        :param hx: the first state, of shape ``(batch, units)``.
        """
        if not isinstance(input, PackedSequence):
            return self._run(self.input(input), None, hx)
        # Packed again, since what is padded would come to the linear layer.
        gates, lengths = pad_packed_sequence(PackedSequence(self.input(input.data), input.batch_sizes))
        times = torch.arange(len(gates), device=gates.device).reshape(-1, 1, 1)
        outputs, state = self._run(gates, times < lengths.to(gates.device).unsqueeze(-1), hx)
        return pack_padded_sequence(outputs, lengths), state

    def fused(self) -> nn.Module:
        """The same as one of torch's layers, without ``seen`` on what it puts out: the weights of the gates have it."""
        weight = self.hidden.weight
        weight = weight * self.seen.factor if isinstance(self.seen, Scale) else weight
        return self._as(LAYERS[self.mode], "_l0", weight)

    def _run(self, gates: Tensor, lasts: Tensor | None, hx: State | None) -> tuple[Tensor, State]:
        """
        Runs all steps.

        :param gates: what the input gives to the gates, shape ``(length, batch, gates)``.
        :param lasts: for each step and example whether its sequence lasts so long; None where all do.
        :param hx: the first state.
        """
        state = zero_state(self.mode, gates[0], self.hidden_size) if hx is None else hx
        shown, outputs = self.seen(state[0]), []
        for time, given in enumerate(gates.unbind()):
            following = self.step(given, shown, state)
            if lasts is None:
                state = following
            else:
                state = tuple(torch.where(lasts[time], new, old) for new, old in zip(following, state))
            shown = self.seen(state[0])
            outputs.append(shown)
        return torch.stack(outputs), (shown, *state[1:])


def _parts(gates: Tensor, count: int) -> list[Tensor]:
    """The gates by kind; without asking for a division into parts, which would have to be even."""
    size = gates.shape[-1] // count
    return [gates.narrow(-1, kind * size, size) for kind in range(count)]


def check_width(state: State, size: int, name: str) -> None:
    """
    Sees that a state that was given is as wide as what it is given to.

    :raises ReductionError: if not.
    """
    for given in state:
        if given.shape[-1] != size:
            raise ReductionError(
                f"this recurrent {name} has {size} hidden units, and was given a first state of {given.shape[-1]}: "
                "give none, for zeros, or one of its width, which its hidden_size says"
            )


def zero_state(mode: str, like: Tensor, size: int) -> State:
    """The state that is there before the first step."""
    zeros = like.new_zeros(*like.shape[:-1], size)
    return (zeros, zeros) if mode == "LSTM" else (zeros,)


def linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer with these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.register_parameter("weight", weight)
    layer.register_parameter("bias", bias)
    return layer


def mode_of(module: Any) -> str:
    """The name that torch has for what a recurrent layer, or a cell, computes."""
    if isinstance(module, nn.RNNCell):
        return f"RNN_{str(module.nonlinearity).upper()}"
    return type(module).__name__.removesuffix("Cell") if isinstance(module, nn.RNNCellBase) else str(module.mode)


def unfilled(kind: type[nn.Module], mode: str, sizes: tuple[int, int], like: Tensor, **options: Any) -> nn.Module:
    """
    A recurrent module of torch's whose weights hold nothing yet.

    :param kind: its class.
    :param mode: what it computes.
    :param sizes: the features of its input, and its hidden units.
    :param like: of the precision, and on the device, of its weights.
    :param options: of its class.
    """
    if mode.startswith("RNN"):
        options["nonlinearity"] = mode.partition("_")[2].lower()
    # Else random numbers would be drawn for weights.
    return kind(*sizes, device="meta", dtype=like.dtype, **options).to_empty(device=like.device)
