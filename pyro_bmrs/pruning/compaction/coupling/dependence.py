# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Which elements of what a network computes depend on its input, and which are the same for any.

Marks go with the elements, through each operation by a rule of its own: what is moved takes its mark along, a sum is
marked where a summand is, and a product is not where a factor is 0 that is not marked itself. Of an operation without
a rule all is marked, if anything is that it is given. What is not marked is then a constant, by how the network is
written, and not by what it happens to compute; what is marked may be one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_bmrs.pruning.streams.operations import MATRICES, Carried, Operation, memory_of

# Gives for an operation, and what marks a tensor that it reads, the marks of its results: of their shape, or one along
# dimensions in which they do not differ.
Rule = Callable[[Operation, Callable[[Any], Tensor]], Tensor]


class Dependence(Carried[Tensor]):
    """
    Marks which elements depend on some others, through all that is computed while it is entered.

    Marks are kept beside memory: what is written in one view of it shows in all.

    Example::

        >>> import torch
        >>> values, factors = torch.ones(2, 3), torch.tensor([0.0, 1.0, 1.0])
        >>> with Dependence() as dependence:
        ...     dependence.mark(values[:, :2])
        ...     products = (values * factors).exp()
        >>> dependence.of(products)
        tensor([[False,  True, False],
                [False,  True, False]])
    """

    read = torch.tensor(False)

    def __init__(self) -> None:
        super().__init__()
        # By their identity, pieces of memory, which are kept alive, with a mark for each of their bytes.
        self._marks: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}

    def mark(self, tensor: Tensor) -> None:
        """Marks all elements of a tensor, wherever they are, as those of one that is expanded."""
        if memory_of(tensor) is not None:
            places = self._bytes(tensor)
            _, marks = self._marks[tensor.untyped_storage()._cdata]
            numbers = torch.arange(len(marks), device=marks.device)
            marks[numbers.as_strided(places.shape, places.stride(), places.storage_offset()).flatten()] = True

    def of(self, tensor: Tensor) -> Tensor:
        """The marks of a tensor's elements, boolean."""
        memory = memory_of(tensor)
        if memory is None:  # Sparse, say: what is not followed may depend on anything.
            return torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
        if memory not in self._marks:
            return torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
        return self._bytes(tensor).any(-1)

    def put(self, tensor: Tensor, carried: Tensor) -> None:
        memory = memory_of(tensor)
        if memory is None or (memory not in self._marks and not carried.any()):
            return
        self._bytes(tensor).copy_(_fitted(carried, tensor).unsqueeze(-1))

    def joined(self, read: Tensor, tensor: Tensor) -> Tensor:
        return read | self.of(tensor).any().cpu()

    def through(self, operation: Operation) -> Tensor:
        of_numbers = bool(self.read) and operation.takes_numbers
        if not of_numbers and not any(self.of(tensor).any() for tensor in operation.tensors):
            return torch.tensor(False)
        rule = _rule(operation.name)
        return torch.tensor(True) if of_numbers and rule is not _of_product else rule(operation, self._of_argument)

    def _of_argument(self, value: Any) -> Tensor:
        # What is no tensor is a number, or None.
        return self.of(value) if torch.is_tensor(value) else self.read & (value is not None)

    def _bytes(self, tensor: Tensor) -> Tensor:
        """The marks of the bytes of each element, as a view of those of its memory."""
        storage, size = tensor.untyped_storage(), tensor.element_size()
        _, marks = self._marks.get(storage._cdata, (None, None))
        if marks is None or len(marks) < storage.nbytes():
            grown = torch.zeros(storage.nbytes(), dtype=torch.bool, device=tensor.device)
            if marks is not None:
                grown[: len(marks)] = marks
            self._marks[storage._cdata], marks = (storage, grown), grown
        strides = [stride * size for stride in tensor.stride()]
        return marks.as_strided((*tensor.shape, size), (*strides, 1), tensor.storage_offset() * size)


def _fitted(marks: Tensor, tensor: Tensor) -> Tensor:
    """Marks in the shape of a tensor; all of them where they are of some other shape, and any is."""
    fits = marks.dim() == tensor.dim() and all(size in (1, n) for size, n in zip(marks.shape, tensor.shape))
    return (marks if fits else marks.any()).expand(tensor.shape)


# The rules. Each takes an operation and the function that gives the marks of an argument.


