# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What becomes of channels in each of torch's operations.

Each element of a tensor has the number of the channel that it is of. A rule takes an operation and a book of these
numbers, and gives those of the result: of its shape, or with one along dimensions in which they do not differ. It
writes down which channels are tied, as the summands of a sum are, and which cannot be taken out, as those that a
softmax is over. Of an operation without a rule, no channel can that it is given. To teach another operation, write its
rule, and enter it in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_bmrs.pruning.compaction.coupling.dependence import PLACES, POOLINGS, SHAPED
from pyro_bmrs.pruning.streams.operations import MATRICES, Operation

# The number of what is of no channel.
NONE = -1


class Book(Protocol):
    """What a rule asks, and writes down."""

    def of(self, tensor: Tensor) -> Tensor:
        """The channels of a tensor's elements, of its shape."""

    def tied(self, one: Tensor, other: Tensor) -> Tensor:
        """The channels of two tensors of which each element is, tied."""

    def stop(self, channels: Tensor, operation: str) -> None:
        """Notes that channels cannot be taken out, as an operation needs all of them."""

    def divide(self, parts: Sequence[Tensor]) -> None:
        """Notes that the channels along a dimension are divided into parts."""


Rule = Callable[[Operation, Book], Tensor | None]


def pass_through(operation: Operation, book: Book) -> Tensor | None:
    """The channels of an operation's result; None where it has none."""
    name = operation.name
    if name in SHAPED:
        return None
    rule = _RULES.get(name)
    if rule is None:
        rule = _elementwise if torch.Tag.pointwise in operation.overload.tags else _unknown
    return rule(operation, book)


def compressed(channels: Tensor) -> Tensor:
    """The same with one element along each dimension in which they do not differ."""
    for dim in sorted(range(channels.dim()), key=lambda dim: -channels.shape[dim]):
        first = channels.narrow(dim, 0, 1) if channels.shape[dim] else channels
        if torch.equal(first.expand_as(channels), channels):
            channels = first
    return channels


def same_along(channels: Tensor, dims: Iterable[int], book: Book) -> Tensor:
    """The channels, compressed, with those tied that differ along some dimensions."""
    channels = compressed(channels)
    for dim in dims:
        if channels.shape[dim] > 1:
            channels = book.tied(_lowest(channels, [dim]), channels).narrow(dim, 0, 1)
    return channels


def _lowest(channels: Tensor, dims: list[int]) -> Tensor:
    """One of the channels along dimensions, which is not padding unless all is."""
    last = torch.iinfo(channels.dtype).max
    lowest = channels.masked_fill(channels < 0, last).amin(dims, keepdim=True)
    return lowest.masked_fill(lowest == last, NONE)


def along(channels: Tensor, dim: int) -> Tensor:
    """The channels along a dimension, each where it is not padding."""
    others = [other for other in range(channels.dim()) if other != dim % channels.dim()]
    return (_lowest(channels, others) if others else channels).flatten()


def _unknown(operation: Operation, book: Book) -> Tensor | None:
    for tensor in operation.tensors:
        book.stop(book.of(tensor), operation.name or str(operation.overload))
    return None


def _elementwise(operation: Operation, book: Book) -> Tensor | None:
    """Each result is of the channels of the elements in its place; a gate for all of them is of none, and stays."""
    numbers = {id(tensor): compressed(book.of(tensor)) for tensor in operation.tensors}
    channels = torch.full((), NONE, dtype=torch.int32)
    for tensor in operation.tensors:
        own = numbers.pop(id(tensor), channels)
        if own.numel() == 1 and own >= 0 and any(_is_for_all(tensor, other) for other in (channels, *numbers.values())):
            book.stop(own, operation.name)
        else:
            channels = book.tied(channels, own)
    return channels


def _is_for_all(tensor: Tensor, channels: Tensor) -> bool:
    """Whether a tensor has one element along a dimension in which the channels of another differ."""
    return any(
        channels.shape[-dim] > 1 and (dim > tensor.dim() or tensor.shape[-dim] == 1)
        for dim in range(1, channels.dim() + 1)
    )


def _of_source(operation: Operation, book: Book) -> Tensor | None:
    """Results that are no longer of what was in their place."""
    source = operation.arguments.get("src", operation.arguments.get("source"))
    return compressed(book.of(source)) if torch.is_tensor(source) else None


