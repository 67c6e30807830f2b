# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Single precision at least, in networks that are trained in less: by autocast, or by their own weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def single_at_least(dtype: torch.dtype) -> torch.dtype:
    """
    A precision, or single precision where it is less.

    Example::

        >>> import torch
        >>> from pyro_bmrs.pruning.noise.steps.precision import single_at_least
        >>> single_at_least(torch.bfloat16), single_at_least(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def at_least_single(values: Tensor) -> Tensor:
    """Real values in single precision, if theirs is less."""
    return values.to(single_at_least(values.dtype)) if values.is_floating_point() else values


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Without autocast, which would take products of noise, and sums of divergences, in less than they are given in."""
    is_on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_on else nullcontext()