def _of_nothing(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """Results that have no more of their arguments than a shape."""
    return torch.tensor(False)


def _of_anything(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """Results each of which may depend on all that is given."""
    return torch.tensor(any(of(tensor).any() for tensor in operation.tensors))


def _elementwise(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """Each result is of the elements in its place."""
    return reduce(torch.logical_or, map(of, operation.tensors))


def _of_product(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """As elementwise, but that a factor of 0 makes a constant, whatever the other is."""
    factors = [operation.arguments["self"], operation.arguments["other"]]
    marks = [of(factor) for factor in factors]
    zeros = [torch.as_tensor(factor == 0) & ~mark for factor, mark in zip(factors, marks)]
    return torch.logical_or(*marks) & ~torch.logical_or(*zeros)


def _of_quotient(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """As elementwise, but that 0 stays 0, by whatever it is divided."""
    given = operation.arguments
    return _elementwise(operation, of) & ~(torch.as_tensor(given["self"] == 0) & ~of(given["self"]))


def _of_choice(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """As elementwise, but of what is not chosen."""
    given = operation.arguments
    return of(given["condition"]) | torch.where(given["condition"], of(given["self"]), of(given["other"]))


def _of_filled(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """As elementwise, but of what is filled."""
    mask, value = operation.arguments["mask"], operation.arguments["value"]
    return of(mask) | torch.where(mask, of(value), of(operation.arguments["self"]))


def _of_source(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """Results that are no longer of what was in their place."""
    name = next(name for name in ("src", "value", "source") if name in operation.arguments)
    marks = of(operation.arguments[name])
    return marks.expand(operation.arguments["self"].shape)


def _moved(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """
    Each result is of elements at other places: one of them, their mean, their sum or their largest.

    The operation does to the marks, as numbers of 0 and 1, what it does to the elements.
    """
    given = operation.arguments
    places = [argument for name, argument in given.items() if name in PLACES]
    dims = []
    if any(of(leaf).any() for leaf in tree_leaves(places) if torch.is_tensor(leaf)):
        dims = _dims_of_places(operation)
        if not dims:
            return _of_anything(operation, of)

    def moved(name: str, tensor: Tensor) -> Tensor:
        if name in PLACES:
            return tensor
        marks = of(tensor)
        if dims and name in ("self", "input"):
            # From wherever along these dimensions it is, it is a constant where all of them are, and the same.
            differ = tensor.amin(dims, keepdim=True) != tensor.amax(dims, keepdim=True)
            marks = (marks.any(dims, keepdim=True) | differ).expand(tensor.shape)
        return marks.float()

    marks = operation.on(moved, **{name: 0 for name in ("value", "fill_value") if not torch.is_tensor(given.get(name))})
    return (marks if torch.is_tensor(marks) else marks[0]) > 0


def _dims_of_places(operation: Operation) -> list[int]:
    """The dimensions along which an operation that takes elements from given places does so, if that is all it does."""
    given = operation.arguments
    if operation.name == "_pack_padded_sequence":
        return [0, 1]
    if operation.name in ("index_select", "gather"):
        return [given["dim"]]
    indices = given["indices"] if operation.name == "index" else []
    if any(index is not None and index.dtype is torch.bool for index in indices):
        return []
    return [dim for dim, index in enumerate(indices) if index is not None]


def _looked_up(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """Each row of the result is of one index."""
    if of(operation.arguments["weight"]).any():
        return _of_anything(operation, of)
    return of(operation.arguments["indices"]).unsqueeze(-1)


def _reduced(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """Each result is of all along some dimensions, which it loses."""
    if torch.is_tensor(operation.arguments.get("other")):
        return _elementwise(operation, of)
    dims, keepdim = operation.arguments.get("dim"), bool(operation.arguments.get("keepdim"))
    return _any(of(operation.arguments["self"]), dims, keepdim)


def _along(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """Each result is of all along a dimension, which stays."""
    return _any(of(operation.arguments["self"]), operation.arguments.get("dim"), keepdim=True)


def _any(marks: Tensor, dims: int | list[int] | None, keepdim: bool) -> Tensor:
    dims = [dims] if isinstance(dims, int) else dims or list(range(marks.dim()))
    return marks.any(dims, keepdim=keepdim) if marks.dim() else marks


def _normalised(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """Each result is of all that it is normalised with: of a layer, a group of channels, or a channel of a batch."""
    given = operation.arguments
    marks, others = of(given["input"]), [t for t in operation.tensors if t is not given["input"]]
    if any(of(tensor).any() for tensor in others):
        return _of_anything(operation, of)
    if "normalized_shape" in given:
        return marks.any(list(range(-len(given["normalized_shape"]), 0)), keepdim=True)
    if "group" in given:
        groups = marks.reshape(len(marks), given["group"], -1)
        return groups.any(-1, keepdim=True).expand(groups.shape).reshape(marks.shape)
    batch = given.get("training", given.get("running_mean") is None)
    return marks.any([dim for dim in range(marks.dim()) if dim != 1], keepdim=True) if batch else marks


def _convolved(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """Each channel is of all channels of its group, at whatever place."""
    given = operation.arguments
    if any(of(tensor).any() for tensor in operation.tensors if tensor is not given["input"]):
        return _of_anything(operation, of)
    marks, groups = of(given["input"]), given["groups"]
    weight = given["weight"]
    channels = weight.shape[1] * groups if given.get("transposed") else len(weight)
    by_group = marks.reshape(len(marks), groups, -1).any(-1)
    spread = by_group.repeat_interleave(channels // groups, 1)
    return spread.reshape(*spread.shape, *[1] * (marks.dim() - 2))


def _multiplied(operation: Operation, of: Callable[[Any], Tensor]) -> Tensor:
    """
    Each element of a product of matrices is of a row of one and a column of the other, and of what is added.

    Where the one is 0, whatever the network's input is, it is not of the other.
    """
    first, second = MATRICES[operation.name]
    one, other = operation.arguments[first], operation.arguments[second]
    rows, columns = of(one), of(other)
    marks = rows.any(-1, keepdim=True) | columns.any(-2, keepdim=True)
    zero_rows, zero_columns = (((factor == 0) & ~mark) for factor, mark in ((one, rows), (other, columns)))
    if zero_rows.any() or zero_columns.any():
        counts = rows.float() @ (~zero_columns).float() + (~zero_rows).float() @ columns.float()
        marks = counts > 0
    added = [tensor for tensor in operation.tensors if tensor is not one and tensor is not other]
    return reduce(torch.logical_or, map(of, added), marks)


# Operations whose results have no more of a tensor than its shape.
SHAPED = frozenset(
    "zero empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_empty_strided new_zeros "
    "new_ones new_full".split()
)
# Arguments that say where elements are, and are none of them.
PLACES = frozenset("index indices lengths mask repeats".split())
POOLINGS = [
    *(f"{kind}_pool{n}d" for kind in ("avg", "_adaptive_avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (2, 3)),
    *(f"upsample_{kind}" for kind in "nearest1d nearest2d nearest3d linear1d bilinear2d trilinear3d".split()),
    *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
]
_RULES: dict[str, Rule] = {
    name: rule
    for rule, names in {
        _of_nothing: " ".join(SHAPED),
        _of_product: "mul",
        _of_quotient: "div",
        _of_choice: "where",
        _of_filled: "masked_fill",
        _of_source: "copy fill",
        _elementwise: "_to_copy hardswish _prelu_kernel log_sigmoid_forward rrelu_with_noise lift_fresh_copy",
        _moved: "cat stack index_select gather take index index_put _index_put_impl index_copy index_add index_fill "
        "scatter scatter_add slice_scatter select_scatter repeat flip roll tril triu diag_embed constant_pad_nd "
        "pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im cumsum _pack_padded_sequence "
        + " ".join(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))
        + " "
        + " ".join(POOLINGS),
        _looked_up: "embedding",
        _reduced: "sum mean amax amin max min prod var std var_mean std_mean logsumexp norm linalg_vector_norm any all "
        "argmax argmin count_nonzero nansum aminmax median",
        _along: "_softmax _log_softmax _safe_softmax cumprod cummax cummin logcumsumexp sort argsort topk",
        _normalised: "native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit cudnn_batch_norm "
        "_native_batch_norm_legit_no_training miopen_batch_norm _fused_rms_norm",
        _convolved: "convolution _convolution convolution_overrideable",
        _multiplied: " ".join(MATRICES),
    }.items()
    for name in names.split()
}


@cache
def _rule(name: str) -> Rule:
    """The rule of an operation, by its name."""
    if name in _RULES:
        return _RULES[name]
    packet = getattr(torch.ops.aten, name, None) if name else None
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []
    return _elementwise if any(torch.Tag.pointwise in overload.tags for overload in overloads) else _of_anything
