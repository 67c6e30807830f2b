# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Attention that can lose heads."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """
    Multi-head attention as ``torch.nn.MultiheadAttention`` computes it, with any number of heads of any width.

    ``nn.MultiheadAttention`` derives the width of a head from the number of heads, so that it cannot lose one. This
    module takes its place, has the arguments of its ``forward`` (A. Vaswani et al. (2017), *Attention is all you need*,
    https://arxiv.org/abs/1706.03762), and goes through ``scaled_dot_product_attention`` where no weights are asked for.

    Queries, keys and values are made by ``q_proj``, ``k_proj`` and ``v_proj``; in a network that ``compact`` returns by
    ``in_proj``, one layer for the three, where they are made of equally many features.

    :param embed_dim: features of the query and of the output.
    :param num_heads: how many heads.
    :param head_dim: features of each head.
    :param kdim: features of the key; by default those of the query.
    :param vdim: features of the value; by default those of the query.
    :param bias: whether the projections have biases.
    :param dropout: probability that an attention weight is dropped in training.
    :param batch_first: whether examples are in dimension 0, and not in dimension 1.
    :param add_bias_kv: whether there is a key with a value, both learned, beside those that are given.
    :param add_zero_attn: whether there is a key with a value of zeros beside them.

    Example::

        >>> import torch
        >>> tokens = torch.randn(2, 5, 12)
        >>> attention = Attention(12, num_heads=1, head_dim=4, batch_first=True)
        >>> attention(tokens, tokens, tokens, need_weights=False)[0].shape
        torch.Size([2, 5, 12])
    """

    # nn.TransformerEncoder asks its attention for these, and takes no fused path around the submodules with this one.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    in_proj: nn.Linear

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = False,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        # Masks for each head count the heads that there were.
        self.num_mask_heads, self.mask_heads = num_heads, tuple(range(num_heads))
        width = num_heads * head_dim
        self.q_proj = nn.Linear(embed_dim, width, bias)
        self.k_proj = nn.Linear(embed_dim if kdim is None else kdim, width, bias)
        self.v_proj = nn.Linear(embed_dim if vdim is None else vdim, width, bias)
        self.out_proj = nn.Linear(width, embed_dim, bias)
        self.bias_k = nn.Parameter(torch.zeros(width)) if add_bias_kv else None
        self.bias_v = nn.Parameter(torch.zeros(width)) if add_bias_kv else None

    @classmethod
    def of(cls, attention: nn.MultiheadAttention) -> Attention:
        """The same attention, with copies of the weights."""
        bias = attention.in_proj_bias is not None
        weights = (
            attention.in_proj_weight.chunk(3)
            if attention._qkv_same_embed_dim
            else (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        )
        # Without weights of its own, for which random numbers would be drawn.
        with torch.device("meta"):
            plain = cls(
                attention.embed_dim,
                attention.num_heads,
                attention.head_dim,
                kdim=attention.kdim,
                vdim=attention.vdim,
                bias=bias,
                dropout=attention.dropout,
                batch_first=attention.batch_first,
                add_bias_kv=attention.bias_k is not None,
                add_zero_attn=attention.add_zero_attn,
            )
        plain = plain.to_empty(device=weights[0].device).to(weights[0].dtype)
        projections = (plain.q_proj, plain.k_proj, plain.v_proj)
        biases = attention.in_proj_bias.chunk(3) if bias else (None,) * 3
        with torch.no_grad():
            for projection, weight, offset in zip(projections, weights, biases):
                projection.weight.copy_(weight)
                if offset is not None:
                    projection.bias.copy_(offset)
            for own, given in ((plain.bias_k, attention.bias_k), (plain.bias_v, attention.bias_v)):
                if own is not None and given is not None:
                    own.copy_(given.flatten())
        plain.out_proj.load_state_dict(attention.out_proj.state_dict())
        return plain.train(attention.training)

    @property
    def is_packed(self) -> bool:
        """Whether queries, keys and values are made by one layer."""
        return "in_proj" in self._modules

    def packed(self) -> Attention:
        """Itself, with one layer for queries, keys and values, where they are made of equally many features."""
        projections = self._projections()
        if not self.is_packed and len({layer.in_features for layer in projections}) == 1:
            self._replace(("q_proj", "k_proj", "v_proj"), {"in_proj": _joined(projections)})
        return self

    def unpacked(self) -> Attention:
        """Itself, with a layer each for queries, keys and values."""
        if self.is_packed:
            self._replace(("in_proj",), dict(zip(("q_proj", "k_proj", "v_proj"), self._projections())))
        return self

    def _projections(self) -> list[nn.Linear]:
        """The layers that make queries, keys and values, with copies of the weights if they are packed."""
        if not self.is_packed:
            return [self.q_proj, self.k_proj, self.v_proj]
        biases = [None] * 3 if self.in_proj.bias is None else self.in_proj.bias.chunk(3)
        parts = zip(self.in_proj.weight.chunk(3), biases)
        return [_linear(weight, bias, self.in_proj) for weight, bias in parts]

    def _replace(self, old: tuple[str, ...], new: dict[str, nn.Linear]) -> None:
        """Puts layers in the place of others, first as these are."""
        others = {name: module for name, module in self._modules.items() if name not in old}
        self._modules.clear()
        self._modules.update({**new, **others})

    def as_torchs(self) -> nn.MultiheadAttention | None:
        """The same attention as torch's own, with copies of the weights; None where that cannot be it."""
        layers: list[Any] = [*self._projections(), self.out_proj]
        query, key, value, output = layers
        width = self.num_heads * self.head_dim
        has_biases = {layer.bias is not None for layer in layers}
        is_whole = self.num_heads == self.num_mask_heads and len(has_biases) == 1
        if not is_whole or {query.in_features, query.out_features, output.out_features} != {width}:
            return None
        with torch.device("meta"):
            attention = nn.MultiheadAttention(
                *(width, self.num_heads, self.dropout, has_biases == {True}, self.bias_k is not None),
                *(self.add_zero_attn, key.in_features, value.in_features, self.batch_first),
            )
        attention.to_empty(device=query.weight.device).to(query.weight.dtype)
        with torch.no_grad():
            if attention._qkv_same_embed_dim:
                attention.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers[:3]]))
            else:
                own = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
                for weight, layer in zip(own, layers):
                    weight.copy_(layer.weight)
            if attention.in_proj_bias is not None:
                attention.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers[:3]]))
            for given, one in ((attention.bias_k, self.bias_k), (attention.bias_v, self.bias_v)):
                if given is not None and one is not None:
                    given.copy_(one.reshape(given.shape))
        attention.out_proj.load_state_dict(self.out_proj.state_dict())
        return attention.train(self.training)

    def keep_heads(self, kept: Tensor) -> None:
        """
        Counts the heads that are left, and keeps their part of the learned key; the rows of the projections are
        another's to remove.

        :param kept: which of the present heads stay, boolean.
        """
        if self.bias_k is not None and self.bias_v is not None:
            elements = kept.repeat_interleave(self.head_dim).to(self.bias_k.device)
            self.bias_k = nn.Parameter(self.bias_k.detach()[elements], self.bias_k.requires_grad)
            self.bias_v = nn.Parameter(self.bias_v.detach()[elements], self.bias_v.requires_grad)
        self.mask_heads = tuple(head for head, stays in zip(self.mask_heads, kept.tolist()) if stays)
        self.num_heads = len(self.mask_heads)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """What ``torch.nn.MultiheadAttention.forward`` does, with the same arguments."""
        batched = query.dim() == 3
        # What is one tensor is made of one, and stays one below.
        is_self, is_shared = query is key and key is value, key is value
        if not batched:
            query, key, value = (tokens.unsqueeze(0) for tokens in (query, key, value))
        elif not self.batch_first:
            query, key, value = (tokens.transpose(0, 1) for tokens in (query, key, value))
        queries, keys, values = self._projected(query, key, value, is_self, is_shared)
        mask = self._mask(attn_mask, key_padding_mask, queries)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = queries @ keys.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            heads = weights @ values
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _projected(
        self, query: Tensor, key: Tensor, value: Tensor, is_self: bool, is_shared: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads, each of shape ``(batch, heads, length, head_dim)``."""
        if not self.is_packed:
            made = [self.q_proj(query), self.k_proj(key), self.v_proj(value)]
        elif is_self:
            # All at once, also as they are divided among the heads.
            if self.bias_k is None and not self.add_zero_attn:
                shape = (*query.shape[:2], 3, self.num_heads, self.head_dim)
                queries, keys, values = self.in_proj(query).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
                return queries, keys, values
            made = self.in_proj(query).chunk(3, -1)
        else:
            width = self.num_heads * self.head_dim
            sizes = [width, 2 * width] if is_shared else [width] * 3
            bias = self.in_proj.bias
            biases = [None] * len(sizes) if bias is None else bias.split(sizes)
            parts = zip((query, key, value), self.in_proj.weight.split(sizes), biases)
            made = [F.linear(*part) for part in parts]
            made = [made[0], *made[1].chunk(2, -1)] if is_shared else made
        return self._split(made[0]), self._with_own(made[1], self.bias_k), self._with_own(made[2], self.bias_v)

    def _with_own(self, projected: Tensor, own: Tensor | None) -> Tensor:
        """Keys or values, those that the attention adds behind those that are given, split."""
        if own is not None:
            projected = torch.cat([projected, own.expand(len(projected), 1, -1)], 1)
        return self._split(F.pad(projected, (0, 0, 0, 1)) if self.add_zero_attn else projected)

    def _split(self, projected: Tensor) -> Tensor:
        """Of shape ``(batch, heads, length, head_dim)``."""
        heads: Tensor = projected.unflatten(-1, (self.num_heads, self.head_dim))
        return heads.transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, queries: Tensor) -> Tensor | None:
        """Both masks as what is added to the scores."""
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, queries)
            if mask.dim() == 3:
                mask = mask.unflatten(0, (len(queries), self.num_mask_heads))[:, list(self.mask_heads)]
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, queries).reshape(len(queries), 1, 1, -1)
            mask = padding if mask is None else mask + padding
        num_own = int(self.bias_k is not None) + int(self.add_zero_attn)
        return mask if mask is None else F.pad(mask, (0, num_own))

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}"


def _additive(mask: Tensor, queries: Tensor) -> Tensor:
    if mask.dtype is torch.bool:
        return torch.zeros_like(mask, dtype=queries.dtype).masked_fill(mask, -torch.inf)
    return mask.to(queries.dtype)


def _joined(layers: list[Any]) -> nn.Linear:
    """One layer that puts out what several do, side by side."""
    has_bias = any(layer.bias is not None for layer in layers)
    biases = [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    weight = torch.cat([layer.weight for layer in layers])
    return _linear(weight, torch.cat(biases) if has_bias else None, layers[0])


def _linear(weight: Tensor, bias: Tensor | None, like: nn.Linear) -> nn.Linear:
    """A layer of copies of these weights."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone(), like.weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), like.weight.requires_grad)
    return layer.train(like.training)
