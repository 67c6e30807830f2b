# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Noise that is met again: in the backward pass, where gradient checkpointing computes activations a second time.

The second time, the guide is gone, and torch's generators are what they were when the checkpointed part of the network
began (:func:`torch.utils.checkpoint.checkpoint`, with ``preserve_rng_state``, its default). By their states a draw is
found again, whichever of several losses it belongs to, and they are left as the draw left them, so that what is random
behind it, such as dropout, is the same too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionError

# So many losses may wait for their backward pass at a time.
_NUM_WAITING = 8


def is_recomputing() -> bool:
    """Whether a backward pass is on, and the network runs inside it."""
    return torch._C._current_graph_task_id() != -1


def may_be_recomputed() -> bool:
    """Whether what runs now may run again in the backward pass: hooks are on saved tensors, or gradients are off."""
    return not torch.is_grad_enabled() or _has_hooks()


def _has_hooks() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


class Recalled:
    """
    The draws of one noise, by the states of the random number generators before them.

    Example::

        >>> import torch
        >>> from pyro_bmrs.pruning.noise.steps.recalled import Recalled
        >>> recalled, before = Recalled(), torch.get_rng_state()
        >>> scale = torch.ones(3, requires_grad=True)
        >>> first, _ = recalled.draw(torch.device("cpu"), lambda: scale * torch.rand(3)), torch.rand(7)
        >>> torch.set_rng_state(before)
        >>> torch.equal(recalled.again("a", torch.device("cpu")), first)
        True
    """

    def __init__(self) -> None:
        self._draws: deque[tuple[list[Tensor], Tensor, list[Tensor]]] = deque(maxlen=_NUM_WAITING)

    def draw(self, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        """
        A draw that is remembered, unless nothing is to be differentiated.

        :param device: where the noise is.
        :param make: draws it.
        """
        before = _states(device)
        value = make()
        # Without gradients the network runs for its outputs alone, and what waits is not to be crowded out.
        if value.requires_grad or _has_hooks():
            self._draws.append((before, value, _states(device)))
        return value

    def again(self, site: str, device: torch.device) -> Tensor:
        """
        The draw that was made at the present states of the generators, which become what they were behind it.

        :param site: the name of the site.
        :param device: where the noise is.
        :raises ReductionError: if there was none.
        """
        states = _states(device)
        for before, value, after in reversed(self._draws):
            if all(map(torch.equal, before, states)):
                _set_states(device, after)
                return value
        raise ReductionError(
            f"the noise at site {site!r} is asked for in a backward pass, and no draw of the forward pass is known by "
            "the state of the random number generators: checkpoint with preserve_rng_state=True, and let no more than "
            f"{_NUM_WAITING} losses wait for their backward pass"
        )

    def __reduce__(self) -> tuple[type[Recalled], tuple[()]]:
        return type(self), ()


def _states(device: torch.device) -> list[Tensor]:
    """The states of the generators of the CPU and of the device, if it is another that has one."""
    if device.type in ("cpu", "meta"):
        return [torch.get_rng_state()]
    return [torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*_places(device))]


def _set_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, *_places(device))


def _places(device: torch.device) -> list[torch.device]:
    """What names the device among several of its type; of Apple's there is one, which takes no name."""
    return [] if device.type == "mps" else [device]
