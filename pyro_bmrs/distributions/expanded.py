# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Tensors that hold one value many times."""

from __future__ import annotations

from torch import Tensor


def unexpanded(tensor: Tensor) -> Tensor:
    """
    The tensor without the copies that ``expand`` makes believe: of each run of them, one element stands for all.

    A distribution expands its parameters to one shape; a function of those that all elements share need not be
    computed for each. The result broadcasts to the shape of ``tensor``.

    Example::

        >>> import torch
        >>> unexpanded(torch.tensor(2.0).expand(1000, 1000))
        tensor([[2.]])
    """
    return tensor[tuple(slice(1 if step == 0 else None) for step in tensor.stride())]
