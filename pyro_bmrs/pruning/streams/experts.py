# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Experts of a mixture whose weights are one parameter for all of them: N. Shazeer et al. (2017),
https://arxiv.org/abs/1701.06538.

As transformers has them: ``gate_up_proj``, or ``up_proj``, and ``down_proj``, each of three dimensions, the first of
which is of the experts. A unit is the hidden unit of that number of each expert, as the parameter has to stay a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.layers import layer_units

_DOWN, _UPS = "down_proj", ("gate_up_proj", "up_proj")
# Attributes in which such modules hold how many channels come in and go out, and how many hidden units there are.
_WIDTHS = frozenset("hidden_dim hidden_size embed_dim dim d_model".split())
# Numbers of half precision in 16 bytes; and of how many weights there may be copies for each token.
_ALIGNED, _MOST_WEIGHTS = 8, 1_000_000
_HIDDEN = frozenset("intermediate_dim intermediate_size expert_dim moe_intermediate_size ffn_dim".split())


@dataclass(frozen=True)
class Experts:
    """
    What the dimensions of the parameters of some experts are.

    :param up: the name of the parameter that what comes in is multiplied with.
    :param up_dims: its dimensions of what comes in, and of hidden units.
    :param down_dims: of ``down_proj``, the dimensions of hidden units, and of what goes out.
    :param is_gated: whether there are a gate and what it is for of each hidden unit.
    :param is_concatenated: whether all gates come first, or each before what it is for.
    """

    up: str
    up_dims: tuple[int, int]
    down_dims: tuple[int, int]
    is_gated: bool
    is_concatenated: bool

    @property
    def hidden_dim(self) -> int:
        """The dimension of ``down_proj`` that counts hidden units."""
        return self.down_dims[0]

    def rows_of(self, hidden: Tensor, num_hidden: int) -> Tensor:
        """Where hidden units are along the dimension of the first parameter that has them."""
        if not self.is_gated:
            return hidden
        return torch.cat([hidden, hidden + num_hidden]) if self.is_concatenated else _pairs(hidden)


def experts_of(module: nn.Module) -> Experts | None:
    """What the dimensions of the parameters of experts are; None for what is no experts, or none of that kind."""
    parameters = module._parameters
    up = next((name for name in _UPS if parameters.get(name) is not None), None)
    first, second = parameters.get(up or ""), parameters.get(_DOWN)
    others = {f"{up}_bias", f"{_DOWN}_bias"} | {up, _DOWN}
    if up is None or first is None or second is None or first.dim() != 3 or second.dim() != 3:
        return None
    if parameters.keys() - others or any(True for part in module.children() for _ in part.parameters()):
        return None
    is_gated = bool(getattr(module, "has_gate", up == _UPS[0]))
    times, (_, a, b), (_, c, d) = 1 + is_gated, first.shape, second.shape
    # As the decorator of transformers says, or as the sizes do: of hidden units, and where these leave it open, of what
    # comes in and goes out.
    says = getattr(module, "is_transposed", None)
    fitting = [
        (is_transposed, is_as_wide)
        for is_transposed, fits, is_as_wide in ((False, a == times * d, b == c), (True, b == times * c, a == d))
        if fits and says in (None, is_transposed)
    ]
    chosen = fitting if len(fitting) == 1 else [way for way in fitting if way[1]]
    if len(chosen) != 1:
        return None
    dims = (1, 2) if chosen[0][0] else (2, 1)
    return Experts(up, dims, dims, is_gated, bool(getattr(module, "is_concatenated", True)))


def is_router(modules: Mapping[str, nn.Module], name: str, units: int) -> bool:
    """Whether a layer puts out a number for each of the experts beside it, or around it."""
    around = modules[name.rpartition(".")[0]]
    parts = [part for part in (around, *around.children()) if layer_units(part) is None]
    blocks = [value for part in parts for value in part.parameters(recurse=False) if value.dim() > 2]
    return any(len(block) == units for block in blocks)


def num_hidden(module: Any) -> int:
    """How many hidden units each expert has."""
    kind = experts_of(module)
    assert kind is not None
    return int(module.down_proj.shape[kind.hidden_dim])


