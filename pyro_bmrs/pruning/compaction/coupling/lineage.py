# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Which of some tensors others were computed from."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_bmrs.pruning.compaction.coupling.dependence import SHAPED
from pyro_bmrs.pruning.streams.operations import Carried, Operation, memory_of

_NOTHING: frozenset[Hashable] = frozenset()


class Lineage(Carried[frozenset[Hashable]]):
    """
    Names what tensors were computed from, through all that is computed while it is entered.

    That is of tensors as a whole, and not of their elements: a part of what was put together is of all its parts.

    Example::

        >>> import torch
        >>> with Lineage() as lineage:
        ...     one, other = lineage.begin("one", torch.ones(2)), lineage.begin("other", torch.ones(2))
        ...     both = one.exp() + other
        >>> sorted(lineage.of(both)), sorted(lineage.of(one))
        (['one', 'other'], ['one'])
    """

    read = _NOTHING

    def __init__(self) -> None:
        super().__init__()
        # By their identity, pieces of memory, which are kept alive, with the names of what they are of.
        self._names: dict[int, tuple[torch.UntypedStorage, frozenset[Hashable]]] = {}

    def begin(self, name: Hashable, tensor: Tensor) -> Tensor:
        """A copy of a tensor, which is followed by a name beside those of what it was computed from."""
        copy = tensor.clone()
        self.put(copy, self.of(copy) | {name})
        return copy

    def of(self, values: Any) -> frozenset[Hashable]:
        """The names of what the tensors in a structure were computed from."""
        memories = [memory_of(leaf) for leaf in tree_leaves(values) if torch.is_tensor(leaf)]
        return _NOTHING.union(*(self._names[memory][1] for memory in memories if memory in self._names))

    def put(self, tensor: Tensor, carried: frozenset[Hashable]) -> None:
        memory = memory_of(tensor)
        # What is written to a part of a tensor leaves the others what they were.
        names = carried | self.of(tensor)
        if names and memory is not None:
            self._names[memory] = tensor.untyped_storage(), names

    def joined(self, read: frozenset[Hashable], tensor: Tensor) -> frozenset[Hashable]:
        return read | self.of(tensor)

    def through(self, operation: Operation) -> frozenset[Hashable]:
        of_numbers = self.read if operation.takes_numbers else _NOTHING
        return of_numbers if operation.name in SHAPED else of_numbers | self.of(operation.tensors)
