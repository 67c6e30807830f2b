# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Sizes at which the layers of a network are fastest, as measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from pyro_bmrs.pruning.compaction.coupling.rounding import WHOLE, Layers, Rounding
from pyro_bmrs.pruning.compaction.modules.scaling import Scale, Scaled
from pyro_bmrs.pruning.compaction.reporting.latency import latencies, latencies_of_modules
from pyro_bmrs.pruning.compaction.rewriting.rewriting import Rewritten

AUTO = "auto"
# Each leaves no fewer units than the one before: a size as it is, vectors of processors, tiles of tensor cores.
_MULTIPLES = (1, 8, 16, 32, WHOLE)
# More units are kept only where it pays by more than what measurements differ by.
_MARGIN = 0.03


def fastest(build: Callable[[Rounding], Rewritten], masked: nn.Module, example_inputs: Any) -> Rewritten:
    """
    The network with each layer at the size at which it is fastest; without rounding, or as it was, if it is faster so.

    All multiples are tried for all layers at once, and the time of each layer is taken by itself. Then whole networks
    are compared, among them one with all heads, for which there are kernels that heads of other sizes do not have.

    :param build: the compact network for sizes that are rounded up.
    :param masked: the network that it is made of.
    :param example_inputs: what they are called with.
    """
    roundings = [Rounding(multiple) for multiple in _MULTIPLES]
    tried = [build(rounding) for rounding in roundings]
    every = roundings[0].asked
    if not every:
        return tried[0]
    parts = {layers: _timed(layers, masked, tried[0].net) for layers in every}
    names = sorted({name for own in parts.values() for name in own})
    times = latencies_of_modules([done.net for done in tried], [names] * len(tried), example_inputs)
    chosen = {layers: _MULTIPLES[_first_fast(_totals(own, times))] for layers, own in parts.items()}
    heads = {layers: WHOLE for layers in every if len(layers) == 1}
    finalists = [tried[0]]
    for multiples in (chosen, {**chosen, **heads}):
        if any(multiple != 1 for multiple in multiples.values()):
            finalists.append(build(Rounding(1, multiples)))
    finalists.append(tried[-1])
    return finalists[_first_fast(latencies([done.net for done in finalists], example_inputs))]


def _timed(layers: Layers, masked: nn.Module, smaller: nn.Module) -> list[str]:
    """The names in the smaller network of the layers that have channels, or of the attention that has the heads."""
    present = dict(smaller.named_modules())
    modules = {_without_scales(masked, name): _module(masked, name) for name in sorted(layers)}
    return [name for name, module in modules.items() if name in present and not isinstance(module, Scale | None)]


def _module(net: nn.Module, name: str) -> nn.Module | None:
    """What has the name; None for a loose parameter."""
    return dict(net.named_modules()).get(name)


def _without_scales(net: nn.Module, name: str) -> str:
    """The name of a module when the multiplications around it are gone."""
    parts, current = [], net
    for part in name.split("."):
        if not (isinstance(current, Scaled) and part == "module"):
            parts.append(part)
        current = getattr(current, part)
    return ".".join(parts)


def _totals(names: Iterable[str], times: Sequence[Mapping[str, float]]) -> list[float]:
    return [sum(own[name] for name in names) for own in times]


def _first_fast(times: Sequence[float]) -> int:
    """The place of the first time that is hardly longer than the shortest."""
    return next(place for place, own in enumerate(times) if own <= (1 + _MARGIN) * min(times))
