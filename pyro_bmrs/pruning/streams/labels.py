# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Which channels the elements of tensors are, through all that a network computes between its layers.

A channel that a layer puts out has a label. What moves elements moves their labels; what adds or multiplies two ties
theirs; what mixes them, as a product of matrices does, lets them go no further. The sign of a label says whether what
is in the channel is 0 once the norm that it comes from leaves it out: such elements are negative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_bmrs.pruning.streams.operations import MATRICES, Carried, Operation, memory_of

_SHAPED = frozenset(
    "empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros new_ones new_full".split()
)
_MOVES = frozenset(
    "cat stack index_select index gather roll flip constant_pad_nd repeat upsample_nearest2d slice_scatter "
    "select_scatter".split()
)
_PLACES = frozenset("index indices".split())
_COPIES = frozenset("clone _to_copy copy native_dropout contiguous lift_fresh".split())
_REDUCTIONS = frozenset("mean sum amax amin avg_pool2d _adaptive_avg_pool2d max_pool2d_with_indices".split())
_SPLITS = frozenset("split unsafe_split split_with_sizes unsafe_split_with_sizes".split())
# Functions that are 0 at 0, or multiply: what is left out stays 0.
_KEEP_ZERO = frozenset("mul div neg gelu silu relu tanh clone _to_copy copy native_dropout contiguous abs".split())

_MOST_LABELS = 2**31


