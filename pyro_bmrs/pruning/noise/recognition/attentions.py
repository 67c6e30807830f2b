# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Attentions written as projections, and their heads: found by what a module holds.

An attention holds a number of heads or the width of one, layers under the names usual for queries, keys and values, and
one layer more, the output projection, which may lie in a module beside it. What cannot be found like this is added by
:func:`register_attention`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.layers import ATTENTION, HEAD_COUNTS, HEAD_WIDTHS, PROJECTIONS, layer_units, linear_width

_VALUES = frozenset("v v_proj value values to_v wv w_v v_lin value_proj".split())
_QUERIES = frozenset("q q_proj query queries to_q wq w_q q_lin q_attn query_proj".split())
# Names of output projections, where other layers lie beside them.
# Of keys and values at once, from a narrow layer, whose heads are wider than those of what is put out.
_LATENT = frozenset({"kv_b_proj"})
_OUTPUTS = frozenset("o o_proj out_proj proj dense c_proj out_lin to_out wo w_o proj_out out".split())


@dataclass(frozen=True)
class AttentionKind:
    """
    What the attentions of one class are, where it cannot be seen from the names of what they hold.

    :param types: the classes of these attentions.
    :param projections: the names, in an attention, of the layers that make queries, keys and values.
    :param output: the name, in it, of the output projection.
    :param heads: the attribute that counts the heads.
    :param groups: the attribute that counts the heads of keys and values, where queries share them; None for as many.
    :raises ReductionError: for types that are no modules, or no projections.

    Example::

        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AttentionKind
        >>> class Attention(nn.Module):  # asks, offers and tells make queries, keys and values, says puts out
        ...     count = 4
        >>> kind = AttentionKind((Attention,), ("asks", "offers", "tells"), "says", "count")
        >>> kind.heads
        'count'
    """

    types: tuple[type[nn.Module], ...]
    projections: tuple[str, ...]
    output: str
    heads: str
    groups: str | None = None

    def __post_init__(self) -> None:
        if not self.types or not all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in self.types):
            raise ReductionError(f"the types of attentions are a tuple of classes of modules, not {self.types!r}")
        if not self.projections:
            raise ReductionError("an attention has layers that make queries, keys and values: name them")


@dataclass(frozen=True)
class Heads:
    """
    The heads of an attention.

    :param attention: the name of the module.
    :param projections: the names of the layers that make its queries, keys and values.
    :param output: the name of its output projection.
    :param num_units: how many heads of keys and values, each with all queries that share them.
    :param unit_size: the features of one of these, of what the output projection is given.
    :param is_mixed: whether heads read each other's scores, so that none can be taken out, as in N. Shazeer et al.
        (2020), *Talking-heads attention*, https://arxiv.org/abs/2003.02436.
    """

    attention: str
    projections: tuple[str, ...]
    output: str
    num_units: int
    unit_size: int
    is_mixed: bool = False


_KINDS: list[AttentionKind] = []


def register_attention(kind: AttentionKind) -> AttentionKind:
    """
    Adds a class of attentions to those whose heads have noise, are scored, pruned and taken out.

    A class that is registered later comes before the earlier ones.

    :param kind: what these attentions are.
    :return: the same.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AttentionKind, attach_noise, noise_sites, register_attention
        >>> class Mixer(nn.Module):
        ...     def __init__(self, width, parts):
        ...         super().__init__()
        ...         self.parts, self.make, self.join = parts, nn.Linear(width, 3 * width), nn.Linear(width, width)
        ...     def forward(self, tokens):
        ...         split = self.make(tokens).unflatten(-1, (3, self.parts, -1)).permute(2, 0, 3, 1, 4)
        ...         heads = nn.functional.scaled_dot_product_attention(*split)
        ...         return self.join(heads.transpose(1, 2).flatten(2))
        >>> _ = register_attention(AttentionKind((Mixer,), projections=("make",), output="join", heads="parts"))
        >>> net = attach_noise(nn.Sequential(Mixer(12, 3), nn.Linear(12, 2)))
        >>> {name: (site.kind, site.noise.num_units) for name, site in noise_sites(net).items()}
        {'0': ('heads', 3)}
    """
    _KINDS.append(kind)
    return kind


