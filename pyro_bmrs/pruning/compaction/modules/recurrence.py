# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Recurrent layers whose layers and directions may have different numbers of units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.modules.scaling import substitute
from pyro_bmrs.pruning.compaction.modules.unrolled import (
    LAYERS,
    State,
    Steps,
    UnrolledCell,
    check_width,
    linear,
    mode_of,
    unfilled,
)
from pyro_bmrs.pruning.noise.recognition.recurrences import CELLS, is_recurrent, parts_of

_OPTIONS = ("num_layers", "batch_first", "dropout", "bidirectional")


class Sweep(nn.Module):
    """
    One recurrent layer in one direction.

    :param layer: the layer, as one of torch's or step by step.
    :param is_reverse: whether it reads sequences from their ends.

    ``seen`` multiplies its hidden units where they leave it, if that could not be folded into other weights.
    """

    def __init__(self, layer: nn.Module, is_reverse: bool) -> None:
        super().__init__()
        self.layer, self.is_reverse = layer, is_reverse
        self.seen: nn.Module = nn.Identity()

    @property
    def hidden_size(self) -> int:
        """The hidden units."""
        size: int = self.layer.hidden_size  # type: ignore[assignment]
        return size

    def forward(self, sequence: Any, state: State | None) -> tuple[Any, State]:
        """
        The outputs, in the order of the sequence, and the last state.

        :param sequence: of shape ``(length, batch, features)``, or packed.
        :param state: the first state, of shape ``(batch, units)``; zeros by default.
        """
        sequence = _reversed(sequence) if self.is_reverse else sequence
        if isinstance(self.layer, Steps):
            outputs, state = self.layer(sequence, state)
        else:
            given = None if state is None else tuple(part.unsqueeze(0) for part in state)
            outputs, last = self.layer(sequence, given if given is None or len(given) > 1 else given[0])
            state = tuple(part.squeeze(0) for part in (last if isinstance(last, tuple) else (last,)))
        outputs = _reversed(outputs) if self.is_reverse else outputs
        return _mapped(self.seen, outputs), (self.seen(state[0]), *state[1:])

    def extra_repr(self) -> str:
        return "reverse" if self.is_reverse else ""


