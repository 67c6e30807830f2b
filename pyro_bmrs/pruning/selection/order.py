# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""In which order units go, and which of them go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from pyro_bmrs.pruning.compaction.coupling.ties import coupled_units
from pyro_bmrs.pruning.criteria.criterion import Scores
from pyro_bmrs.pruning.noise.attachment import noise_sites

Unit = tuple[str, int]


def unit_groups(net: nn.Module, example_inputs: Any = None) -> list[list[Unit]]:
    """
    The units of a network's noise, those together that the network ties.

    :param net: a network with noise.
    :param example_inputs: what it is called with; without them every unit stands alone.
    """
    units = [(name, unit) for name, site in noise_sites(net).items() for unit in range(site.noise.num_units)]
    tied: list[list[Unit]] = []
    if example_inputs is not None:
        tied = [list(group) for group in coupled_units(net, example_inputs)]
    known = {unit for group in tied for unit in group}
    return [*tied, *([unit] for unit in units if unit not in known)]


def removal_order(
    net: nn.Module, margins: Scores, groups: Sequence[Sequence[Unit]], *, adds: bool = True
) -> list[tuple[list[Unit], float]]:
    """
    The groups of units that are left, in the order of their removal, with what speaks for it.

    :param net: a network with noise.
    :param margins: what speaks for the removal of each unit, by site.
    :param groups: the units that go together.
    :param adds: whether what speaks for units that go together is the sum over them, or else the mean.
    """
    sites = noise_sites(net)
    numbers = {name: margin.tolist() for name, margin in margins.items()}
    kept = {name: site.noise.kept.tolist() for name, site in sites.items()}
    left = [[unit for unit in group if kept[unit[0]][unit[1]]] for group in groups]
    sums = [(group, sum(numbers[name][unit] for name, unit in group)) for group in left if group]
    order = [(group, total if adds else total / len(group)) for group, total in sums]
    return sorted(order, key=lambda pair: -pair[1])


def rescue(
    net: nn.Module, order: Sequence[list[Unit]], going: Sequence[list[Unit]]
) -> tuple[list[list[Unit]], list[Unit]]:
    """
    What may go of the groups that are to go, so that no site is left with nothing; and the units that stay for it.

    :param order: all groups that are left, in the order of removal.
    :param going: those of them that are to go.
    """
    sites = noise_sites(net)
    left = {name: int(site.noise.kept.sum()) for name, site in sites.items() if site.kind != "block"}
    for group in going:
        for name, _ in group:
            if name in left:
                left[name] -= 1
    gone = {unit for group in going for unit in group}
    stays: list[Unit] = []
    spared: list[Sequence[Unit]] = []
    # From the last to go: the first that is met of a site with nothing left is its best.
    for group in reversed(order):
        empty = [(name, unit) for name, unit in group if (name, unit) in gone and left.get(name) == 0]
        if empty:
            stays += empty
            spared.append(group)
            for name, _ in group:
                if name in left:
                    left[name] += 1
    return [group for group in going if group not in spared], stays
