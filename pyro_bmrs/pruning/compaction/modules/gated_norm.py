# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Norms over channels some of which are pruned and could not be taken out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.streams.norms import normalise_kept


class GatedNorm(nn.Module):
    """
    A norm over some of its channels, each of which is multiplied by a fixed factor; 0 for the others.

    :param module: the norm.
    :param factor: for each of its channels the factor, 0 for those that it is not over.
    :param dim: the dimension of what it is given that has the channels, counted from the end.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> GatedNorm(nn.LayerNorm(3), torch.tensor([1.0, 0.0, 2.0]), -1)(torch.tensor([[1.0, 100.0, 3.0]])).round()
        tensor([[-1.,  0.,  2.]], grad_fn=<RoundBackward0>)
    """

    factor: Tensor

    def __init__(self, module: nn.Module, factor: Tensor, dim: int) -> None:
        super().__init__()
        self.module, self.dim = module, dim
        self.register_buffer("factor", factor)
        # As plain numbers, so that the norm can be exported: no size is what a tensor says.
        self.kept = tuple((factor != 0).nonzero().flatten().tolist())
        self.training = module.training

    def __getattr__(self, name: str) -> Any:
        # Networks ask their layers for more than a call: for the weight, say, or its precision.
        return super().__getattr__(name) if name in ("module", "factor") else getattr(self.module, name)

    def forward(self, input: Tensor) -> Tensor:
        kept = torch.tensor(self.kept, dtype=torch.long, device=input.device)
        output = normalise_kept(self.module, input, kept, self.dim + input.dim(), self.kept)
        return (output * self.factor.reshape(-1, *[1] * (-1 - self.dim))).to(output.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.kept)} of {len(self.factor)} channels"
