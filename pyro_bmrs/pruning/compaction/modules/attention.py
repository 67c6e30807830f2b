# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Attention that can lose heads."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError


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
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.dropout, self.batch_first = dropout, batch_first
        # Masks for each head count the heads that there were.
        self.num_mask_heads, self.mask_heads = num_heads, tuple(range(num_heads))
        width = num_heads * head_dim
        self.q_proj = nn.Linear(embed_dim, width, bias)
        self.k_proj = nn.Linear(embed_dim if kdim is None else kdim, width, bias)
        self.v_proj = nn.Linear(embed_dim if vdim is None else vdim, width, bias)
        self.out_proj = nn.Linear(width, embed_dim, bias)

    @classmethod
    def of(cls, attention: nn.MultiheadAttention) -> Attention:
        """
        The same attention, with copies of the weights.

        :raises ReductionError: for one that adds keys of its own (``add_bias_kv``, ``add_zero_attn``).
        """
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ReductionError(
                "an nn.MultiheadAttention with add_bias_kv or add_zero_attn has no plain counterpart; write it with "
                "query, key and value projections"
            )
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
            )
        plain = plain.to_empty(device=weights[0].device).to(weights[0].dtype)
        projections = (plain.q_proj, plain.k_proj, plain.v_proj)
        biases = attention.in_proj_bias.chunk(3) if bias else (None,) * 3
        with torch.no_grad():
            for projection, weight, offset in zip(projections, weights, biases):
                projection.weight.copy_(weight)
                if offset is not None:
                    projection.bias.copy_(offset)
        plain.out_proj.load_state_dict(attention.out_proj.state_dict())
        return plain.train(attention.training)

    def keep_heads(self, kept: Tensor) -> None:
        """
        Counts the heads that are left; the rows of the projections are another's to remove.

        :param kept: which of the present heads stay, boolean.
        """
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
        keys, values = self._split(self.k_proj(key)), self._split(self.v_proj(value))
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
        return mask

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}"


def _additive(mask: Tensor, queries: Tensor) -> Tensor:
    if mask.dtype is torch.bool:
        return torch.zeros_like(mask, dtype=queries.dtype).masked_fill(mask, -torch.inf)
    return mask.to(queries.dtype)