class Recurrence(nn.Module):
    """
    Recurrent layers as ``torch.nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` are, of any number of units by layer and direction.

    It takes their place where compaction leaves different numbers, has the arguments of their ``forward``, and passes
    for one of them where a network asks what it is. Where the numbers differ, the final states are a tuple with one for
    each layer and direction, and so are first states that are given.

    :param like: what it computes, by the attributes that those modules have.
    :param sweeps: its layers by direction, by the ends of their parameters' names in those, ``"l0"``, ``"l0_reverse"``
        and so on.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> recurrence = Recurrence.of(nn.GRU(3, 4, bidirectional=True))
        >>> outputs, states = recurrence(torch.randn(5, 2, 3))
        >>> outputs.shape, states.shape
        (torch.Size([5, 2, 8]), torch.Size([2, 2, 4]))
    """

    def __init__(self, like: Any, sweeps: Mapping[str, Sweep]) -> None:
        nn.Module.__init__(self)
        self.mode, self.num_layers, self.bidirectional = like.mode, like.num_layers, like.bidirectional
        self.batch_first, self.dropout, self.proj_size = like.batch_first, like.dropout, 0
        for name, sweep in sweeps.items():
            self.add_module(name, sweep)

    # What torch's layers do otherwise than other modules, for weights that these do not have themselves.
    __setattr__, __setstate__, _apply = nn.Module.__setattr__, nn.Module.__setstate__, nn.Module._apply
    _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel

    def __getstate__(self) -> Any:
        return vars(self)

    @staticmethod
    def of(module: Any) -> Recurrence:
        """The same as a recurrent layer of torch's, step by step, with its weights."""
        sweeps = {}
        for part in parts_of(module):
            weights = [linear(*_weights(module, source, part.name)) for source in ("ih", "hh")]
            sweeps[part.name] = Sweep(Steps(module.mode, *weights), part.is_reverse)
        recurrence: Recurrence = _KINDS[type(module)](module, sweeps)
        return recurrence.train(module.training)

    def in_parts(self) -> Recurrence:
        """The same by torch's own layers, one for each part; of this module."""
        for sweep in self.sweeps:
            if isinstance(sweep.layer, Steps):
                sweep.seen = sweep.layer.seen
                sweep.layer = sweep.layer.fused()
        return self

    def fused(self) -> nn.Module:
        """The same by torch's own layers, and as one of these where all parts have as many units; of this module."""
        self.in_parts()
        is_plain = all(is_recurrent(sweep.layer) and isinstance(sweep.seen, nn.Identity) for sweep in self.sweeps)
        return self._as_one() if is_plain and len(set(self.hidden_sizes)) == 1 else self

    def _as_one(self) -> nn.Module:
        """One of torch's layers, with the weights of all parts."""
        layers: dict[str, Any] = {part.name: sweep.layer for part, sweep in zip(parts_of(self), self.sweeps)}
        weights = {
            f"{key.removesuffix('l0')}{name}": weight
            for name, layer in layers.items()
            for key, weight in layer.named_parameters()
        }
        options = {name: getattr(self, name) for name in _OPTIONS}
        like = layers["l0"].weight_ih_l0
        sizes = self.input_size, self.hidden_size
        one = unfilled(LAYERS[self.mode], self.mode, sizes, like, bias=self.bias, **options)
        with torch.no_grad():
            for name, own in one.named_parameters():
                own.copy_(weights.get(name, torch.zeros_like(own)))
        return one.train(self.training)

    @property
    def sweeps(self) -> list[Sweep]:
        """Its parts, in the order of its states."""
        return [self.get_submodule(part.name) for part in parts_of(self)]  # type: ignore[misc]

    @property
    def input_size(self) -> int:
        """The features of the input."""
        size: int = self.sweeps[0].layer.input_size  # type: ignore[assignment]
        return size

    @property
    def hidden_sizes(self) -> list[int]:
        """The hidden units of each part."""
        return [sweep.hidden_size for sweep in self.sweeps]

    @property
    def hidden_size(self) -> int:
        """
        The hidden units of each part, where these are as many.

        :raises ReductionError: if they are not.
        """
        sizes = set(self.hidden_sizes)
        if len(sizes) > 1:
            raise ReductionError(
                f"the parts of this recurrent layer have {self.hidden_sizes} hidden units, and not one number: give no "
                "first state, for zeros, or one for each"
            )
        return sizes.pop()

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return any(sweep.layer.bias for sweep in self.sweeps)

    def flatten_parameters(self) -> None:
        """What torch's layers have for the GPU; each part is on its own here."""
        for sweep in self.sweeps:
            if is_recurrent(sweep.layer):
                sweep.layer.flatten_parameters()  # type: ignore[operator]

    def forward(self, input: Any, hx: Any = None) -> Any:
        """What torch's layer does, with the same arguments."""
        is_packed = isinstance(input, PackedSequence)
        is_batched = is_packed or input.dim() == 3
        sequence, order, back = input, None, None
        if is_packed:
            sequence, order, back = PackedSequence(input.data, input.batch_sizes), input[2], input[3]
        elif not is_batched:
            sequence = input.unsqueeze(1)
        elif self.batch_first:
            sequence = input.transpose(0, 1)
        sweeps = self.sweeps
        firsts = [None] * len(sweeps) if hx is None else self._first_states(hx, is_batched, order)
        lasts: list[State] = []
        for layer in range(self.num_layers):
            own = range(len(sweeps) * layer // self.num_layers, len(sweeps) * (layer + 1) // self.num_layers)
            results = [sweeps[part](sequence, firsts[part]) for part in own]
            lasts += [last for _, last in results]
            sequence = _side_by_side([outputs for outputs, _ in results])
            if self.training and self.dropout and layer < self.num_layers - 1:
                sequence = _mapped(partial(F.dropout, p=self.dropout), sequence)
        states = [self._as_given(state, is_batched, back) for state in zip(*lasts)]
        if is_packed:
            sequence = input._replace(data=sequence.data)
        elif not is_batched:
            sequence = sequence.squeeze(1)
        elif self.batch_first:
            sequence = sequence.transpose(0, 1)
        return sequence, tuple(states) if self.mode == "LSTM" else states[0]

    def _first_states(self, hx: Any, is_batched: bool, order: Tensor | None) -> list[State]:
        """For each part its first state, of shape ``(batch, units)``."""
        firsts = []
        for number, (part, size) in enumerate(zip(parts_of(self), self.hidden_sizes)):
            state = tuple(given[number] for given in (hx if self.mode == "LSTM" else (hx,)))
            check_width(state, size, f"layer's {part.name}")
            state = state if is_batched else tuple(given.unsqueeze(0) for given in state)
            firsts.append(state if order is None else tuple(given.index_select(0, order) for given in state))
        return firsts

    def _as_given(self, state: Sequence[Tensor], is_batched: bool, back: Tensor | None) -> Any:
        """The last states of all parts, in the order of the examples."""
        parts = [part if back is None else part.index_select(0, back) for part in state]
        parts = parts if is_batched else [part.squeeze(0) for part in parts]
        return torch.stack(parts) if len(set(self.hidden_sizes)) == 1 else tuple(parts)

    def extra_repr(self) -> str:
        flags = [name for name in ("batch_first", "bidirectional") if getattr(self, name)]
        return ", ".join([self.mode, *(f"{name}=True" for name in flags)])


def _passing_for(kind: type[nn.Module]) -> Any:
    return type(f"Uneven{kind.__name__}", (Recurrence, kind), {"__module__": __name__})


# Under their own names, by which files of whole modules know them.
UnevenRNN, UnevenLSTM, UnevenGRU = _passing_for(nn.RNN), _passing_for(nn.LSTM), _passing_for(nn.GRU)
_KINDS = {nn.RNN: UnevenRNN, nn.LSTM: UnevenLSTM, nn.GRU: UnevenGRU}


def unroll(net: nn.Module) -> None:
    """Writes out, in place, all recurrent layers and cells in a network whose hidden units can be taken out."""
    for module in list(net.modules()):
        if module is net:
            continue
        if is_recurrent(module):
            substitute(net, module, Recurrence.of(module))
        if type(module) in (*CELLS, nn.GRUCell):
            substitute(net, module, UnrolledCell.of(module).train(module.training))


def fuse(net: nn.Module) -> None:
    """Puts torch's own recurrent layers and cells in the place of those that are written out, in place."""
    # Inner ones first.
    for module in reversed(list(net.modules())):
        if isinstance(module, Recurrence | UnrolledCell) and not isinstance(module, Steps):
            substitute(net, module, module.fused())


def is_layer_or_cell(module: Any) -> bool:
    """Whether it is a recurrent layer or a cell of torch's own."""
    return is_recurrent(module) or type(module) in (*CELLS, nn.GRUCell)


def resized(module: Any, input_size: Any, hidden_size: Any, bias: Any) -> nn.Module:
    """
    A recurrent module of torch's like another, but for its sizes.

    :param module: what it is like, which may be a :class:`Recurrence`.
    :param input_size: the features of its input.
    :param hidden_size: its hidden units.
    :param bias: whether it has biases.
    :raises ReductionError: for a module of another kind, or sizes that are larger, before there is memory for as much.
    """
    if not isinstance(module, Recurrence) and not is_layer_or_cell(module):
        raise ReductionError(f"the compact network had a recurrent layer, not a {type(module).__name__}")
    largest = module.hidden_sizes if isinstance(module, Recurrence) else [module.hidden_size]
    sizes = ((input_size, module.input_size), (hidden_size, max(largest)))
    if not all(type(size) is int and 0 < size <= most for size, most in sizes) or type(bias) is not bool:
        raise ReductionError(f"{input_size} features and {hidden_size} hidden units are no part of {module}")
    like = next(module.parameters())
    kind, mode, options = type(module), mode_of(module), {}
    if not isinstance(module, nn.RNNCellBase):
        kind, options = LAYERS[mode], {name: getattr(module, name) for name in _OPTIONS}
    new = unfilled(kind, mode, (input_size, hidden_size), like, bias=bias, **options)
    return new.train(module.training).requires_grad_(like.requires_grad)


def has_its_sizes(module: Any) -> bool:
    """Whether the weights of a recurrent layer, or a cell, are of the sizes that it says."""
    expected = resized(module, module.input_size, module.hidden_size, module.bias)
    shapes = {name: weight.shape for name, weight in expected.named_parameters()}
    return shapes == {name: weight.shape for name, weight in module.named_parameters()}


def _weights(module: Any, source: str, part: str) -> tuple[nn.Parameter, nn.Parameter | None]:
    return getattr(module, f"weight_{source}_{part}"), getattr(module, f"bias_{source}_{part}", None)


def _mapped(function: Callable[[Tensor], Tensor], sequence: Any) -> Any:
    """A function of all elements of a sequence."""
    return (
        sequence._replace(data=function(sequence.data)) if isinstance(sequence, PackedSequence) else function(sequence)
    )


def _side_by_side(sequences: Sequence[Any]) -> Any:
    if len(sequences) == 1:
        return sequences[0]
    values = torch.cat([s.data if isinstance(s, PackedSequence) else s for s in sequences], -1)
    first = sequences[0]
    return first._replace(data=values) if isinstance(first, PackedSequence) else values


def _reversed(sequence: Any) -> Any:
    """Each sequence from its end to its beginning."""
    if not isinstance(sequence, PackedSequence):
        return sequence.flip(0)
    places = torch.arange(len(sequence.data))
    padded, lengths = pad_packed_sequence(PackedSequence(places, sequence.batch_sizes))
    times = torch.arange(len(padded)).unsqueeze(1)
    others = pack_padded_sequence(padded.gather(0, (lengths - 1 - times).clamp(min=0)), lengths).data
    return sequence._replace(data=sequence.data.index_select(0, others.to(sequence.data.device)))
