# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Guides copied, with the parameters that they have for themselves and those that live in the parameter store alone."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.poutine.guide import GuideMessenger
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.posteriors.guides.networks import tensors_of_networks


@dataclass(frozen=True, eq=False)
class Loose:
    """
    What a guide is made of that is not its own, as it was at one time.

    :param held: the parameters that live in the parameter store alone, by name: value and constraint.
    :param fixed: tensors of networks that it runs, beside those, each with a copy of its value.
    """

    held: Mapping[str, tuple[Tensor, Constraint]] = field(default_factory=dict)
    fixed: Sequence[tuple[Tensor, Tensor]] = ()

    @staticmethod
    def take(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loose:
        """
        Reads it off a guide.

        :param args: positional arguments that the guide is run with.
        :param kwargs: keyword arguments that it is run with.
        """
        held = _loose_parameters(guide, args, kwargs)
        if isinstance(guide, (torch.nn.Module, GuideMessenger)):
            return Loose(held)  # its networks are in the copy that is made of it, or are the model's
        return Loose(held, tensors_of_networks(guide, args, kwargs))


def _loose_parameters(
    guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, tuple[Tensor, Constraint]]:
    """The guide's parameters that live in the parameter store alone, by name: value and constraint."""
    store = pyro.get_param_store()
    owned = {id(parameter) for parameter in guide.parameters()} if isinstance(guide, torch.nn.Module) else set()
    with _without_namesakes(guide):
        found = _parameter_names(guide, args, kwargs)
        names = [name for name in found if id(store._params[name]) not in owned]
    if isinstance(guide, GuideMessenger):
        # It runs its model, whose parameters stay the model's.
        names = sorted(set(names) - set(_parameter_names(guide.model, args, kwargs)))
    return {name: (store[name].detach().clone(), store._constraints[name]) for name in names}


def _parameter_names(program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    state = get_rng_state()
    with poutine.block(), torch.no_grad():
        trace = poutine.trace(program, param_only=True).get_trace(*args, **kwargs)
    set_rng_state(state)
    return [name for name in trace.nodes if name in pyro.get_param_store()]


@contextmanager
def _without_namesakes(guide: Any) -> Iterator[None]:
    """
    Lets an autoguide run on parameters of its own, where the store has others of the same name.

    These are the original's after the guide was copied or loaded, and the run would put them into the copy.
    """
    if not isinstance(guide, AutoGuide):
        yield
        return
    store = pyro.get_param_store()
    own = {f"{guide._pyro_name}.{name.removesuffix('_unconstrained')}" for name, _ in guide.named_parameters()}
    state: Any = store.get_state()
    others = [name for name in state["params"] if name.replace("$$$", ".") not in own]
    kept: Any = {part: {name: values[name] for name in others} for part, values in state.items()}
    with store.scope(kept):
        yield


def copy_guide(guide: Any) -> Any:
    """
    A guide with parameters of its own.

    Copied are a guide that is a module, the modules in it, and their parameters. Shared are the models that they know
    and the traces of their first runs, which may hold the whole data and which no training changes. Of a messenger
    that is no module, the traces of its last run become its own, and all else is shared. A function is shared: its
    parameters are in the store alone, where they get names of their own.
    """
    if not isinstance(guide, torch.nn.Module):
        return copy.copy(guide) if isinstance(guide, GuideMessenger) else guide
    originals = list(guide.modules())
    for module in originals:
        if isinstance(module, GuideMessenger):
            # Its way of being copied takes for granted that it has been run.
            vars(module).setdefault("trace", poutine.Trace())
    shared = [vars(module).get(name) for module in originals for name in ("_model", "prototype_trace")]
    memo: dict[int, Any] = {id(item): item for item in shared if item is not None}
    # Values that a module remembers of its last run cannot be copied with what they were computed from.
    computed = [value for module in originals for value in _tensors_in(vars(module)) if not value.is_leaf]
    memo |= {id(value): value.detach().clone() for value in computed}
    try:
        with _attributes_kept(originals, ("_model", "master")):
            clone = copy.deepcopy(guide, memo)
    except (TypeError, RuntimeError, copy.Error) as error:
        raise ReductionError(
            f"the {type(guide).__name__} cannot be copied ({error}), and what is read off it must stay as it is; keep "
            "what cannot be copied out of the guide"
        ) from error
    for module, twin in zip(originals, clone.modules()):
        if isinstance(twin, PyroModule):
            # Its parameters have not been read under any name yet, so it may take a place in another module.
            twin._pyro_context.used = False
        if "_model" in vars(twin):
            object.__setattr__(twin, "_model", vars(module)["_model"])
    return clone


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in plain containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item)


@contextmanager
def _attributes_kept(modules: Sequence[torch.nn.Module], names: Sequence[str]) -> Iterator[None]:
    """Puts attributes back, which autoguides drop, themselves and not only their copies, when they are copied."""
    kept = [(module, name, vars(module)[name]) for module in modules for name in names if name in vars(module)]
    try:
        yield
    finally:
        for module, name, value in kept:
            object.__setattr__(module, name, value)


class StoreEntries:
    """
    What a module puts into the parameter store under a name that no other has: taken out when nobody holds this.

    A module holds it as an attribute. Where a copy of the module has its name, it holds the same.

    :param name: the name of the module, with which the names of its parameters begin.

    Example::

        >>> import pyro, torch
        >>> from pyro_bmrs.posteriors.guides.copies import StoreEntries
        >>> entries = StoreEntries("my_guide")
        >>> value = pyro.param("my_guide.loc", torch.zeros(2))
        >>> del entries
        >>> "my_guide.loc" in pyro.get_param_store()
        False
    """

    def __init__(self, name: str) -> None:
        # The end of the process takes care of itself.
        weakref.finalize(self, _forget, f"{name}.").atexit = False

    def __copy__(self) -> StoreEntries:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> StoreEntries:
        return self


def _forget(prefix: str) -> None:
    store = pyro.get_param_store()
    for name in [name for name in store.keys() if name.startswith(prefix)]:
        # Its own way of deletion takes for granted that no parameter has two names.
        value = store._params.pop(name)
        store._constraints.pop(name, None)
        if store._param_to_name.get(value) == name:
            store._param_to_name.pop(value)
