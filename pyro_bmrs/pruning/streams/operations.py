# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The operations that a network is made of, one by one as they run, with what is carried along beside their tensors.

Below Python's functions and methods, all that torch computes is calls of some hundred operations, each with a schema
that says what it reads and writes. A mark that is carried through them does not depend on what a processor's kernel
does with one number or another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Mark = TypeVar("Mark")
# Functions of Python that read a tensor's numbers past torch's operations.
_READERS = frozenset("numpy tolist __array__ __dlpack__ data_ptr".split())
# Operations on tensors that Python has made of numbers.
_LIFTS = frozenset({"lift", "lift_fresh", "lift_fresh_copy"})
# Products of matrices, and the names of their factors.
MATRICES = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}


@dataclass(frozen=True)
class Operation:
    """
    One call of one of torch's operations.

    :param overload: which operation.
    :param arguments: what it is called with, by the names in its schema; defaults included, results to write to not.
    :param written: the tensors that it writes to.
    :param takes_numbers: whether it is given numbers of Python, as what makes a tensor of them is.
    """

    overload: OpOverload
    arguments: Mapping[str, Any]
    written: tuple[Tensor, ...]
    takes_numbers: bool

    @classmethod
    def of(cls, overload: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Operation:
        """The operation that an overload and its arguments are."""
        schema = overload._schema.arguments
        given = {**dict(zip((argument.name for argument in schema), args)), **kwargs}
        written = [given[argument.name] for argument in schema if _is_written(argument) and argument.name in given]
        arguments = {
            argument.name: given.get(argument.name, argument.default_value)
            for argument in schema
            if not argument.is_out
        }
        numbers = (leaf for leaf in tree_leaves(given) if isinstance(leaf, int | float | complex))
        takes_numbers = any(not isinstance(number, bool) for number in numbers)
        return cls(overload, arguments, tuple(_tensors(written)), takes_numbers)

    @property
    def name(self) -> str:
        """The operation's name, the same where it works in place; empty for one that is not torch's own."""
        namespace, _, name = self.overload._schema.name.partition("::")
        return name.rstrip("_") if namespace == "aten" else ""

    @property
    def is_view(self) -> bool:
        """Whether its results are other looks at memory that is there, or the same one in another shape."""
        if torch.Tag.inplace_view in self.overload.tags:
            return True
        results = self.overload._schema.returns
        return bool(results) and all(r.alias_info is not None and not r.alias_info.is_write for r in results)

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that it reads."""
        return tuple(_tensors(self.arguments))

    def on(self, function: Callable[[str, Tensor], Any], **others: Any) -> Any:
        """
        The same operation on other tensors.

        :param function: gives for the name of an argument, and a tensor in it, what stands in its place.
        :param others: what stands in the place of whole arguments.
        """
        schema = [argument for argument in self.overload._schema.arguments if not argument.is_out]
        values = {
            name: tree_map(partial(_replaced, partial(function, name)), others.get(name, value))
            for name, value in self.arguments.items()
        }
        positional = [values[argument.name] for argument in schema if not argument.kwarg_only]
        named = {argument.name: values[argument.name] for argument in schema if argument.kwarg_only}
        # Where results go to given tensors, it is another overload that makes new ones.
        writes_elsewhere = len(schema) < len(self.overload._schema.arguments)
        return (self.overload.overloadpacket if writes_elsewhere else self.overload)(*positional, **named)

    def changed(self, result: Any) -> Iterator[Tensor]:
        """The tensors whose numbers the operation has made: new ones and those in place, and not views of what was."""
        # What changes a tensor's shape in place writes no numbers, though its schema says that it writes.
        if torch.Tag.inplace_view not in self.overload.tags:
            yield from self.written
        present = {memory_of(tensor) for tensor in (*self.tensors, *self.written)} - {None}
        for tensor in _tensors(result):
            if memory_of(tensor) not in present:
                yield tensor


class Carried(TorchDispatchMode, ABC, Generic[Mark]):
    """
    Carries marks beside tensors, through all that is computed while it is entered.

    Numbers that Python reads from a tensor, and gives back, carry the mark ``self.read``. What Python *decides* by
    them, as a branch that it takes or the size of a tensor, does not.
    """

    # What the numbers carry that Python has read.
    read: Mark

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self._readers: TorchFunctionMode = _Readers(self._note_reading)

    def __enter__(self) -> Any:
        self._readers.__enter__()
        return TorchDispatchMode.__enter__(self)

    def __exit__(self, *error: Any) -> None:
        TorchDispatchMode.__exit__(self, *error)
        self._readers.__exit__(*error)

    def __torch_dispatch__(self, overload: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = Operation.of(overload, args, kwargs)
        if operation.name == "_local_scalar_dense" and args[0].dtype is not torch.bool:
            self._note_reading(args[0])
        for tensor in operation.tensors if self.read else ():
            if operation.name in _LIFTS or not _is_torchs(tensor):
                self.put(tensor, self.read)
        # Before the call, which may take the place of what it reads.
        carried = self.through(operation)
        result = overload(*args, **kwargs)
        for tensor in operation.changed(result):
            self.put(tensor, carried)
        return result

    def _note_reading(self, tensor: Tensor) -> None:
        self.read = self.joined(self.read, tensor)

    @abstractmethod
    def joined(self, read: Mark, tensor: Tensor) -> Mark:
        """What numbers carry that may be of a tensor, too."""

    @abstractmethod
    def through(self, operation: Operation) -> Mark:
        """What an operation's results carry."""

    @abstractmethod
    def put(self, tensor: Tensor, carried: Mark) -> None:
        """Has a tensor carry what an operation's results do."""


class _Readers(TorchFunctionMode):
    """Tells of the functions that read a tensor's numbers past torch's operations."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (resolve_name(func) or "").rpartition(".")[2] in _READERS:
            self._note(args[0])
        return func(*args, **(kwargs or {}))


def memory_of(tensor: Tensor) -> int | None:
    """What tells one piece of memory from others, as long as it is in use; None for what is in no such piece."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else None


def _is_torchs(tensor: Tensor) -> bool:
    """Whether torch has allocated a tensor's memory, and it is not that of an array of numpy, say."""
    return memory_of(tensor) is None or tensor.untyped_storage().resizable()


def _is_written(argument: torch.Argument) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _replaced(function: Callable[[Tensor], Any], leaf: Any) -> Any:
    return function(leaf) if torch.is_tensor(leaf) else leaf


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if torch.is_tensor(leaf))
