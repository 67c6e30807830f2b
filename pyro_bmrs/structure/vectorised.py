# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Runs of a Pyro program at many points or draws at once, where its code allows it, and one by one where it does not.

Vectorised is the code itself, by :func:`torch.func.vmap`: it sees one draw, and needs to know nothing of the others.

Pyro has one stack of handlers, one parameter store and one set of random numbers for a whole process. What is run takes
its own of the latter two, and threads take turns: whoever runs a program holds :data:`TURN`.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, maybe_get_bdim
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from tqdm.auto import tqdm

# Entered again by who has it.
TURN = threading.RLock()

# Elements of the largest tensor that a vectorised run holds.
MOST_ELEMENTS = 20_000_000


class Vectorised:
    """
    A function of one input, of many: at once, or, once that has failed, one by one.

    Random draws are others for each input. No gradients are kept, and nothing is validated where inputs are taken at
    once, since that reads values.

    :param doing: what is done, for the progress bar.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_bmrs.structure.vectorised import Vectorised
        >>> def program(scale):
        ...     return {"z": pyro.sample("z", dist.Normal(0.0, scale))}
        >>> drawn = Vectorised("drawing")(program, torch.tensor([0.001, 1.0, 1000.0]))
        >>> drawn["z"].shape
        torch.Size([3])
    """

    def __init__(self, doing: str) -> None:
        self.doing = doing
        # How large the tensors of the last function are, which is often the next one too.
        self._measured: tuple[Callable[[Any], Any], int] | None = None
        self.at_once = True
        """Whether inputs are taken at once: as long as no function has failed so."""
        self._owned = _EMPTY

    @torch.no_grad()
    def __call__(self, function: Callable[[Any], Any], inputs: Any, *, progress: bool = False) -> Any:
        """
        What a function gives for each of many inputs.

        :param function: takes one input, and gives tensors, one or several in mappings and sequences.
        :param inputs: a tensor, or several in mappings and sequences, with the inputs along the first dimension.
        :param progress: whether to show a progress bar.
        :return: what the function gives, with the inputs along the first dimension of each tensor.
        """
        count = len(tree_leaves(inputs)[0])
        while self.at_once and count > 1:
            try:
                return self._in_chunks(function, inputs, count, progress)
            # Code may fail under vmap in many ways: a branch on a value, .item(), an operation without a rule, or one
            # in place, which a tensor for each input mends.
            except Exception:
                self.at_once = self._owned is not _MADE
                self._owned = _MADE
        places = tqdm(range(count), desc=self.doing, disable=not progress, leave=False)
        return _join(torch.stack, [function(_take(inputs, place)) for place in places])

    def _in_chunks(self, function: Callable[[Any], Any], inputs: Any, count: int, progress: bool) -> Any:
        with pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # at an operation, not at the whole
            if self._measured is None or self._measured[0] != function:
                self._measured = function, largest_tensor(lambda: function(_take(inputs, 0)))
            size = max(1, MOST_ELEMENTS // self._measured[1])
            mapped = torch.func.vmap(_in_its_place(function, self._owned), randomness="different")
            starts = tqdm(range(0, count, size), desc=self.doing, disable=not progress, leave=False)
            return _join(torch.cat, [mapped(_take(inputs, slice(start, start + size))) for start in starts])


def _take(inputs: Any, which: int | slice) -> Any:
    return tree_map(lambda values: values[which], inputs)


def _join(how: Callable[[Any], Tensor], rows: list[Any]) -> Any:
    return tree_map(lambda *values: how(values), *rows)


def _in_its_place(function: Callable[[Any], Any], owned: Collection[Any]) -> Callable[[Any], Any]:
    def run(given: Any) -> Any:
        with _InItsPlace(tree_leaves(given)[0].sum(), owned):
            return function(given)

    return run


# What distributions fill with noise in place, and vmap refuses to where the empty tensor is one for all.
_EMPTY = frozenset[Any]({torch.empty, torch.empty_like, torch.Tensor.new, torch.Tensor.new_empty})
# What code fills in place, or sums into, besides. Not from the first, as most of it is only read, once for all inputs.
_MADE = _EMPTY | {
    *(torch.zeros, torch.ones, torch.full, torch.eye, torch.arange, torch.tensor, torch.as_tensor),
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.clone, torch.Tensor.clone),
    *(torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_full, torch.Tensor.new_tensor),
}
# What reads a number of a tensor.
_READS = frozenset[Any](
    {
        *(torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__),
        *(torch.Tensor.item, torch.Tensor.tolist),
    }
)
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]


