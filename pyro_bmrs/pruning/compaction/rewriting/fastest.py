# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Sizes at which the layers of a network are fastest, as measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
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
# What the times of one network are found to differ by.
_CLOCK = 0.015


def fastest(build: Callable[[Rounding], Rewritten], masked: nn.Module, batches: Sequence[Any]) -> Rewritten:
    """
    The network with each layer at the size at which it is fastest; without rounding, or as it was, if it is faster so.

    All multiples are tried for all layers at once, and the time of each layer is taken by itself. Then whole networks
    are compared, among them one with all heads, for which there are kernels that heads of other sizes do not have. One
    that is smaller has to be no slower than the network as it was, on any of the batches.

    :param build: the compact network for sizes that are rounded up.
    :param masked: the network that it is made of.
    :param batches: what they are called with, one after the other; each counts the same.
    """
    roundings = [Rounding(multiple) for multiple in _MULTIPLES]
    tried = [build(rounding) for rounding in roundings]
    every = roundings[0].asked
    if not every:
        return tried[0]
    parts = {layers: _timed(layers, masked, tried[0].net) for layers in every}
    names = sorted({name for own in parts.values() for name in own})
    nets = [done.net for done in tried]
    times = [latencies_of_modules(nets, [names] * len(tried), batch) for batch in batches]
    chosen = {layers: _MULTIPLES[_first_fast([_totals(own, each) for each in times])] for layers, own in parts.items()}
    heads = {layers: WHOLE for layers in every if len(layers) == 1}
    finalists = [tried[0]]
    for multiples in (chosen, {**chosen, **heads}):
        if any(multiple != 1 for multiple in multiples.values()):
            finalists.append(build(Rounding(1, multiples)))
    finalists.append(tried[-1])
    measured = [latencies([done.net for done in finalists], batch) for batch in batches]
    return finalists[_first_fast(measured, no_slower_than_last=True)]


def _timed(layers: Layers, masked: nn.Module, smaller: nn.Module) -> list[str]:
    """The names in the smaller network of the layers that have channels, or of the attention that has the heads."""
    present = dict(smaller.named_modules())
    modules = {_without_scales(masked, name): _part(masked, name) for name in sorted(layers)}
    return [
        name
        for name, part in modules.items()
        if name in present and isinstance(part, nn.Module) and not isinstance(part, Scale)
    ]


def _part(net: nn.Module, name: str) -> Any:
    """The module, or the loose parameter, of a name, in which the multiplications around others may stand or not."""
    return reduce(getattr, name.split("."), net)


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


def _first_fast(times: Sequence[Sequence[float]], *, no_slower_than_last: bool = False) -> int:
    """
    The place of the first that is hardly slower than the fastest.

    :param times: for each batch what each takes on it; of all batches, in the mean of what they take beside the last.
    :param no_slower_than_last: whether it must not take longer than the last on any batch, as far as a clock tells.
    """
    beside = [[time / own[-1] if own[-1] else 1.0 for time in own] for own in times]
    means = [sum(ratios) / len(ratios) for ratios in zip(*beside)]
    allowed = [not no_slower_than_last or max(ratios) <= 1 + _CLOCK for ratios in zip(*beside)]
    fastest = min(mean for mean, is_allowed in zip(means, allowed) if is_allowed)
    return next(
        place
        for place, (mean, is_allowed) in enumerate(zip(means, allowed))
        if is_allowed and mean <= (1 + _MARGIN) * fastest
    )