def recognised_heads(modules: Mapping[str, nn.Module]) -> list[Heads]:
    """
    The heads of all attentions written as projections that are recognised, but for torch's own.

    :param modules: the network's modules by their names.
    """
    found = [heads for name, module in modules.items() if (heads := _heads_of(modules, name, module)) is not None]
    # An attention in a module that counts heads as well is the inner one.
    outer = {heads.attention for heads in found for other in found if _is_around(heads.attention, other.attention)}
    return [heads for heads in found if heads.attention not in outer]


def attention_of(modules: Mapping[str, nn.Module], projection: str) -> str:
    """The module whose output projection this is, which may be in a sequence with a dropout."""
    name = projection.rpartition(".")[0]
    while name and isinstance(modules[name], nn.Sequential):
        name = name.rpartition(".")[0]
    return name


def _heads_of(modules: Mapping[str, nn.Module], name: str, module: Any) -> Heads | None:
    if isinstance(module, ATTENTION):
        return None
    kind = next((kind for kind in reversed(_KINDS) if isinstance(module, kind.types)), None)
    if kind is not None:
        count = getattr(module, kind.heads)
        groups = count if kind.groups is None else getattr(module, kind.groups)
        projections = tuple(_join(name, child) for child in kind.projections)
        return _divided(modules, name, projections, _join(name, kind.output), count, groups)
    counts, widths = list(_integers(module, HEAD_COUNTS)), list(_integers(module, HEAD_WIDTHS))
    if not counts and not widths:
        return None
    linear = {_join(name, child): width for child, layer in module.named_modules() if (width := linear_width(layer))}
    projections = tuple(child for child in linear if _last(child) in PROJECTIONS)
    if not projections:
        return None
    others = [child for child in linear if child not in projections] or list(_beside(modules, name))
    output = _one_of(others)
    if output is None:
        return None
    if counts and any(_last(child) in _LATENT for child in projections):
        return _divided(modules, name, projections, output, counts[0], counts[0])
    width = linear_width(modules[output])
    count = next((width // size for size in widths if width % size == 0), counts[0] if counts else 0)
    if not count or width % count:
        return None
    return _divided(modules, name, projections, output, count, _groups(modules, projections, count, width // count))


def _divided(
    modules: Mapping[str, nn.Module], name: str, projections: tuple[str, ...], output: str, count: int, groups: int
) -> Heads | None:
    width = linear_width(modules.get(output))
    if not width or width % groups or count % groups:
        return None
    own = (layer for child, layer in modules.items() if _is_around(name, child))
    is_mixed = any(linear_width(layer) == count == layer_units(layer) for layer in own) and count != width
    return Heads(name, projections, output, groups, width // groups, is_mixed)


def _groups(modules: Mapping[str, nn.Module], projections: tuple[str, ...], count: int, size: int) -> int:
    """How many heads of keys and values there are, by the widths of what makes them; if in doubt, as of queries."""
    rows = {_last(name): layer_units(modules[name]) or 0 for name in projections}
    values = next((rows[name] for name in rows if name in _VALUES), None)
    if values is None:
        whole = sum(rows.values())
        queries = next((rows[name] for name in rows if name in _QUERIES), count * size)
        values = (whole - queries) // 2
    groups = values // size
    return groups if groups and values % size == 0 and count % groups == 0 else count


def _integers(module: nn.Module, names: tuple[str, ...]) -> Iterator[int]:
    values = (getattr(module, name, None) for name in names)
    return (value for value in values if type(value) is int and value > 0)


def _beside(modules: Mapping[str, nn.Module], name: str) -> Iterator[str]:
    """The linear layers in the module around an attention, outside of it."""
    around = name.rpartition(".")[0]
    for child, layer in modules[around].named_modules() if name else ():
        whole = _join(around, child)
        if linear_width(layer) and not _is_around(name, whole):
            yield whole


def _one_of(candidates: list[str]) -> str | None:
    """The output projection, by its name where there are others."""
    named = [child for child in candidates if _last(child) in _OUTPUTS]
    if len(named) == 1 or len(candidates) == 1:
        return (named or candidates)[0]
    return None


def _is_around(outer: str, inner: str) -> bool:
    return inner != outer and (not outer or inner.startswith(f"{outer}."))


def _last(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _join(*names: str) -> str:
    return ".".join(filter(None, names))