class _InItsPlace(TorchFunctionMode):
    """
    Does what distributions do in place, and vmap refuses to, in a way that it does not.

    Empty tensors get an element of their own for each input of a vectorised run; a number at all elements that a mask
    names, as a multinomial distribution has it, is filled in without asking which they are. A matrix that has no
    Cholesky factor gets one of NaNs, so that one such input of many stops no others. A value that is read is that of
    all inputs, where it is the same: most of what code asks is whether something is wrong, and it seldom is.

    :param like: a number that is another for each input.
    :param owned: functions that make tensors, of which each input gets one of its own.
    """

    def __init__(self, like: Tensor, owned: Collection[Any]) -> None:
        super().__init__()
        self.like, self.owned = like, owned

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__setitem__ and _fills_by_mask(*args):
            target, mask, value = args
            target.masked_fill_(mask.reshape(mask.shape + (1,) * (target.dim() - mask.dim())), value)
            return None
        if func is torch.linalg.cholesky:
            factor, failed = torch.linalg.cholesky_ex(*args, **(kwargs or {}))
            return torch.where((failed == 0)[..., None, None], factor, torch.nan)
        if func in _READS:
            return func(_same_for_all(args[0]), *args[1:], **(kwargs or {}))
        if func == _DATA:  # another object each time, and equal
            return args[0].detach()
        result = func(*args, **(kwargs or {}))
        if func not in self.owned or not isinstance(result, Tensor) or result.device != self.like.device:
            return result
        return torch.where(self.like == self.like, result, result)


def _same_for_all(value: Tensor) -> Tensor:
    """What a tensor of a vectorised run is for each input, where it is the same for all; itself where it is not."""
    inner: Tensor = value
    while is_functorch_wrapped_tensor(inner):
        level, batch_dim = get_unwrapped(inner), maybe_get_bdim(inner)
        if batch_dim >= 0:
            first = level.select(batch_dim, 0).unsqueeze(batch_dim)
            if not level.isclose(first, rtol=0, atol=0, equal_nan=True).all():
                return value
            level = first.squeeze(batch_dim)
        inner = level
    return inner


def _fills_by_mask(target: Tensor, place: Any, value: Any) -> bool:
    is_mask = isinstance(place, Tensor) and place.dtype == torch.bool
    return is_mask and (not isinstance(value, Tensor) or value.dim() == 0)


class _Largest(TorchFunctionMode):
    """Notes how many elements the largest tensor has that any operation gives."""

    elements: int = 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, _whole(value).numel())
        return result


def _whole(value: Tensor) -> Tensor:
    """A tensor with the inputs of all vectorised runs that it is in."""
    while is_functorch_wrapped_tensor(value):
        value = get_unwrapped(value)
    return value


def largest_tensor(run: Callable[[], Any]) -> int:
    """
    The elements of the largest tensor that a run makes.

    :raises RuntimeError: where the run draws from a generator that does not know of vectorised runs: it would draw once
        for all.
    """
    before = random.getstate(), np.random.get_state(legacy=False)
    with _Largest() as largest:
        run()
    if random.getstate() != before[0] or not _same_state(np.random.get_state(legacy=False), before[1]):
        raise RuntimeError("the run draws from Python's or NumPy's generator")
    return int(largest.elements)


def _same_state(one: Any, other: Any) -> bool:
    return (
        bool(np.array_equal(one["state"]["key"], other["state"]["key"]))
        and one["state"]["pos"] == other["state"]["pos"]
    )


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Lets what is inside seed the global generators, and puts them back."""
    state = get_rng_state()
    # A device that nothing has been drawn on yet is not woken for this.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        set_rng_state(state)


def set_seed(number: int) -> None:
    """
    Seeds the global generators, with any integer.

    They draw as after ``pyro.set_rng_seed``. That seeds devices too which have never been used, for when they will be,
    and keeps the stack of each such call: three milliseconds, where an evaluation of the ELBO takes four.
    """
    number %= 2**32
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


@contextmanager
def own_parameters() -> Iterator[None]:
    """Lets what is inside put parameters into the store, and takes them out again; those that were there stay."""
    store = pyro.get_param_store()
    with store.scope(store.get_state()):
        yield
