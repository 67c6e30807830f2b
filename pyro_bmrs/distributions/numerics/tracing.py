# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Computations that ``torch.jit.trace`` calls, and does not look into."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_traced", "untraced"]


def is_traced() -> bool:
    """
    Whether the tracer looks on.

    Example::

        >>> is_traced()
        False
    """
    return torch._C._get_tracing_state() is not None


def untraced(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """
    Decorator for the ``forward`` of an autograd function of one output, of which a trace then holds the call alone.

    The tracer records what a ``forward`` does besides calling it. What it records has the branches of the values that
    it saw, and writes in place into what it holds to be constant, so that it says something else at each call.

    Example::

        >>> import warnings, torch
        >>> class Halved(torch.autograd.Function):
        ...     @staticmethod
        ...     @untraced
        ...     def forward(ctx, x):
        ...         return x / 2 if x > 1 else x
        >>> warnings.simplefilter("ignore")  # of the tracer's age
        >>> halved = torch.jit.trace(Halved.apply, torch.tensor(3.0), check_trace=False)
        >>> halved(torch.tensor(0.5)), halved(torch.tensor(3.0))
        (tensor(0.5000), tensor(1.5000))
    """

    @wraps(forward)
    def call(*arguments: Any) -> Tensor:
        if not is_traced():
            return forward(*arguments)
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            output = forward(*arguments)
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
        return output.clone()  # The tracer does not take a tensor that it has never seen.

    return call
