# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Guides and traces as they can be pickled, without harm to the guide that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger

from pyro_bmrs.posteriors.guides.copies import copy_guide
from pyro_bmrs.structure.copies import detached


def portable(guide: Any) -> tuple[Any, list[Any]]:
    """
    A copy of a guide that can be pickled, and, apart, the models that its modules know: autoguides drop theirs.

    :return: the copy, and what :func:`with_models` gives it back.
    """
    clone = copy_guide(guide)
    if not isinstance(clone, torch.nn.Module):
        return clone, []
    for module in clone.modules():
        if isinstance(module, GuideMessenger):
            # Its way of being pickled takes for granted that it has been run.
            vars(module).setdefault("trace", poutine.Trace())
        if isinstance(vars(module).get("prototype_trace"), poutine.Trace):
            object.__setattr__(module, "prototype_trace", bare_trace(vars(module)["prototype_trace"]))
    return clone, [vars(module).get("_model") for module in clone.modules()]


def with_models(guide: Any, models: Sequence[Any]) -> Any:
    """A guide, with the models that its modules knew."""
    for module, model in zip(guide.modules() if models else (), models):
        if model is not None:
            object.__setattr__(module, "_model", model)
    return guide


def bare_trace(trace: poutine.Trace) -> poutine.Trace:
    """
    The sample statements of a trace, and the arguments that it was run with, as they can be pickled.

    Statements of parameters know the whole parameter store, tensors may know the parameters that they are, and what a
    program returns may be anything.
    """
    bare = poutine.Trace()
    for name, node in trace.nodes.items():
        if node["type"] == "sample":
            value = node["value"]
            own = {"fn": detached(node["fn"]), "value": value.detach().clone() if torch.is_tensor(value) else value}
            bare.add_node(name, **{**node, **own})
        elif node["type"] == "args":
            bare.add_node(name, **node)
    return bare


# The name of a guide's class or function, and the names and shapes of its parameters.
Signature = tuple[str, tuple[tuple[str, torch.Size], ...]]


def signature(guide: Any) -> Signature:
    """What a guide and its copies have in common, however they were trained since."""
    program = guide.__func__ if isinstance(guide, MethodType) else guide
    kind = program if isinstance(program, FunctionType) else type(guide)
    module = isinstance(guide, torch.nn.Module)
    shapes = ((name, value.shape) for name, value in guide.named_parameters()) if module else ()
    return f"{kind.__module__}.{kind.__qualname__}", tuple(shapes)
