# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Recurrent layers of torch's, whose hidden units have noise: by layer and direction, each of which has its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

# By their class alone: what is derived from one may do with its weights as it likes.
LAYERS = (nn.RNN, nn.LSTM, nn.GRU)
# In a loop that the user writes. Their units are those of any layer: what they return.
CELLS = (nn.RNNCell, nn.LSTMCell)


class Part(NamedTuple):
    """
    One layer of a recurrent module, in one direction.

    :param layer: which layer, from the input on.
    :param is_reverse: whether it reads the sequence from its end.
    """

    layer: int
    is_reverse: bool

    @property
    def name(self) -> str:
        """The end of its parameters' names in torch."""
        return f"l{self.layer}{'_reverse' if self.is_reverse else ''}"


def is_recurrent(module: Any) -> bool:
    """Whether it is a recurrent layer whose hidden units are what it puts out, and feeds back."""
    return type(module) in LAYERS and not module.proj_size


def parts_of(module: Any) -> list[Part]:
    """
    The parts of a recurrent layer, in the order of its final states.

    Example::

        >>> from torch import nn
        >>> [part.name for part in parts_of(nn.GRU(3, 4, num_layers=2, bidirectional=True))]
        ['l0', 'l0_reverse', 'l1', 'l1_reverse']
    """
    directions = (False, True) if module.bidirectional else (False,)
    return [Part(layer, is_reverse) for layer in range(module.num_layers) for is_reverse in directions]


def rows_of_units(module: Any, part: Part | None) -> Tensor:
    """
    The weights that lead to each hidden unit, of all its gates, from the input and from the units themselves.

    :param module: a recurrent layer, or a cell.
    :param part: which part of the layer; None for a cell.
    :return: shape ``(hidden_size, weights)``.
    """
    ending = f"_{part.name}" if part else ""
    weights = [getattr(module, f"weight_{source}{ending}") for source in ("ih", "hh")]
    rows = [weight.unflatten(0, (-1, module.hidden_size)).transpose(0, 1).flatten(1) for weight in weights]
    return torch.cat(rows, 1)


def num_steps(module: Any, output: Tensor | PackedSequence) -> int:
    """How many steps the longest sequence has that a recurrent layer has put out."""
    if isinstance(output, PackedSequence):
        return len(output.batch_sizes)
    return output.shape[1 if module.batch_first and output.dim() == 3 else 0]


def why_without_noise(module: Any) -> str | None:
    """Why a recurrent module has no noise, if it has none for what it is."""
    if type(module) is nn.LSTM and module.proj_size:
        return "an LSTM with proj_size puts out projections of its hidden units, so that these cannot be told apart"
    if isinstance(module, nn.GRUCell):
        return (
            "a GRUCell keeps its state in what it returns, which noise would multiply anew in each step: write the "
            "loop as an nn.GRU"
        )
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and type(module) not in (*LAYERS, *CELLS):
        return (
            f"a {type(module).__name__} may do more with its weights than the layer of torch's that it is derived from"
        )
    return None