def _moved(operation: Operation, book: Book) -> Tensor | None:
    """The operation does to the channels' numbers what it does to the elements."""
    numbers: dict[str, Any] = {name: NONE for name in ("value", "fill_value") if name in operation.arguments}
    numbers = {name: value for name, value in numbers.items() if not torch.is_tensor(operation.arguments[name])}
    # Some are there for real numbers only.
    for dtype in (torch.int64, torch.float64):
        try:
            moved = operation.on(partial(_as_moved, book, dtype), **numbers)
        except (RuntimeError, NotImplementedError):
            continue
        return (moved if torch.is_tensor(moved) else moved[0]).to(torch.int32)
    return _unknown(operation, book)


def _as_moved(book: Book, dtype: torch.dtype, name: str, tensor: Tensor) -> Tensor:
    return tensor if name in PLACES else book.of(tensor).to(dtype)


def _pooled(operation: Operation, book: Book) -> Tensor | None:
    """Each channel is by itself, and its elements are together."""
    num_dims = int(
        next(letter for letter in reversed(operation.name.removesuffix("_with_indices")) if letter.isdigit())
    )
    channels = book.of(operation.tensors[0])
    return same_along(channels, range(channels.dim() - num_dims, channels.dim()), book)


def _reduced(operation: Operation, book: Book) -> Tensor | None:
    """Each result is of all along some dimensions, which it loses."""
    given = operation.arguments
    if torch.is_tensor(given.get("other")):
        return _elementwise(operation, book)
    channels = compressed(book.of(given["self"]))
    dims = given.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(channels.dim()))
    dims = [dim % channels.dim() for dim in dims] if channels.dim() else []
    others = [dim for dim in range(channels.dim()) if dim not in dims and channels.shape[dim] > 1]
    if others and any(channels.shape[dim] > 1 for dim in dims):
        # Some of each part, which go together where the parts are of one size.
        if operation.name not in _ADDED or max(others) > max(dim for dim in dims if channels.shape[dim] > 1):
            channels = same_along(channels, dims, book)
    if any(channels.shape[dim] > 1 for dim in dims):
        if operation.name not in _ADDED:
            book.stop(channels, operation.name)
        return None
    kept = [dim for dim in range(channels.dim()) if given.get("keepdim") or dim not in dims]
    return channels.reshape([channels.shape[dim] for dim in kept])


# What nothing is added to by what is 0.
_ADDED = frozenset("sum nansum norm linalg_vector_norm".split())


def _along(operation: Operation, book: Book) -> Tensor | None:
    """Each result is of all along a dimension, which stays."""
    channels, dim = compressed(book.of(operation.arguments["self"])), operation.arguments.get("dim", -1)
    if channels.dim() and any(size > 1 for size in channels.shape[dim % channels.dim() + 1 :]):
        # Some of each part, which go together where the parts are of one size.
        channels = same_along(channels, [dim], book)
    if channels.dim() and channels.shape[dim] > 1:
        book.stop(channels, operation.name.strip("_"))
        return None
    return channels


def _normalised(operation: Operation, book: Book) -> Tensor | None:
    """Each result is of all that it is normalised with, of a layer or a group of channels."""
    given = operation.arguments
    channels = compressed(book.of(given["input"]))
    dims = range(1, channels.dim())
    if "normalized_shape" in given:
        dims = range(channels.dim() - len(given["normalized_shape"]), channels.dim())
    if any(channels.shape[dim] > 1 for dim in dims):
        book.stop(channels, operation.name.replace("native_", ""))
        return None
    return channels


def _gated(operation: Operation, book: Book) -> Tensor | None:
    """One half times what the other half says."""
    channels, dim = book.of(operation.arguments["self"]), operation.arguments["dim"]
    one, other = channels.chunk(2, dim)
    channels_along = along(compressed(channels), dim)
    if len(channels_along) > 1:
        book.divide(channels_along.chunk(2))
    return book.tied(compressed(one), compressed(other))


def _into_pixels(operation: Operation, book: Book) -> Tensor | None:
    """As many channels as a channel has pixels become one."""
    channels, factor = book.of(operation.arguments["self"]), operation.arguments["upscale_factor"]
    by_pixel = channels.unflatten(-3, (-1, factor**2))
    together = same_along(by_pixel, [by_pixel.dim() - 3], book).expand_as(by_pixel)
    return (
        together.reshape(channels.shape)
        .repeat_interleave(factor, -1)
        .repeat_interleave(factor, -2)[..., :: factor**2, :, :]
    )


