# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Norms over some of their channels: with the mean and the variance of those, and 0 for the others."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.layers import normalised_width

# Attributes in which norms hold what is added to the variance.
EPSILONS = ("eps", "variance_epsilon", "epsilon")


class UnevenGroupNorm(nn.Module):
    """
    A group norm whose groups have different numbers of channels, as where some of a ``GroupNorm`` are taken out.

    :param sizes: how many channels each group has.
    :param eps: what is added to the variance.
    :param affine: whether there are a weight and a bias.
    :param dtype: of the averages; by default torch's default.

    Example::

        >>> import torch
        >>> UnevenGroupNorm((2, 3))(torch.tensor([[1.0, 3.0, 4.0, 4.0, 10.0]])).round()
        tensor([[-1.,  1., -1., -1.,  1.]], grad_fn=<RoundBackward0>)
    """

    weight: Tensor | None
    bias: Tensor | None
    averages: Tensor

    def __init__(
        self, sizes: tuple[int, ...], eps: float = 1e-5, affine: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.sizes, self.eps, self.affine = tuple(sizes), eps, affine
        self.num_channels = sum(sizes)
        for name, fill in (("weight", torch.ones), ("bias", torch.zeros)):
            self.register_parameter(name, nn.Parameter(fill(self.num_channels)) if affine else None)
        self.register_buffer("averages", self._averages().to(dtype or torch.get_default_dtype()), persistent=False)

    def _averages(self) -> Tensor:
        """What makes of numbers for the channels, as rows, for each channel the average of its group."""
        # From plain numbers, so that a norm that is made while a network is exported has sizes that are known.
        counts = torch.tensor([size for size in self.sizes for _ in range(size)])
        group = torch.tensor([number for number, size in enumerate(self.sizes) for _ in range(size)])
        return (group.unsqueeze(1) == group).double() / counts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What moves and converts a module; averages are as exact as their precision, which is single at least."""
        parent: Any = super()
        module = parent._apply(fn, recurse)
        dtype = torch.float64 if self.averages.dtype is torch.float64 else torch.float32
        self.averages = self._averages().to(dtype).to(self.averages.device)
        return module

    def forward(self, input: Tensor) -> Tensor:
        device, dtype = input.device.type, input.dtype
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.forward(input)
        # In full precision, as what norms return is a small difference of large numbers.
        is_precise = dtype is torch.float32 or dtype is torch.float64
        return self._normalised(input) if is_precise else self._normalised(input.float()).to(dtype)

    def _normalised(self, input: Tensor) -> Tensor:
        """
        All groups at once: each channel normalised by itself, and from there to what its group would make of it.

        Of a group, the mean is the average of its channels', and the variance that of the channels' variances and of
        the squares of what their means are off by. Small networks spend their time on the number of steps, looking up
        attributes included.
        """
        weight, bias, averages = self.weight, self.bias, self.averages
        examples, channels, *places = input.shape
        alone, mean, precision = torch.native_group_norm(
            input, None, None, examples, channels, prod(places), channels, self.eps
        )
        # Of a norm without parameters nobody knew the precision before.
        if averages.dtype != mean.dtype:
            averages = self._averages().to(mean)
        off = torch.addmm(mean, mean, averages, alpha=-1)
        # The eps in the channels' variances is that in the group's.
        scale = torch.addcmul(precision.pow(-2), off, off).mm(averages).rsqrt()
        if weight is not None:
            scale = scale * weight
        shift = off * scale if bias is None else torch.addcmul(bias, off, scale)
        shape = (examples, channels, *[1] * len(places))
        return torch.addcmul(shift.view(shape), alone, (scale / precision).view(shape))

    def extra_repr(self) -> str:
        return f"{self.sizes}, eps={self.eps}"


def narrowed(norm: nn.Module, kept: Tensor, numbers: Sequence[int] | None = None) -> nn.Module:
    """
    A norm like another, over some of its channels, whose parameters are those of the other, indexed.

    :param norm: a norm over channels, with parameters that have one number for each.
    :param kept: numbers of the channels, ascending.
    :param numbers: the same as plain numbers, where they are known.
    """
    narrow: Any = copy.copy(norm)
    if isinstance(norm, nn.GroupNorm | UnevenGroupNorm):
        narrow = _with_groups(norm, kept, kept.tolist() if numbers is None else numbers)
    shape = vars(norm).get("normalized_shape")
    if shape is not None:
        narrow.normalized_shape = type(shape)([len(kept)]) if isinstance(shape, tuple | list) else len(kept)
    # No parameters of its own: what is learned is the other's.
    vars(narrow)["_parameters"] = {name: None for name, value in norm._parameters.items() if value is None}
    for name, parameter in norm.named_parameters(recurse=False):
        vars(narrow)[name] = parameter.index_select(0, kept)
    result: nn.Module = narrow
    return result


def _with_groups(norm: nn.GroupNorm | UnevenGroupNorm, kept: Tensor, numbers: Sequence[int]) -> Any:
    """A norm over what is left of each group, if anything is."""
    if isinstance(norm, UnevenGroupNorm):
        sizes = norm.sizes
    else:
        sizes = (norm.num_channels // norm.num_groups,) * norm.num_groups
    group = [number for number, size in enumerate(sizes) for _ in range(size)]
    # In the order of the groups, as the numbers ascend.
    left = tuple(Counter(group[channel] for channel in numbers).values())
    narrow: Any
    if len(set(left)) == 1:
        narrow = copy.copy(norm) if isinstance(norm, nn.GroupNorm) else nn.GroupNorm(1, 1, norm.eps, norm.affine)
        narrow.num_groups, narrow.num_channels = len(left), len(kept)
    else:
        # Moved by hand, as a module that is moved makes its averages anew, and this is done in each step.
        dtype = next((parameter.dtype for parameter in norm.parameters()), torch.get_default_dtype())
        precise = torch.float64 if dtype is torch.float64 else torch.float32
        narrow = UnevenGroupNorm(left, norm.eps, affine=False, dtype=precise)
        narrow.affine, narrow.averages = norm.affine, narrow.averages.to(kept.device)
    narrow.training = norm.training
    return narrow


def forward_of(norm: Any, input: Tensor) -> Tensor:
    """What a norm computes, past all that takes the place of its forward."""
    output: Tensor = type(norm).forward(norm, input)
    return output


def normalise_kept(
    norm: nn.Module, input: Tensor, kept: Tensor, dim: int, numbers: Sequence[int] | None = None
) -> Tensor:
    """
    A norm over the channels that are kept, and 0 for the others.

    :param norm: the norm.
    :param input: what it is given.
    :param kept: numbers of the channels that are kept, ascending.
    :param dim: the dimension of the input that has the channels.
    :param numbers: those that are kept as plain numbers, where they are known.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> normalise_kept(nn.LayerNorm(3), torch.tensor([[1.0, 100.0, 3.0]]), torch.tensor([0, 2]), -1).round()
        tensor([[-1.,  0.,  1.]], grad_fn=<RoundBackward0>)
    """
    if not len(kept):
        return torch.zeros_like(input)
    output = forward_of(narrowed(norm, kept, numbers), input.index_select(dim, kept))
    return torch.zeros_like(input, dtype=output.dtype).index_copy(dim, kept, output)


def narrow(norm: nn.Module, kept: Tensor, factors: Tensor, dim: int) -> nn.Module | None:
    """
    A norm of its own, over some of the channels of another, that multiplies what it puts out.

    :param norm: the other; left as it is.
    :param kept: numbers of the channels that are kept, ascending.
    :param factors: what each of these is multiplied by.
    :param dim: the dimension of what it is given that has the channels, counted from the end.
    :return: the norm; None if its parameters cannot take the factors over.
    """
    small: Any = narrowed(norm, kept)
    example = _example(norm, len(kept), dim).to(factors)
    values = {name: vars(small)[name].detach() for name, _ in norm.named_parameters(recurse=False)}
    if not values:
        return _with_parameters(small, norm, {}) if bool((factors == 1).all()) else None
    for folded in _folded(values, factors):
        other: Any = copy.copy(small)
        vars(other).update(folded)
        with torch.no_grad():
            expected = forward_of(small, example) * factors.reshape(-1, *[1] * (-1 - dim))
            is_same = torch.allclose(forward_of(other, example), expected, rtol=1e-4, atol=1e-5)
        if is_same:
            return _with_parameters(small, norm, folded)
    return None


def _example(norm: nn.Module, width: int, dim: int) -> Tensor:
    """What a norm may be given; some are over places, too, of which images have two dimensions."""
    has_places_first = dim == -1 and not isinstance(norm, nn.GroupNorm | UnevenGroupNorm)
    shape = [4, 3, 3, width] if has_places_first else [4, width, *[3] * (-1 - dim)]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
def is_centred(norm: nn.Module, dim: int) -> bool:
    """
    Whether a norm subtracts the mean, so that it is the same of what is larger by a constant.

    :param norm: the norm.
    :param dim: the dimension of what it is given that has the channels, counted from the end.
    """
    example = _example(norm, normalised_width(norm), dim).to(next(norm.parameters(), torch.ones(1)))
    one, other = forward_of(norm, example), forward_of(norm, example + 1)
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def _with_parameters(small: Any, norm: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """A narrowed norm that holds parameters of its own."""
    result: nn.Module = copy.copy(small)
    vars(result)["_parameters"] = dict(vars(small)["_parameters"])
    for name, value in values.items():
        del vars(result)[name]
        result.register_parameter(name, nn.Parameter(value.clone(), getattr(norm, name).requires_grad))
    return result


def _folded(values: dict[str, Tensor], factors: Tensor) -> list[dict[str, Tensor]]:
    """The parameters that a norm may have whose output is multiplied: of some, the weight is beside 1."""
    times = {name: value * factors for name, value in values.items()}
    beside_one = {**times, "weight": (1 + values["weight"]) * factors - 1} if "weight" in values else times
    return [times, beside_one]
