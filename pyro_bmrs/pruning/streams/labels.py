# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Which channels the elements of tensors are, through all that a network computes between its layers.

A channel that a layer puts out has a label. What moves elements moves their labels; what adds or multiplies two ties
theirs; what mixes them, as a product of matrices does, lets them go no further. The sign of a label says whether what
is in the channel is 0 once the norm that it comes from leaves it out: such elements are negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
        # Labels below this one are of loose parameters.
        self.first_of_layers = 0

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

    def begin(self, tensor: Tensor, label: int) -> None:
        """Gives all elements of a tensor one label, wherever they are, as those of one that is expanded."""
        if memory_of(tensor) is not None:
            self._view(tensor)
            _, labels = self._labels[tensor.untyped_storage()._cdata]
            places = torch.arange(len(labels)).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            labels[places.flatten()] = label

    def _stay_beside_computed(self, given: Mapping[Tensor, Tensor]) -> None:
        """Has channels stay that are beside as many numbers of no channel, as those of positions that are computed."""
        followed = [labels for labels in given.values() if labels.any()]
        for tensor in (tensor for tensor, labels in given.items() if not labels.any()):
            for labels in followed:
                dims = range(-min(tensor.dim(), labels.dim()), 0)
                if any(_differs(tensor, dim) and _differs(labels, dim) for dim in dims):
                    self.stick(labels, "numbers that are computed")

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
        product = self._multiplied(operation, *(given[id(factor)] for factor in factors)) if factors else None
        if product is not None:
            return product
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
        if name == "index_add":
            return self._added(operation, of)
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
        self._stay_beside_computed({tensor: of(tensor) for tensor in operation.tensors})
        for tensor in operation.tensors:
            labels = of(tensor)
            if result is None:
                result = labels
                continue
            one, other = torch.broadcast_tensors(_beside(result, labels), _beside(labels, result))
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

    def _multiplied(self, operation: Operation, one: Tensor, other: Tensor) -> Tensor | None:
        """
        A product with a loose parameter, as a layer's with its weight; or a mean of what is of the same channels, as of
        several tokens or experts. None for any other.
        """
        product = self._product(one, other)
        if product is None:
            turned = self._product(other.transpose(-1, -2), one.transpose(-1, -2))
            product = None if turned is None else turned.transpose(-1, -2)
        added = operation.arguments["self"] if "self" not in MATRICES[operation.name] else None
        if product is None or added is None:
            return product
        self.tie(product, self.of(added))
        return torch.maximum(product, self.of(added).abs())

    def _product(self, given: Tensor, matrix: Tensor) -> Tensor | None:
        """A product in which the second factor has the weights, or what a mean is taken of; None for any other."""
        shape = *given.shape[:-1], matrix.shape[-1]
        if self._are_loose(matrix):
            if (given <= -self.first_of_layers).any():
                # A layer reads a channel by one column, whichever place, and whichever expert, it is of.
                channels = given.abs().flatten(0, -2).amax(0)
                self.tie(channels, given)
                self.stick(given[given > 0], "a parameter, which no norm comes before")
                self.tie(channels.unsqueeze(-1), matrix)
                return torch.zeros((), dtype=torch.long).expand(shape)
            # What comes to it past all norms is not followed on.
            self.stick(given[given >= self.first_of_layers], "a parameter, which no norm comes before")
            first = matrix.flatten(0, -2)[0]
            self.tie(first, matrix)
            return first.expand(shape)
        if not matrix.any() or not (matrix == matrix[..., :1, :]).all():
            return None
        self.stick(given, "what others are multiplied by, and added up")
        return matrix[..., :1, :].expand(shape)

    def _are_loose(self, labels: Tensor) -> bool:
        return bool(labels.numel()) and bool(((labels > 0) & (labels < self.first_of_layers)).all())

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
        along = labels.movedim(dim, -1).reshape(-1, labels.shape[dim]).T
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

    def _added(self, operation: Operation, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows are added to rows, all of the same channels."""
        dim = operation.arguments["dim"]
        one, other = (of(operation.arguments[name]) for name in ("self", "source"))
        if not other.numel():
            return one
        first = other.narrow(dim, 0, 1)
        self.tie(first, other)
        self.tie(one, first)
        return torch.where(one == 0, first, torch.maximum(one.abs(), first.abs()))

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


def _differs(values: Tensor, dim: int) -> bool:
    """Whether a tensor is not the same all along a dimension."""
    return values.shape[dim] > 1 and not torch.equal(values.narrow(dim, 0, 1).expand_as(values), values)


def _beside(labels: Tensor, others: Tensor) -> Tensor:
    """The labels, but of what is one number for several channels of the others none, as of a gate for all of them."""
    for dim in range(-min(labels.dim(), others.dim()), 0):
        if labels.shape[dim] == 1 and others.shape[dim] > 1 and (others != others.narrow(dim, 0, 1)).any():
            return torch.zeros_like(labels)
    return labels
