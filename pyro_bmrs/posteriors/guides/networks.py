# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Networks that a guide runs, on other values than those that they have by now.

A guide that is a function, or a method of an object that holds its networks, cannot be copied with them. But whatever
a network computes, it computes by torch's functions, and there its tensors can be told and others put in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


class Substitution(TorchFunctionMode):
    """
    Within it, torch computes with other tensors in the place of some.

    :param pairs: each tensor with the one that stands in its place.

    Example::

        >>> import torch
        >>> from pyro_bmrs.posteriors.guides.networks import Substitution
        >>> network = torch.nn.Linear(1, 1, bias=False)
        >>> with Substitution([(network.weight, torch.tensor([[2.0]]))]):
        ...     network(torch.ones(1))
        tensor([2.])
    """

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]] = ()) -> None:
        super().__init__()
        # The tensors themselves are kept, so that no other comes to have the address of one.
        self._places: dict[int, tuple[Tensor, Tensor]] = {}
        for tensor, other in pairs:
            self.put(tensor, other)

    def put(self, tensor: Tensor, other: Tensor) -> None:
        """Has another tensor in the place of one from now on."""
        self._places[id(tensor)] = (tensor, other)

    def _other(self, tensor: Tensor) -> Tensor:
        _, other = self._places.get(id(tensor), (tensor, tensor))
        return other

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, self._other, (args, kwargs or {}))
        return func(*args, **kwargs)


@torch.no_grad()
def tensors_of_networks(
    program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[Tensor, Tensor]]:
    """
    The parameters and buffers of all networks that a program runs, each with a copy of its value.

    :param program: is run once.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def note(module: torch.nn.Module, _: Any) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            # A run may change buffers: the values are those before it.
            # What has a gradient tells what is registered with the parameter store.
            found.setdefault(id(tensor), (tensor, tensor.detach().clone().requires_grad_(tensor.requires_grad)))

    state = get_rng_state()
    handle = register_module_forward_pre_hook(note)
    try:
        with poutine.block():
            program(*args, **kwargs)
    finally:
        handle.remove()
        set_rng_state(state)
        for tensor, before in found.values():
            if not torch.equal(tensor, before):
                tensor.copy_(before)
    return list(found.values())
