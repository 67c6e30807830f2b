# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What stands where a residual branch, or a part of it, was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Bypass(nn.Module):
    """
    Stands where a module was whose result matters no more, and returns its first input.

    :param num_results: how many results the module returned in a tuple; None for one that was no tuple.
    :param batch_first: what ``nn.TransformerEncoder`` asks of an attention.
    """

    in_proj_bias = None

    def __init__(self, num_results: int | None = None, batch_first: bool = False) -> None:
        super().__init__()
        self.num_results, self.batch_first = num_results, batch_first

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        return input if self.num_results is None else (input, *[None] * (self.num_results - 1))


class Zeros(nn.Module):
    """Stands at the end of a residual branch that was taken out, and returns zeros of its input's shape."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.zeros_like(input)
