# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A budget for a network: the units that are worth most, within what they may cost together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.compact import compact
from pyro_bmrs.pruning.compaction.reporting.cost import cost
from pyro_bmrs.pruning.compaction.reporting.latency import latencies
from pyro_bmrs.pruning.compression.prices import unit_totals
from pyro_bmrs.pruning.criteria.saliency import Saliency
from pyro_bmrs.pruning.examples import evaluation
from pyro_bmrs.pruning.noise.attachment import noise_sites
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.selection.order import Unit, unit_groups
from pyro_bmrs.pruning.training.models import Likelihood

KINDS = ("parameters", "macs", "latency")
# A budget is met where so much of it is used.
MET = 0.99
# So finely are costs told apart.
_GRAINS = 4096
_MOST_TRIES = 16


class Budget(NamedTuple):
    """
    What a network may cost.

    :param kind: ``"parameters"``, ``"macs"`` (multiply-accumulate operations of one example) or ``"latency"`` (the
        median of several times for one example, in microseconds).
    :param limit: how much, as a share of the whole network's or a number.
    :param is_share: which of the two.
    """

    kind: str
    limit: float
    is_share: bool

    @classmethod
    def of(cls, budget: Mapping[str, float]) -> Budget:
        """
        Reads what a user wants.

        :param budget: one kind, with a share as a real number above 0 and up to 1, or an integer.
        :raises ReductionError: for another kind or several, or a limit that is neither.

        Example::

            >>> Budget.of({"macs": 0.25})
            Budget(kind='macs', limit=0.25, is_share=True)
        """
        if not isinstance(budget, Mapping) or len(budget) != 1 or next(iter(budget)) not in KINDS:
            raise ReductionError(f"a budget is one of {', '.join(map(repr, KINDS))} with its limit, not {budget!r}")
        kind: str = next(iter(budget))
        limit: Any = budget[kind]
        is_number = isinstance(limit, int | np.integer) and not isinstance(limit, bool) and limit > 0
        is_share = isinstance(limit, float | np.floating) and 0 < limit <= 1
        if not is_number and not is_share:
            raise ReductionError(
                f"the limit of {kind} is a share of the whole network's, a float above 0 and up to 1, or a number, a "
                f"positive int; not {limit!r}"
            )
        return cls(kind, float(limit), bool(is_share))

    def cost(self, net: nn.Module, example: Any) -> float:
        """
        What a network costs.

        :param net: the network.
        :param example: the inputs of one example.
        """
        if self.kind == "latency":
            return latencies([net], example)[0]
        return float(cost(net, example)[self.kind].sum())

    def target(self, whole: float) -> float:
        """
        The limit as a number.

        :param whole: what the whole network costs.
        """
        return self.limit * whole if self.is_share else self.limit


def knapsack(values: Sequence[float], costs: Sequence[float], capacity: float) -> list[bool]:
    """
    The items that are worth most together, of those that cost no more than a capacity together.

    Exact for costs that are integers up to a capacity of 4,096; else costs are told apart to one part in 4,096 of the
    capacity, and rounded such that the capacity is never exceeded by more than rounding does.

    :param values: what each item is worth, not negative.
    :param costs: what each costs, not negative.
    :param capacity: what they may cost together.
    :return: for each item whether it is taken.

    Example::

        >>> knapsack([6.0, 5.0, 5.0], [4, 3, 3], 6)
        [False, True, True]
    """
    if capacity < 0:
        return [False] * len(values)
    exact = all(float(own).is_integer() for own in costs) and capacity <= _GRAINS
    grain = 1.0 if exact else capacity / _GRAINS
    room = int(capacity) if exact else _GRAINS
    sizes = [round(own / grain) if grain else int(own > 0) * (room + 1) for own in costs]
    best = np.zeros(room + 1)
    taken = np.zeros((len(values), room + 1), dtype=bool)
    for item, (value, size) in enumerate(zip(values, sizes)):
        if size > room:
            continue
        with_item = best[: room + 1 - size] + value
        better = with_item > best[size:]
        taken[item, size:] = better
        best[size:] = np.where(better, with_item, best[size:])
    chosen, left = [False] * len(values), room
    for item in range(len(values) - 1, -1, -1):
        if taken[item, left]:
            chosen[item] = True
            left -= sizes[item]
    return chosen


