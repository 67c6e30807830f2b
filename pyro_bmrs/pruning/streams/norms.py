# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Norms over some of their channels: with the mean and the variance of those, and 0 for the others."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def narrowed(norm: nn.Module, kept: Tensor) -> nn.Module:
    """
    A norm like another, over some of its channels, whose parameters are those of the other, indexed.

    :param norm: a norm over channels, with parameters that have one number for each.
    :param kept: numbers of the channels, ascending.
    """
    narrow: Any = copy.copy(norm)
    shape = vars(norm).get("normalized_shape")
    if shape is not None:
        narrow.normalized_shape = type(shape)([len(kept)]) if isinstance(shape, tuple | list) else len(kept)
    # No parameters of its own: what is learned is the other's.
    vars(narrow)["_parameters"] = {name: None for name, value in norm._parameters.items() if value is None}
    for name, parameter in norm.named_parameters(recurse=False):
        vars(narrow)[name] = parameter.index_select(0, kept)
    result: nn.Module = narrow
    return result


def forward_of(norm: Any, input: Tensor) -> Tensor:
    """What a norm computes, past all that takes the place of its forward."""
    output: Tensor = type(norm).forward(norm, input)
    return output


def normalise_kept(norm: nn.Module, input: Tensor, kept: Tensor, dim: int) -> Tensor:
    """
    A norm over the channels that are kept, and 0 for the others.

    :param norm: the norm.
    :param input: what it is given.
    :param kept: numbers of the channels that are kept, ascending.
    :param dim: the dimension of the input that has the channels.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> normalise_kept(nn.LayerNorm(3), torch.tensor([[1.0, 100.0, 3.0]]), torch.tensor([0, 2]), -1).round()
        tensor([[-1.,  0.,  1.]], grad_fn=<RoundBackward0>)
    """
    if not len(kept):
        return torch.zeros_like(input)
    output = forward_of(narrowed(norm, kept), input.index_select(dim, kept))
    return torch.zeros_like(input, dtype=output.dtype).index_copy(dim, kept, output)


def narrow(norm: nn.Module, kept: Tensor, factors: Tensor, dim: int) -> bool:
    """
    Takes channels out of a norm, in place, and multiplies what it puts out.

    :param norm: the norm.
    :param kept: numbers of the channels that are kept, ascending.
    :param factors: what each of these is multiplied by.
    :param dim: the dimension of what it is given that has the channels, counted from the end.
    :return: whether its parameters could take the factors over; if not, it is as it was.
    """
    small: Any = narrowed(norm, kept)
    generator = torch.Generator().manual_seed(0)
    shape = [4, len(kept), *[1] * (-1 - dim)]
    example = torch.randn(shape, generator=generator, dtype=torch.float64).to(factors)
    values = {name: vars(small)[name].detach() for name, _ in norm.named_parameters(recurse=False)}
    for folded in _folded(values, factors) if values else ():
        other: Any = copy.copy(small)
        vars(other).update(folded)
        with torch.no_grad():
            expected = forward_of(small, example) * factors.reshape(shape[1:])
            is_same = torch.allclose(forward_of(other, example), expected, rtol=1e-4, atol=1e-5)
        if is_same:
            for name, value in folded.items():
                requires_grad = getattr(norm, name).requires_grad
                setattr(norm, name, nn.Parameter(value.clone(), requires_grad))
            if "normalized_shape" in vars(small):
                vars(norm)["normalized_shape"] = small.normalized_shape
            return True
    return False


def _folded(values: dict[str, Tensor], factors: Tensor) -> list[dict[str, Tensor]]:
    """The parameters that a norm may have whose output is multiplied: of some, the weight is beside 1."""
    times = {name: value * factors for name, value in values.items()}
    beside_one = {**times, "weight": (1 + values["weight"]) * factors - 1} if "weight" in values else times
    return [times, beside_one]