def rows_of_hidden_units(module: Any) -> Tensor:
    """The weights of all experts that lead to hidden units, shape ``(hidden units, weights)``."""
    kind = experts_of(module)
    assert kind is not None
    count = num_hidden(module)
    rows: Tensor = getattr(module, kind.up).movedim(kind.up_dims[1], 0).flatten(1)
    of_units: Tensor = rows[kind.rows_of(torch.arange(count), count).to(rows.device)]
    if not kind.is_gated:
        return of_units
    by_unit: Tensor = of_units.unflatten(0, (2, -1) if kind.is_concatenated else (-1, 2))
    return (by_unit.transpose(0, 1) if kind.is_concatenated else by_unit).flatten(1)


@torch.no_grad()
def take_out_of_experts(module: Any, side: str, channels: Sequence[int]) -> None:
    """
    Takes channels out of experts, in place.

    :param module: the experts.
    :param side: ``"in"`` or ``"out"`` for what comes in or goes out, or ``"hidden"`` for hidden units.
    :param channels: which.
    """
    kind = experts_of(module)
    assert kind is not None
    sizes = {"in": (kind.up, kind.up_dims[0]), "out": (_DOWN, kind.down_dims[1]), "hidden": (_DOWN, kind.hidden_dim)}
    name, dim = sizes[side]
    size = getattr(module, name).shape[dim]
    kept = torch.ones(size, dtype=torch.bool)
    kept[list(channels)] = False
    left = kept.nonzero().flatten()
    _select(module, name, dim, left)
    if side == "out":
        _select(module, f"{_DOWN}_bias", 1, left)
    if side == "hidden":
        rows = kind.rows_of(left, size)
        _select(module, kind.up, kind.up_dims[1], rows)
        _select(module, f"{kind.up}_bias", 1, rows)
    counts = _HIDDEN if side == "hidden" else _WIDTHS
    for attribute in counts & vars(module).keys():
        if vars(module)[attribute] == size:
            setattr(module, attribute, len(left))
    _keep_to_kernels(module)


def implementation(module: nn.Module) -> str | None:
    """Which of transformers' implementations experts are computed by; None where there is no choice."""
    says = getattr(vars(module).get("config"), "_experts_implementation", None)
    return says if isinstance(says, str) else None


def set_implementation(module: nn.Module, name: str) -> None:
    """
    Has the experts of a model be computed by another of transformers' implementations.

    :raises ReductionError: for a module that has no choice, or a name that is none of those chosen here.
    """
    if implementation(module) is None or name not in ("eager", "batched_mm"):
        raise ReductionError(f"a {type(module).__name__} has no implementation {name!r} of experts")
    vars(module)["config"]._experts_implementation = name


def _keep_to_kernels(module: Any) -> None:
    """Products of groups of rows are there for strides of 16 bytes alone; for other sizes there are others."""
    sizes = {size for name in (*_UPS, _DOWN) if name in module._parameters for size in getattr(module, name).shape[1:]}
    if implementation(module) == "grouped_mm" and any(size % _ALIGNED for size in sizes):
        num_weights = sum(parameter[0].numel() for parameter in module.parameters())
        # One has the weights of an expert for each token, and can be exported, the other loops over experts.
        set_implementation(module, "batched_mm" if num_weights <= _MOST_WEIGHTS else "eager")


@contextmanager
def reading_by(module: nn.Module, weight: Tensor) -> Iterator[None]:
    """
    While it lasts, experts read their hidden units by another weight; their parameter stays as it is.

    :param module: the experts.
    :param weight: in the place of ``down_proj``.
    """
    attributes = vars(module)
    try:
        # What is found in the instance comes before its parameter.
        attributes[_DOWN] = weight
        yield
    finally:
        attributes.pop(_DOWN, None)


def _select(module: nn.Module, name: str, dim: int, left: Tensor) -> None:
    parameter = module._parameters.get(name)
    if parameter is not None:
        values = parameter.detach().index_select(dim, left.to(parameter.device))
        setattr(module, name, nn.Parameter(values, parameter.requires_grad))


def _pairs(hidden: Tensor) -> Tensor:
    return torch.stack([2 * hidden, 2 * hidden + 1], 1).flatten()