def within_target(
    values: Sequence[float], costs: Sequence[float], measure: Callable[[list[bool]], float], target: float
) -> list[bool] | None:
    """
    The items that are worth most and cost no more than a target, where what they cost together is not the sum.

    A unit costs less the fewer there are on the other side of its weights. So the capacity of the knapsack is looked
    for with which what is taken costs what it may.

    :param values: what each item is worth, not negative.
    :param costs: what each costs beside all others.
    :param measure: what those cost together that are taken.
    :param target: what they may cost.
    :return: for each item whether it is taken; None where even with none of them it is too much.
    """
    nothing = [False] * len(values)
    if measure(nothing) > target:
        return None
    everything = [True] * len(values)
    if measure(everything) <= target:
        return everything
    found, low, high = nothing, 0.0, math.fsum(costs)
    for _ in range(_MOST_TRIES):
        middle = 0.5 * (low + high)
        items = knapsack(values, costs, middle)
        measured = measure(items)
        if measured <= target:
            found, low = items, middle
            if measured >= MET * target:
                break
        else:
            high = middle
    return found


def prune_within(
    model: Likelihood, guide: AutoTruncatedLogNormal, batches: Sequence[tuple[Any, Any]], budget: Budget, target: float
) -> None:
    """
    Leaves of a network the units that are worth most within a budget; each site keeps its best.

    A unit is worth what the data lose without it, to second order in its noise. Units that the network ties together
    are one item.

    :param model: the network with noise, and its likelihood; its ``kept`` buffers are changed.
    :param guide: the fitted guide of its noise.
    :param batches: pairs of inputs and targets, on the network's device.
    :param budget: the kind of cost.
    :param target: the most that it may be.
    :raises ReductionError: if the smallest network that can be is too large.
    """
    net: Any = model.net
    example = tree_map_only(Tensor, lambda value: value[:1], batches[0][0])
    groups = [group for group in _kept_groups(net, example) if group]
    losses = Saliency(batches, "fisher", model.negative_log_likelihood).scores(net, guide)
    costs = _unit_costs(net, guide.mean_noise(), batches[0][0], example, budget)
    worth = [sum(float(losses[name][unit]) for name, unit in group) for group in groups]
    prices = [sum(float(costs[name][unit]) for name, unit in group) for group in groups]
    fixed = _best_of_each(net, groups, worth)
    free = [number for number in range(len(groups)) if number not in fixed]

    def keep(items: list[bool]) -> None:
        for noise in guide.noise.values():
            noise.kept.fill_(False)
        for number in [*fixed, *(number for number, is_taken in zip(free, items) if is_taken)]:
            for name, unit in groups[number]:
                guide.noise[name].kept[unit] = True

    def measure(items: list[bool]) -> float:
        keep(items)
        return budget.cost(compact(net, guide, example), example)

    before = {name: noise.kept.clone() for name, noise in guide.noise.items()}
    items = within_target([worth[i] for i in free], [prices[i] for i in free], measure, target)
    if items is None:
        smallest = measure([False] * len(free))
        for name, noise in guide.noise.items():
            noise.kept.copy_(before[name])
        raise ReductionError(
            f"the budget is {target:,.0f} in {budget.kind}, and with one unit at each site it is still {smallest:,.0f}"
        )
    keep(items)


def _kept_groups(net: nn.Module, example: Any) -> list[list[Unit]]:
    """The units that are left, those together that the network ties."""
    kept = {name: site.noise.kept.tolist() for name, site in noise_sites(net).items()}
    return [[unit for unit in group if kept[unit[0]][unit[1]]] for group in unit_groups(net, example)]


def _best_of_each(net: nn.Module, groups: Sequence[Sequence[Unit]], worth: Sequence[float]) -> list[int]:
    """Which groups have to stay so that no site is left with nothing; a residual block may be."""
    fixed: list[int] = []
    for name, site in noise_sites(net).items():
        own = [number for number, group in enumerate(groups) if any(unit[0] == name for unit in group)]
        if site.kind != "block" and own and not set(own) & set(fixed):
            fixed.append(max(own, key=lambda number: worth[number]))
    return fixed


def _unit_costs(
    net: nn.Module, noise: Mapping[str, Tensor], inputs: Any, example: Any, budget: Budget
) -> dict[str, Tensor]:
    """What each unit costs beside all others; of time, which cannot be told so finely, in multiplications."""
    weights = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    each = {name: torch.ones_like(weight) for name, weight in weights.items()}
    if budget.kind != "parameters":
        macs = cost(net, example)["macs"]
        for name, ones in each.items():
            module = net.get_submodule(name.rpartition(".")[0])
            matrices = sum(own.numel() for own in module.parameters(recurse=False) if own.dim() > 1)
            operations = macs.get(name.rpartition(".")[0], 0)
            ones.mul_(operations / matrices if ones.dim() > 1 and matrices else 0.0)
    with evaluation(net), torch.enable_grad():
        return unit_totals(net, noise, inputs, each)
