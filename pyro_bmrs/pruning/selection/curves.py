# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How well a network does as its units go, and how far criteria agree about their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import nn

from pyro_bmrs.errors import ReductionError, check_number
from pyro_bmrs.pruning.criteria.criterion import Criterion, margins_of, score_units
from pyro_bmrs.pruning.examples import evaluation
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.selection.order import removal_order, rescue, unit_groups

if TYPE_CHECKING:
    import pandas as pd


def accuracy_vs_compression(
    net: nn.Module,
    guide: AutoTruncatedLogNormal,
    criterion: Criterion,
    evaluate: Callable[[Callable[..., Any]], float],
    *,
    num_points: int | None = None,
    example_inputs: Any = None,
) -> pd.DataFrame:
    """
    Removes the units one by one in a criterion's order, and evaluates the network as it goes.

    The network predicts with its noise at the posterior mean, in evaluation mode. Each site keeps its last unit. The
    network is as it was afterwards.

    :param net: a network with noise, fitted.
    :param guide: the guide of its noise.
    :param criterion: says in which order the units go.
    :param evaluate: given the network as it predicts, a function of its inputs, says how good it is.
    :param num_points: at how many points to evaluate, evenly spaced; by default after each unit.
    :param example_inputs: as for :func:`~pyro_bmrs.pruning.prune`.
    :return: a row for each point: ``num_removed`` and ``share_removed`` of the units with noise, ``value`` of the
        evaluation, and the ``site`` and ``unit`` that went last.
    :raises ReductionError: as for :func:`~pyro_bmrs.pruning.prune`.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import PosteriorMean, AutoTruncatedLogNormal, accuracy_vs_compression, attach_noise
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> _ = guide.noise_locs.data.copy_(-torch.arange(4.0))  # in place of fitting
        >>> x, y = torch.randn(20, 3), torch.randint(2, (20,))
        >>> accuracy = lambda predict: float((predict(x).argmax(-1) == y).float().mean())
        >>> accuracy_vs_compression(net, guide, PosteriorMean(), accuracy)["unit"].tolist()
        [-1, 3, 2, 1]
    """
    import pandas as pd

    if num_points is not None:
        check_number(num_points, "the number of points of a curve", low=2)
    margins = margins_of(criterion, score_units(criterion, net, guide))
    groups = [group for group, _ in removal_order(net, margins, unit_groups(net, example_inputs), adds=criterion.adds)]
    going, _ = rescue(net, groups, groups)
    total = sum(noise.num_units for noise in guide.noise.values())
    steps: Sequence[int] = range(len(going) + 1)
    if num_points is not None and num_points < len(steps):
        steps = [round(position * len(going) / (num_points - 1)) for position in range(num_points)]
    before = {name: noise.kept.clone() for name, noise in guide.noise.items()}
    rows, done = [], 0
    try:
        with evaluation(net), torch.no_grad():
            for step in steps:
                for group in going[done:step]:
                    for name, unit in group:
                        guide.noise[name].kept[unit] = False
                done = step
                removed = total - sum(int(noise.kept.sum()) for noise in guide.noise.values())
                value = float(evaluate(poutine.condition(net, data=guide.mean_noise())))
                site, unit = going[step - 1][-1] if step else ("", -1)
                rows.append((removed, removed / total, value, site, unit))
    finally:
        for name, noise in guide.noise.items():
            noise.kept.copy_(before[name])
    return pd.DataFrame(rows, columns=["num_removed", "share_removed", "value", "site", "unit"])


def rank_correlations(net: nn.Module, guide: AutoTruncatedLogNormal, criteria: Iterable[Criterion]) -> pd.DataFrame:
    """
    Spearman's rank correlations between the orders in which criteria remove the units that are left.

    :param net: a network with noise, fitted.
    :param guide: the guide of its noise.
    :param criteria: the criteria, of different names.
    :return: the matrix of correlations, by name.
    :raises ReductionError: for criteria of one name, and as :func:`~pyro_bmrs.pruning.score_units`.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import SNR, AutoTruncatedLogNormal, PosteriorMean, attach_noise, rank_correlations
        >>> _ = torch.manual_seed(0)
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> with torch.no_grad():  # in place of fitting
        ...     guide.noise_locs[:3] = -20.0
        >>> rank_correlations(net, guide, [SNR(), PosteriorMean()]).shape
        (2, 2)
    """
    import pandas as pd

    kept = torch.cat([noise.kept for noise in guide.noise.values()])
    columns = {}
    for criterion in criteria:
        if criterion.name in columns:
            raise ReductionError(f"two of the criteria are called {criterion.name!r}; give each a name of its own")
        margins = margins_of(criterion, score_units(criterion, net, guide))
        columns[criterion.name] = torch.cat([margins[name] for name in guide.noise])[kept].tolist()
    return pd.DataFrame(columns).corr(method="spearman")
