# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Which channel each element of a tensor is of, followed through one call of a network.

A layer of the table of kinds is one step: its input's elements come to its channels, and its output's are new ones.
What happens between layers is followed operation by operation, by the rules of :mod:`.passage`. Views need no rule, as
the channels stand beside memory. Each operation is looked at once: the work grows with their number, and with that of
the channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from pyro_bmrs.pruning.compaction.coupling.passage import NONE, along, compressed, pass_through, same_along
from pyro_bmrs.pruning.compaction.modules.recurrence import Recurrence
from pyro_bmrs.pruning.compaction.modules.scaling import Scale, Scaled
from pyro_bmrs.pruning.compaction.modules.unrolled import Steps, UnrolledCell
from pyro_bmrs.pruning.examples import call
from pyro_bmrs.pruning.layers import (
    can_lose_channels,
    channel_dim,
    channel_dims,
    kernel_dims,
    layer_kind,
    num_channels,
    num_groups,
)
from pyro_bmrs.pruning.streams.operations import Carried, Operation, memory_of

_RESHAPES = frozenset({"view", "_unsafe_view", "_reshape_alias"})
_SPLITS = frozenset({"split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes"})


class Division(NamedTuple):
    """
    Where channels of one dimension are divided, into as many of another or into several tensors.

    :param module: the module in whose forward it is.
    :param parts: the numbers of the channels of each part.
    """

    module: str
    parts: list[list[int]]


