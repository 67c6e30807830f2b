# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What layers are given whatever the network's input is.

A unit can be removed, exactly, where what the layers behind it get from it is 0, or a constant that their biases can
take over. That is found by calling the network once, and following what depends on its input.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from pyro_bmrs.pruning.compaction.coupling.dependence import Dependence
from pyro_bmrs.pruning.examples import call, evaluation, failure_in_training, paths_of_training
from pyro_bmrs.pruning.layers import channel_dim


def constant_inputs(net: nn.Module, readers: Collection[str], example_inputs: Any) -> dict[str, Tensor]:
    """
    What layers are given in each of their input channels, where it does not depend on the network's input.

    :param net: a network with multiplications, some of them by 0.
    :param readers: names of linear and convolutional layers.
    :param example_inputs: what the network is called with.
    :return: for each of the layers that is called, the constant of each input channel; NaN for a channel that depends
        on the input, or whose constant is not the same everywhere.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning.compaction.modules.scaling import Scale
        >>> net = nn.Sequential(nn.Linear(2, 2), Scale(torch.tensor([0.0, 1.0]), -1), nn.Sigmoid(), nn.Linear(2, 1))
        >>> constant_inputs(net, ["3"], torch.ones(1, 2))["3"]
        tensor([0.5000,    nan])
    """
    seen: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = next(leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf))
            given = torch.where(marks[-1].of(values), torch.nan, values)
            seen.setdefault(name, []).append(given.movedim(channel_dim(module, given), 0).flatten(1))

        return hook

    marks: list[Dependence] = []

    def look() -> None:
        # Attention as products of matrices, whichever other kernels there are.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), ExitStack() as stack:
            marks.append(stack.enter_context(Dependence()))
            for tensor in _tensors(example_inputs):
                marks[-1].mark(tensor)
            for name in readers:
                hook = net.get_submodule(name).register_forward_pre_hook(note(name), with_kwargs=True)
                stack.callback(hook.remove)
            call(net, example_inputs)

    with evaluation(net):
        look()
    if set(readers) - seen.keys() and failure_in_training(net, example_inputs) is None:
        with paths_of_training(net):
            look()
    return {name: _constant(torch.cat(channels, -1)) for name, channels in seen.items()}


def _tensors(inputs: Any) -> Iterator[Tensor]:
    """All tensors in a structure of whatever classes; a graph or a tokenizer's batch is an object of its own."""
    left, seen = [inputs], set()
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, type | ModuleType):
            continue
        seen.add(id(value))
        if torch.is_tensor(value):
            yield value
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list | tuple | Set):
            left += value
        left += getattr(value, "__dict__", {}).values()


def _constant(channels: Tensor) -> Tensor:
    """The constant of each row; NaN where there is none."""
    low, high = channels.amin(1), channels.amax(1)
    # Vectorised and scalar code may round differently.
    rounding = 8 * torch.finfo(channels.dtype).eps * torch.maximum(low.abs(), high.abs())
    return torch.where(high - low <= rounding, low, torch.nan)
