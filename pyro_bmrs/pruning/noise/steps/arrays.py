# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Arrays of NumPy on the CPU, elsewhere of torch, for arithmetic that is written once.

On a CPU between convolutions the caches are cold, and an operation of torch costs ten of NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Of so many numbers a function costs less than its call.
_FEW = 1000


def is_numpys(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether NumPy sees the same memory, and has the precision."""
    return device.type == "cpu" and dtype != torch.bfloat16


def library(array: Any) -> Any:
    """Whose functions are for an array: torch's or NumPy's."""
    return np if isinstance(array, np.ndarray) else torch


def tensor(array: Any) -> Tensor:
    """An array as a tensor, of the same memory."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def cast(array: Any, like: Any) -> Any:
    """An array in the precision of another."""
    return array.astype(like.dtype, copy=False) if isinstance(array, np.ndarray) else array.to(like.dtype)


def empty(shape: tuple[int, ...], like: Any) -> Any:
    """An array in the precision of another, yet to be written."""
    return np.empty(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_empty(shape)


def pair(first: Any, second: Any, like: Any) -> Any:
    """Two arrays below each other, in the precision of another; what stacking costs several times more for."""
    both = empty((2, *first.shape), like)
    both[0], both[1] = first, second
    return both


def special(function: Callable[[Tensor], Tensor], array: Any) -> Any:
    """A function of torch, which NumPy lacks."""
    return function(torch.from_numpy(array)).numpy() if isinstance(array, np.ndarray) else function(array)


def overwrite(array: Any, function: Callable[..., Tensor]) -> None:
    """
    Puts a function of torch, given an array, in its place.

    Example::

        >>> import numpy as np, torch
        >>> from pyro_bmrs.pruning.noise.steps.arrays import overwrite
        >>> array = np.array([0.0, 9.0])
        >>> overwrite(array, torch.sqrt)
        >>> array
        array([0., 3.])
    """
    whole = tensor(array)
    function(whole, out=whole)


def exponentiate(array: Any) -> None:
    """Puts the exponential of an array in its place."""
    # Torch's is vectorised for every processor, and NumPy's costs less to call.
    if isinstance(array, np.ndarray) and array.size < _FEW:
        np.exp(array, out=array)
    else:
        overwrite(array, torch.exp)