class ChannelFlow(Carried[Tensor | None]):
    """
    Notes in one call of a network which channels are tied, and which cannot be taken out.

    Channels are numbered: those of one side of a module, or of one dimension of a loose parameter, come one after the
    other from where ``begins`` says, ``size`` of them. ``pairs`` are of tied ones, ``obstacles`` say of some why they
    have to stay, and ``divisions`` where they are divided.

    :param net: the network.
    """

    read = None

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.begins: dict[tuple[str, str], tuple[int, int]] = {}
        self.pairs: list[Tensor] = []
        self.obstacles: dict[int, str] = {}
        self.divisions: list[Division] = []
        self.seen: set[nn.Module] = set()
        self._net = net
        self.size = 0
        self._names = {module: name for name, module in net.named_modules()}
        self._steps = {module for module in self._names if _is_step(module)}
        inside = {id(value) for step in self._steps for value in (*step.parameters(), *step.buffers())}
        # Buffers as well: a batch norm whose numbers are fixed may be written with them.
        buffers = ((name, value) for name, value in net.named_buffers() if value.is_floating_point())
        loose = {name: value for name, value in (*net.named_parameters(), *buffers) if id(value) not in inside}
        self._loose = {memory_of(value): (name, value) for name, value in loose.items()}
        self._weights: dict[int | None, tuple[str, nn.Parameter, int]] = {}
        # Those of layers are channels too, where their weights are used past them: the last layer's and an embedding's.
        for step in self._steps:
            self._know_weight(step)
        # By their identity, pieces of memory, which are kept alive, with the size and the channel of each element.
        self._channels: dict[int, tuple[torch.UntypedStorage, int, Tensor]] = {}
        self._around: list[str] = []
        self._depth = 0

    def follow(self, example_inputs: Any) -> None:
        """Calls the network, in the modes that its modules are in."""
        # Attention as products of matrices, whichever other kernels there are.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), ExitStack() as stack:
            for module in self._names:
                enter = self._enter_step if module in self._steps else self._enter
                leave = self._leave_step if module in self._steps else self._leave
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
            stack.enter_context(self)
            output = call(self._net, example_inputs)
            for leaf in tree_leaves(dict(output) if hasattr(output, "to_tuple") else output):
                if torch.is_tensor(leaf):
                    self._note(self.of(leaf), "the network returns them")

    @property
    def missed(self) -> set[nn.Module]:
        """The layers that were not called."""
        return self._steps - self.seen

    def channels_of(self, name: str, side: str, size: int) -> Tensor:
        """The numbers of the channels of one side of a module."""
        begin, _ = self.begins.setdefault((name, side), (self.size, size))
        self.size = max(self.size, begin + size)
        return torch.arange(begin, begin + size, dtype=torch.int32)

    # What rules ask, and write down.

    def of(self, tensor: Tensor) -> Tensor:
        memory = memory_of(tensor)
        if memory in self._loose and memory not in self._channels:
            self._begin_parameter(tensor)
        elif memory in self._weights and memory not in self._channels:
            self._begin_weight(tensor)
        storage, size, channels = self._channels.get(memory, (None, 0, None)) if memory is not None else (None, 0, None)
        if channels is None or size != tensor.element_size():
            return torch.full((), NONE, dtype=torch.int32).expand(tensor.shape)
        return channels.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def tied(self, one: Tensor, other: Tensor) -> Tensor:
        one, other = torch.broadcast_tensors(one, other)
        differ = (one >= 0) & (other >= 0) & (one != other)
        if differ.any():
            self.pairs.append(torch.stack([one[differ], other[differ]], 1).unique(dim=0))
        return torch.where(one >= 0, one, other)

    def stop(self, channels: Tensor, operation: str) -> None:
        around = next((name for name in reversed(self._around) if name), "the network")
        self._note(channels, f"{around} needs all its channels, for {operation}")

    def divide(self, parts: Sequence[Tensor]) -> None:
        self.divisions.append(Division(self._around[-1] if self._around else "", [part.tolist() for part in parts]))

    def _note(self, channels: Tensor, obstacle: str) -> None:
        for number in compressed(channels).unique().tolist():
            if number >= 0:
                self.obstacles.setdefault(number, obstacle)

    # Marks beside tensors.

    def __torch_dispatch__(self, overload: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._depth:
            return overload(*args, **(kwargs or {}))
        return super().__torch_dispatch__(overload, types, args, kwargs)

    def joined(self, read: Tensor | None, tensor: Tensor) -> Tensor | None:
        """Numbers that Python reads are of no channel."""
        return None

    def through(self, operation: Operation) -> Tensor | None:
        followed = [tensor for tensor in operation.tensors if self._is_followed(tensor)]
        if not followed:
            return None
        if operation.name in _RESHAPES | _SPLITS:
            self._look_at_division(operation)
        if operation.is_view or operation.name in _RESHAPES:
            return None
        if any(memory_of(tensor) in self._loose for tensor in followed):
            self._turn_parameters(followed)
        return pass_through(operation, self)

    def put(self, tensor: Tensor, carried: Tensor | None) -> None:
        memory = memory_of(tensor)
        if memory is None or (carried is None and memory not in self._channels):
            return
        storage, size = tensor.untyped_storage(), tensor.element_size()
        count = storage.nbytes() // size
        _, known_size, channels = self._channels.get(memory, (None, 0, None))
        if channels is None or known_size != size or len(channels) < count:
            grown = torch.full((count,), NONE, dtype=torch.int32)
            if channels is not None and known_size == size:
                grown[: len(channels)] = channels
            channels = grown
            self._channels[memory] = storage, size, channels
        place = channels.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        place.copy_(torch.tensor(NONE) if carried is None else _fitted(carried, tensor))

    def _is_followed(self, tensor: Tensor) -> bool:
        memory = memory_of(tensor)
        return memory in self._channels or memory in self._loose or memory in self._weights

    def _know_weight(self, step: Any) -> None:
        weight, size = getattr(step, "weight", None), num_channels(step, "out")
        if isinstance(weight, nn.Parameter) and size is not None and can_lose_channels(step, "out"):
            dim = channel_dims(step, "out", size)["weight"]
            self._weights.setdefault(memory_of(weight), (self._names[step], weight, dim))

    def _begin_weight(self, tensor: Tensor) -> None:
        name, weight, dim = self._weights[memory_of(tensor)]
        step = self._net.get_submodule(name)
        side = "through" if can_lose_channels(step, "through") else "out" if num_groups(step) == 1 else None
        if side is not None:
            numbers = self.channels_of(name, side, weight.shape[dim])
            self.put(weight.detach(), numbers.reshape([-1 if other == dim else 1 for other in range(weight.dim())]))

    def _begin_parameter(self, tensor: Tensor) -> None:
        """The elements of a loose parameter are channels along its last dimension, until it is seen beside others."""
        name, parameter = self._loose[memory_of(tensor)]
        dims = [dim for dim, size in enumerate(parameter.shape) if size > 1]
        self._number_parameter(name, parameter, dims[-1] if dims else None)

    def _number_parameter(self, name: str, parameter: Tensor, dim: int | None) -> None:
        numbers = torch.tensor(NONE, dtype=torch.int32)
        if dim is not None:
            numbers = self.channels_of(name, str(dim), parameter.shape[dim])
            numbers = numbers.reshape([-1 if other == dim else 1 for other in range(parameter.dim())])
        self.put(parameter.detach(), numbers)

    def _turn_parameters(self, tensors: list[Tensor]) -> None:
        """Numbers loose parameters along the one dimension in which the channels differ that they are beside."""
        others = [tensor for tensor in tensors if memory_of(tensor) not in self._loose]
        for tensor in tensors:
            if memory_of(tensor) not in self._loose or memory_of(tensor) in self._channels or not others:
                continue
            name, parameter = self._loose[memory_of(tensor)]
            beside = [compressed(self.of(other)) for other in others]
            dims = [
                dim
                for dim in range(-tensor.dim(), 0)
                if tensor.shape[dim] > 1 and any(c.dim() >= -dim and c.shape[dim] == tensor.shape[dim] for c in beside)
            ]
            if len(dims) == 1:
                place = tensor.stride(dims[0]), tensor.shape[dims[0]]
                own = [dim for dim in range(parameter.dim()) if (parameter.stride(dim), parameter.shape[dim]) == place]
                self._number_parameter(name, parameter, own[0] if own else None)

    def _look_at_division(self, operation: Operation) -> None:
        """Notes where a dimension along which channels differ becomes several, or several tensors."""
        tensor = operation.arguments["self"]
        channels = compressed(self.of(tensor))
        if operation.name in _SPLITS:
            sizes, dim = (
                operation.arguments.get("split_size", operation.arguments.get("split_sizes")),
                operation.arguments["dim"],
            )
            if channels.shape[dim] > 1:
                self.divide(along(channels, dim).split(sizes))
            return
        for dim, sizes in _divided_dims(tensor.shape, operation.arguments["size"]):
            numbers = along(channels, dim)
            parts = 1
            for size in sizes[:-1] if len(numbers) > 1 else ():
                parts *= size
                self.divide(numbers.reshape(parts, -1).unbind())

    # Layers.

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._around.append(self._names[module])

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._around.pop()
        is_recurrent = isinstance(module, Recurrence | UnrolledCell) and not isinstance(module, Steps)
        if is_recurrent and (len(args) > 1 or kwargs.get("hx") is not None):
            self._note_first_state(self._names[module])

    def _note_first_state(self, name: str) -> None:
        """Who gives a recurrent layer its first state may hold how many units it has, as what divides channels may."""
        around = (
            module for module in reversed(self._around) if not isinstance(self._net.get_submodule(module), Scaled)
        )
        giver = next(around, "")
        for (part, side), (begin, size) in self.begins.items():
            if side == "in" and part.startswith(f"{name}.") and part.endswith(".hidden"):
                self.divisions.append(Division(giver, [list(range(begin, begin + size))]))

    def _enter_step(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._around.append(self._names[module])
        self._depth += 1

    def _leave_step(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """What comes to the channels of a layer, and what leaves it."""
        self._depth -= 1
        self.seen.add(module)
        given = next((leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)), None)
        # A step that is part of another is not looked at.
        if given is not None and torch.is_tensor(output) and not self._depth:
            self._pass_step(module, given, output)
        self._around.pop()

    def _pass_step(self, module: Any, given: Tensor, output: Tensor) -> None:
        name = self._names[module]
        if isinstance(module, Scale) and module.dim is not None:
            return self._pass_by(name, given, output, module.dim % given.dim())
        if can_lose_channels(module, "through") and num_channels(module, "in") is not None:
            return self._pass_by(name, given, output, self._dim_by(module, given))
        if num_channels(module, "in") is not None:
            self._read(name, "in", given, channel_dim(module, given))
            if not can_lose_channels(module, "in"):
                self.stop(self.of(given), type(module).__name__)
        size = num_channels(module, "out")
        if size is not None:
            dim = output.dim() - 1 - kernel_dims(module)
            numbers = self.channels_of(name, "out", size)
            if not can_lose_channels(module, "out"):
                self.stop(numbers, type(module).__name__)
            self.put(output, numbers.reshape([-1 if other == dim else 1 for other in range(output.dim())]))

    def _pass_by(self, name: str, given: Tensor, output: Tensor, dim: int) -> None:
        numbers = self._read(name, "through", given, dim)
        self.put(output, numbers.reshape([-1 if other == dim else 1 for other in range(output.dim())]))

    def _dim_by(self, module: nn.Module, given: Tensor) -> int:
        """The dimension of the channels of a layer that treats each by itself: where as many come in."""
        channels, size, usual = compressed(self.of(given)), num_channels(module, "in"), channel_dim(module, given)
        dims = [dim for dim in range(given.dim()) if given.shape[dim] == size and channels.shape[dim] > 1]
        return usual if usual in dims or not dims else dims[0]

    def _read(self, name: str, side: str, given: Tensor, dim: int) -> Tensor:
        """Ties a module's channels on a side to what comes to them."""
        channels = same_along(self.of(given), [other for other in range(given.dim()) if other != dim], self)
        numbers = self.channels_of(name, side, given.shape[dim])
        self.tied(numbers, channels.flatten().expand(len(numbers)))
        return numbers


def _is_step(module: nn.Module) -> bool:
    """Whether it is a layer that is followed as one step; a PReLU of one weight acts on each element."""
    if isinstance(module, Scale):
        return module.dim is not None
    kind = layer_kind(module)
    return kind is not None and not (isinstance(module, nn.PReLU) and module.num_parameters == 1)


def _fitted(carried: Tensor, tensor: Tensor) -> Tensor:
    fits = carried.dim() <= tensor.dim() and all(
        size in (1, n) for size, n in zip(reversed(carried.shape), reversed(tensor.shape))
    )
    return (carried if fits else torch.tensor(NONE)).expand(tensor.shape)


def _divided_dims(before: Any, after: Any) -> Iterator[tuple[int, list[int]]]:
    """The dimensions that a view divides into several, with the sizes of these."""
    total = 1
    for size in before:
        total *= size
    known = 1
    for size in after:
        known *= size if size != -1 else 1
    after = [total // max(known, 1) if size == -1 else size for size in after]
    i = j = 0
    while i < len(before) and j < len(after):
        left, right = before[i], after[j]
        first_i, first_j = i, j
        while left != right:
            if left < right:
                i += 1
                left *= before[i]
            else:
                j += 1
                right *= after[j]
        i, j = i + 1, j + 1
        sizes = [size for size in after[first_j:j] if size > 1]
        dims = [dim for dim in range(first_i, i) if before[dim] > 1]
        if len(dims) == 1 and len(sizes) > 1:
            yield dims[0], sizes