def _of_distances(operation: Operation, book: Book) -> Tensor | None:
    """Each result is of a row of one matrix and a row of the other, whose elements are subtracted and added up."""
    one, other = (compressed(book.of(operation.arguments[name])) for name in ("x1", "x2"))
    summed = [_contracted(channels, -1, book) for channels in (one, other)]
    for alone in [] if None not in summed else filter(torch.is_tensor, summed):
        book.stop(alone, "distances to points that are computed")
    if summed[0] is not None and summed[1] is not None:
        book.tied(summed[0], summed[1])
    return None


def _convolved(operation: Operation, book: Book) -> Tensor | None:
    """A convolution with the weight of a layer that is not called, in which each channel is by itself."""
    given = operation.arguments
    channels, weight = compressed(book.of(given["input"])), compressed(book.of(given["weight"]))
    is_by_channel = given["groups"] == len(given["weight"]) == given["input"].shape[1] and not given["transposed"]
    if not is_by_channel or weight.numel() != len(weight) or any(size > 1 for size in channels.shape[2:]):
        return _unknown(operation, book)
    by_channel = weight.reshape(1, -1, *[1] * (channels.dim() - 2))
    if given["bias"] is not None:
        by_channel = book.tied(by_channel, book.of(given["bias"]).reshape(by_channel.shape))
    return book.tied(channels, by_channel)


def _product(operation: Operation, book: Book) -> Tensor | None:
    """Each result is of a row of one matrix and a column of the other, whose elements are multiplied and added up."""
    names = MATRICES[operation.name]
    factors = [operation.arguments[name] for name in names]
    one, other = (compressed(book.of(factor)) for factor in factors)
    summed = [_contracted(channels, dim, book) for channels, dim in ((one, -1), (other, -2))]
    if summed[0] is not None and summed[1] is not None:
        book.tied(summed[0], summed[1])
    for alone in [] if None not in summed else filter(torch.is_tensor, summed):
        book.stop(alone, "a product with a matrix that is computed")
    left = [
        channels for channels, contracted in zip((one, other), summed) if contracted is None and (channels >= 0).any()
    ]
    # A weight for all of the channels of the other.
    for channels in [channels for channels in left if len(left) == 2 and channels.numel() == 1]:
        book.stop(channels, "a product of matrices")
        left.remove(channels)
    if len(left) == 2:
        for channels in left:
            book.stop(channels, "a product of matrices")
        return None
    added = [compressed(book.of(tensor)) for name, tensor in operation.arguments.items() if name == "self" not in names]
    result = torch.full((), NONE, dtype=torch.int32)
    for channels in [*left, *added]:
        result = book.tied(result, channels)
    return result


def _contracted(channels: Tensor, dim: int, book: Book) -> Tensor | None:
    """The channels along a dimension that is summed; None where they do not differ along it."""
    size = channels.shape[dim]
    if size == 1:
        return None
    if channels.numel() > size:  # Heads, say: what is added up is told apart by more than its place.
        book.stop(channels, "a product of matrices")
    return channels.movedim(dim, 0).flatten(1)[:, 0]


# Views are not here: they look at the numbers of the same memory.
_RULES: dict[str, Rule] = {
    name: rule
    for rule, names in {
        _elementwise: "clone _to_copy native_dropout hardswish _prelu_kernel log_sigmoid_forward rrelu_with_noise "
        "bernoulli lift_fresh_copy where masked_fill addcmul addcdiv lerp",
        _of_source: "copy fill",
        _moved: "cat stack index_select gather take index index_put _index_put_impl index_copy index_add index_fill "
        "scatter scatter_add slice_scatter select_scatter repeat flip roll tril triu diag_embed constant_pad_nd "
        "pixel_unshuffle channel_shuffle native_channel_shuffle im2col _pack_padded_sequence "
        + " ".join(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
        _pooled: " ".join(POOLINGS),
        _reduced: "sum mean amax amin max min prod var std var_mean std_mean logsumexp norm linalg_vector_norm any all "
        "argmax argmin count_nonzero nansum aminmax median",
        _along: "_softmax _log_softmax _safe_softmax cumprod cummax cummin logcumsumexp sort argsort topk cumsum",
        _normalised: "native_layer_norm native_group_norm _fused_rms_norm",
        _gated: "glu",
        _into_pixels: "pixel_shuffle",
        _of_distances: "_cdist_forward _euclidean_dist",
        _convolved: "convolution _convolution convolution_overrideable",
        _product: " ".join(MATRICES),
    }.items()
    for name in names.split()
}
