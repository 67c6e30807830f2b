# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What networks take, measured."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pyro_bmrs.pruning.examples import evaluation, invoke

_WARM_UP = 3
_FEWEST_ROUNDS, _MOST_ROUNDS = 9, 199
# What a measurement takes, where the fewest rounds do not take longer.
_SECONDS = 0.5


def latencies(nets: Sequence[nn.Module], example_inputs: Any) -> list[float]:
    """
    What networks take for a call in evaluation, without gradients, in microseconds.

    They are called in turn, round by round, so that whatever else the machine does falls on all of them. What counts is
    the median, of the first; of the others it is the median ratio to the first in the same round, times that. Before
    the first round each is called a few times; on other devices than the processor each call is waited for.

    :param nets: the networks, compiled or not.
    :param example_inputs: what they are called with: a tensor, a sequence of positional arguments, or a mapping of
        keyword ones.
    :return: for each network what it takes.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> small, large = latencies([nn.Identity(), nn.Linear(500, 500)], torch.ones(100, 500))
        >>> small < large
        True
    """
    wait = _waiting([*(tensor for net in nets for tensor in net.parameters()), *_tensors(example_inputs)])
    times: list[list[float]] = [[] for _ in nets]
    with ExitStack() as stack, torch.no_grad():
        for net in nets:
            stack.enter_context(evaluation(net, fused=True))
            for _ in range(_WARM_UP):
                _seconds(net, example_inputs, wait)
        end = time.perf_counter() + _SECONDS
        while len(times[0]) < _FEWEST_ROUNDS or (time.perf_counter() < end and len(times[0]) < _MOST_ROUNDS):
            for net, own in zip(nets, times):
                own.append(_seconds(net, example_inputs, wait))
    return [1e6 * _relative(own, times[0]) for own in times]


def latencies_of_modules(
    nets: Sequence[nn.Module], names: Sequence[Sequence[str]], example_inputs: Any
) -> list[dict[str, float]]:
    """
    What modules of networks take in a call of the whole, in microseconds; measured as :func:`latencies` does.

    :param nets: the networks.
    :param names: for each network the names of the modules.
    :param example_inputs: what they are called with.
    :return: for each network and module what a call takes, times how often it is called.
    """
    times: list[dict[str, list[float]]] = [defaultdict(list) for _ in nets]
    wait = _waiting([*(tensor for net in nets for tensor in net.parameters()), *_tensors(example_inputs)])
    with ExitStack() as clocks:
        for net, modules, own in zip(nets, names, times):
            for name in ("", *modules):
                clocks.enter_context(_clock(net.get_submodule(name), own[name], wait))
        latencies(nets, example_inputs)
    return [{name: 1e6 * _per_call(name, own, times[0]) for name in modules} for own, modules in zip(times, names)]


def _per_call(name: str, own: Mapping[str, list[float]], first: Mapping[str, list[float]]) -> float:
    """What a module takes in a call of the network."""
    calls = len(own[name]) / len(own[""])
    return calls * _relative(own[name], first.get(name, [])) if calls else 0.0


def _relative(times: list[float], first: list[float]) -> float:
    """The median of times, by that of others that were taken in turn with them, if they were."""
    if len(times) != len(first):
        return median(times)
    return median(first) * median(own / other for own, other in zip(times, first))


@contextmanager
def _clock(module: nn.Module, times: list[float], wait: Callable[[], None]) -> Iterator[None]:
    """Notes what each call of a module takes."""
    begun: list[float] = []

    def begin(*_: Any) -> None:
        wait()
        begun.append(time.perf_counter())

    def end(*_: Any) -> None:
        wait()
        times.append(time.perf_counter() - begun.pop())

    hooks = module.register_forward_pre_hook(begin), module.register_forward_hook(end)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _seconds(net: nn.Module, example_inputs: Any, wait: Callable[[], None]) -> float:
    """What one call takes, but not the copy of the inputs, which some networks write to."""
    inputs = tree_map_only(Tensor, Tensor.clone, example_inputs)
    wait()
    start = time.perf_counter()
    invoke(net, inputs)
    wait()
    return time.perf_counter() - start


def _waiting(tensors: Sequence[Tensor]) -> Callable[[], None]:
    """Waits until all that was asked of the devices of some tensors is done."""
    devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}

    def wait() -> None:
        for device in devices:
            torch.accelerator.synchronize(device)

    return wait


def _tensors(example_inputs: Any) -> Iterator[Tensor]:
    return filter(torch.is_tensor, tree_leaves(example_inputs))


def batches(example_inputs: Any, sizes: Sequence[int]) -> Mapping[int, Any]:
    """
    The examples of a batch as batches of other sizes, in which they come again and again.

    :param example_inputs: a tensor, or several in a sequence or a mapping. Those with as many rows as the first have an
        example in each; the others stay as they are.
    :param sizes: how many examples each batch has.

    Example::

        >>> import torch
        >>> batches(torch.tensor([[1], [2]]), [1, 3])
        {1: tensor([[1]]), 3: tensor([[1],
                [2],
                [1]])}
    """
    count = next((len(tensor) for tensor in _tensors(example_inputs) if tensor.dim()), 0)

    def of_size(size: int, tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != count:
            return tensor
        return tensor.index_select(0, torch.arange(size, device=tensor.device) % count)

    return {size: tree_map_only(Tensor, partial(of_size, size), example_inputs) for size in sizes}
