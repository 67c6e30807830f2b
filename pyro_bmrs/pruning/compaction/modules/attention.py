# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Attention that can lose heads."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """
    Multi-head attention as ``torch.nn.MultiheadAttention`` computes it, with any number of heads of any width.

    ``nn.MultiheadAttention`` derives the width of a head from the number of heads, so that it cannot lose one. This
    module takes its place, has the arguments of its ``forward`` (A. Vaswani et al. (2017), *Attention is all you need*,
    https://arxiv.org/abs/1706.03762), and goes through ``scaled_dot_product_attention`` where no weights are asked for.

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
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        queries = self._split(self.q_proj(query))
        keys, values = self._with_own(self.k_proj(key), self.bias_k), self._with_own(self.v_proj(value), self.bias_v)
        mask = self._mask(attn_mask, key_padding_mask, queries)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = queries @ keys.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            heads = weights @ values
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

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
