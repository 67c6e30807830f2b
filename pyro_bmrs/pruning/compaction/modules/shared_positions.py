# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Attention that loses heads, and yet shares with others what it knows of positions."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


class SharedPositions(nn.Module):
    """
    An attention of T5's kind, which takes a bias for each head and pair of positions, and hands it to the next layer.

    The first layer makes the bias, for all heads that there were (C. Raffel et al. (2020), *Exploring the limits of
    transfer learning with a unified text-to-text transformer*, https://arxiv.org/abs/1910.10683). As each layer may
    lose other heads, it is handed on whole, and of it each takes what is of its own heads. All else is done by the
    class that it was of.

    Example::

        >>> from torch import nn
        >>> SharedPositions.is_for(nn.Linear(2, 2))
        False
    """

    original: type[nn.Module]
    position_heads: tuple[int, ...]

    @staticmethod
    def is_for(module: Any) -> bool:
        """Whether a module is an attention of this kind."""
        counts = type(getattr(module, "n_heads", None)) is int and hasattr(module, "has_relative_attention_bias")
        takes_bias = counts and "position_bias" in inspect.signature(type(module).forward).parameters
        return takes_bias and hasattr(type(module), "compute_bias")

    @classmethod
    def of(cls, attention: Any) -> SharedPositions:
        """The same attention, with the same parts."""
        shared = cls.__new__(cls)
        vars(shared).update(vars(attention))
        shared.original = type(attention)
        shared.position_heads = tuple(range(attention.n_heads))
        return shared

    def __getattr__(self, name: str) -> Any:
        # What it does not hold is of its former class.
        found = inspect.getattr_static(vars(self).get("original"), name, None)
        return super().__getattr__(name) if found is None else found.__get__(self, type(self))

    def keep_heads(self, kept: Tensor) -> None:
        """
        Notes whose part of the bias is taken; the rows of the projections are another's to remove.

        :param kept: which of the present heads stay, boolean.
        """
        self.position_heads = tuple(head for head, stays in zip(self.position_heads, kept.tolist()) if stays)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """What the attention does, with the same arguments."""
        if position_bias is None:
            position_bias = self._positions(hidden_states, key_value_states, past_key_values)
        own = position_bias[:, list(self.position_heads)] if position_bias.shape[1] > 1 else position_bias
        forward: Any = self.original.forward
        output, _, *others = forward(
            self,
            hidden_states,
            mask=mask,
            key_value_states=key_value_states,
            position_bias=own,
            past_key_values=past_key_values,
            **kwargs,
        )
        return (output, position_bias, *others)

    def _positions(self, hidden_states: Tensor, key_value_states: Tensor | None, past_key_values: Any) -> Tensor:
        """The bias of all heads; of one that stands for all where there is none."""
        length = hidden_states.shape[1]
        if not self.has_relative_attention_bias:
            num_keys = length if key_value_states is None else key_value_states.shape[1]
            return torch.zeros(1, 1, length, num_keys, dtype=hidden_states.dtype, device=hidden_states.device)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length(self.layer_idx)
        bias: Tensor = self.compute_bias(length, seen + length, device=hidden_states.device, past_seen_tokens=seen)
        return bias
