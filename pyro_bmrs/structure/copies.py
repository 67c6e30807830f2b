# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Distributions on tensors of their own, which stay as they are while a guide's parameters are trained in place."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

T = TypeVar("T")

_CONTAINERS = (list, tuple, set)
_MADE_OF_PARTS = (Distribution, Transform, torch.nn.Module)


def with_own_tensors(structure: T) -> T:
    """
    The same structure on copies of its tensors, through which gradients flow to where the tensors came from.

    Unlike ``copy.deepcopy`` it takes tensors that were computed from parameters.

    :param structure: a distribution, a transform, or an object that is made of such; functions in it are shared.

    Example::

        >>> import pyro.distributions as dist
        >>> scale = torch.ones(2, requires_grad=True)
        >>> copy = with_own_tensors(dist.Normal(0., scale).to_event(1))
        >>> with torch.no_grad(): _ = scale.mul_(3.)
        >>> copy.stddev.detach(), copy.stddev.requires_grad
        (tensor([1., 1.]), True)
    """
    copied: T = _copy_object(structure, {}, torch.clone)
    return copied


def detached(structure: T) -> T:
    """
    The same structure on tensors of its own, through which no gradients flow to where they came from.

    :param structure: what :func:`with_own_tensors` takes.

    Example::

        >>> import pyro.distributions as dist
        >>> scale = torch.ones(2, requires_grad=True)
        >>> detached(dist.Normal(0., 2 * scale).to_event(1)).stddev
        tensor([2., 2.])
    """
    copied: T = _copy_object(structure, {}, lambda tensor: tensor.detach().clone())
    return copied


def _copy(value: Any, memo: dict[int, Any], take: Callable[[Tensor], Tensor]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        memo[id(value)] = take(value)
        return memo[id(value)]
    if isinstance(value, dict):
        return type(value)((key, _copy(item, memo, take)) for key, item in value.items())
    if type(value) in _CONTAINERS:
        return type(value)(_copy(item, memo, take) for item in value)
    if isinstance(value, weakref.ref):
        return None  # a transform's way to its inverse, which makes itself anew
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return _copy_object(value, memo, take) if is_record or isinstance(value, _MADE_OF_PARTS) else value


def _copy_object(value: Any, memo: dict[int, Any], take: Callable[[Tensor], Tensor]) -> Any:
    twin = object.__new__(type(value))
    memo[id(value)] = twin
    vars(twin).update({name: _copy(part, memo, take) for name, part in vars(value).items()})
    return twin