class Labels(Carried[Tensor]):
    """
    Labels of elements, kept beside their memory; 0 for none.

    Example::

        >>> import torch
        >>> one, other = torch.ones(2, 3), torch.ones(2, 3)
        >>> with Labels() as labels:
        ...     labels.put(one, torch.tensor([1, 2, 3]))
        ...     labels.put(other, torch.tensor([4, 5, 6]))
        ...     total = (one + other).transpose(0, 1)
        >>> labels.of(total).tolist(), sorted(labels.ties)
        ([[4, 4], [5, 5], [6, 6]], [(1, 4), (2, 5), (3, 6)])
    """

    read = torch.tensor(0)

    def __init__(self) -> None:
        super().__init__()
        self._labels: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}
        # Pairs of labels that are one, and labels with what they cannot be followed through.
        self.ties: set[tuple[int, int]] = set()
        self.stuck: dict[int, str] = {}
        # While a layer computes, what it is given and puts out is all that matters.
        self.paused = 0
        # Told of products with a matrix: whether that is a layer's weight, so that the layer reads the other factor.
        self.is_layer: Callable[[Tensor, Tensor], bool] = lambda given, matrix: False

    def of(self, tensor: Tensor) -> Tensor:
        """The labels of a tensor's elements."""
        memory = memory_of(tensor)
        if memory not in self._labels:
            return torch.zeros((), dtype=torch.long).expand(tensor.shape)
        return self._view(tensor)

    def put(self, tensor: Tensor, carried: Tensor) -> None:
        memory = memory_of(tensor)
        if memory is None or (memory not in self._labels and not carried.any()):
            return
        fits = carried.dim() <= tensor.dim() and all(
            size in (1, other) for size, other in zip(carried.shape[::-1], tensor.shape[::-1])
        )
        if not fits:
            self.stick(carried, "a change of shape")
        self._view(tensor).copy_(carried if fits else torch.zeros((), dtype=torch.long))

    def stick(self, labels: Tensor, where: str) -> None:
        """Has labels go no further."""
        for label in labels.unique().tolist():
            if label:
                self.stuck.setdefault(abs(label), where)

    def joined(self, read: Tensor, tensor: Tensor) -> Tensor:
        self.stick(self.of(tensor), "numbers that Python reads")
        return read

    def through(self, operation: Operation) -> Tensor:
        nothing = torch.tensor(0)
        is_view = any(result.alias_info is not None for result in operation.overload._schema.returns)
        # What is another view of the same memory has its labels.
        if self.paused or operation.name in _SHAPED or operation.name == "_unsafe_view":
            return nothing
        if operation.name in _SPLITS:
            self._tie_parts(operation)
        if (is_view and not operation.written) or torch.Tag.inplace_view in operation.overload.tags:
            return nothing
        given = {id(tensor): self.of(tensor) for tensor in operation.tensors}
        if not any(labels.any() for labels in given.values()):
            return nothing
        factors = [operation.arguments[name] for name in MATRICES.get(operation.name, ())]
        if factors and self.is_layer(*factors):
            return nothing
        try:
            return self._after(operation, lambda tensor: given[id(tensor)])
        # Of an operation that does not do with labels what it does with numbers, as of other shapes.
        except (RuntimeError, IndexError, KeyError, TypeError):
            pass
        for labels in given.values():
            self.stick(labels, operation.name or operation.overload._schema.name)
        return nothing

    def _after(self, operation: Operation, of: Callable[[Tensor], Tensor]) -> Tensor:
        name = operation.name
        if name in _MOVES:
            return self._moved(operation, of)
        if name in _REDUCTIONS:
            return self._reduced(operation, of)
        if name in _COPIES or torch.Tag.pointwise in operation.overload.tags:
            return self._combined(operation, of)
        raise KeyError(name)

    def _combined(self, operation: Operation, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Elements in one place are of one channel."""
        name = operation.name
        if name == "copy":
            return of(operation.arguments["src"]).expand(operation.arguments["self"].shape)
        result: Tensor | None = None
        for tensor in operation.tensors:
            labels = of(tensor)
            if result is None:
                result = labels
                continue
            one, other = torch.broadcast_tensors(result, labels)
            self.tie(one, other)
            larger = torch.maximum(one.abs(), other.abs())
            # A sum is 0 where both are, a product where one is.
            either = (one < 0) | (other < 0)
            both = ((one < 0) & (other < 0)) if name in ("add", "sub") else either
            result = torch.where(both, -larger, larger)
        assert result is not None
        adds_number = name in ("add", "sub") and len(operation.tensors) == 1
        keeps_zero = (name in _KEEP_ZERO or name in ("add", "sub")) and not adds_number
        return result if keeps_zero else result.abs()

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Has labels in the same place be of one channel."""
        one, other = torch.broadcast_tensors(one, other)
        both = (one != 0) & (other != 0) & (one.abs() != other.abs())
        if both.any():
            # Pairs as single numbers, which are sorted sooner.
            pairs = (one[both].abs() * _MOST_LABELS + other[both].abs()).unique()
            first, second = (pairs // _MOST_LABELS).tolist(), (pairs % _MOST_LABELS).tolist()
            self.ties.update((min(pair), max(pair)) for pair in zip(first, second))

    def _tie_parts(self, operation: Operation) -> None:
        """Channels that are split into parts of one size, the last of them perhaps smaller, go from each of them."""
        labels, dim = self.of(operation.arguments["self"]), operation.arguments["dim"]
        sizes = operation.arguments.get("split_size", operation.arguments.get("split_sizes"))
        first, *others = labels.split(sizes, dim)
        along = labels.movedim(dim, 0).flatten(1)
        is_even = isinstance(sizes, int) or len(set(sizes)) == 1
        for other in others if is_even and len(along) > 1 and not (along == along[:1]).all() else ():
            self.tie(first.narrow(dim, 0, other.shape[dim]), other)

    def _moved(self, operation: Operation, of: Callable[[Tensor], Tensor]) -> Tensor:
        """The operation does to the labels what it does to the elements."""
        numbers = {name: 0 for name in ("value",) if not torch.is_tensor(operation.arguments.get(name))}
        moved: Tensor = operation.on(
            lambda name, tensor: tensor if name in _PLACES else of(tensor).contiguous().double(), **numbers
        )
        return moved.long()

    def _reduced(self, operation: Operation, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Elements are put together of one channel alone."""
        labels = of(operation.tensors[0]).contiguous().double()
        if "max_pool" in operation.name:
            mean, most = operation.on(lambda _, tensor: labels)[0], operation.on(lambda _, tensor: -labels)[0]
            is_one = torch.equal(mean, -most)
        elif "pool" in operation.name:
            mean = operation.on(lambda _, tensor: labels)
            is_one = (operation.on(lambda _, tensor: labels.square()) - mean.square()).abs().max() < 1e-6
        else:
            dims = operation.arguments.get("dim") or list(range(labels.dim()))
            keepdim = bool(operation.arguments.get("keepdim"))
            mean = torch.amax(labels, dims, keepdim)
            is_one = torch.equal(mean, torch.amin(labels, dims, keepdim))
        if not is_one:
            raise RuntimeError("channels are put together")
        result: Tensor = mean.round().long()
        return result

    def _view(self, tensor: Tensor) -> Tensor:
        """The labels of a tensor's elements, as a view of those of its memory."""
        storage, size = tensor.untyped_storage(), tensor.element_size()
        count = storage.nbytes() // size
        _, labels = self._labels.get(storage._cdata, (None, None))
        if labels is None or len(labels) < count:
            grown = torch.zeros(count, dtype=torch.long)
            if labels is not None:
                grown[: len(labels)] = labels
            self._labels[storage._cdata], labels = (storage, grown), grown
        return labels.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
