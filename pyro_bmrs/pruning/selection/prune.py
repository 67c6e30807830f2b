# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Pruning: which units go, decided for all sites at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.criteria.bmrs_n import BMRS_N
from pyro_bmrs.pruning.criteria.criterion import Criterion, Scores, margins_of, score_units
from pyro_bmrs.pruning.criteria.evidence import EvidenceCriterion
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.selection.order import Unit, removal_order, rescue, unit_groups
from pyro_bmrs.pruning.training.models import Likelihood

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PruningResult:
    """
    What :func:`prune` did.

    :param criterion: the criterion.
    :param scores: what it gave each unit, by site, shape ``(num_units,)``; in nats of a criterion of evidence.
    :param removed: which units went now, by site, of the same shape.
    :param kept: which units are left, by site, of the same shape.
    :param rescued: units that would have gone, had their site been left with none.
    :param kl_weights: by site, what its divergence was multiplied by in the fit, where the guide's model says so. With
        a weight other than 1 a change in log evidence is that under the likelihood to the power of one over the weight.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, attach_noise, prune
        >>> _ = torch.manual_seed(0)
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> with torch.no_grad():  # in place of fitting
        ...     guide.noise_locs[:3] = -20.0
        >>> result = prune(net, guide)
        >>> result.removed["0"], result.rescued
        (tensor([ True,  True,  True, False]), ())
    """

    criterion: Criterion
    scores: Scores
    removed: dict[str, Tensor]
    kept: dict[str, Tensor]
    rescued: tuple[Unit, ...]
    kl_weights: dict[str, float]

    @property
    def num_removed(self) -> int:
        """How many units went."""
        return sum(int(removed.sum()) for removed in self.removed.values())

    @property
    def num_kept(self) -> int:
        """How many units are left."""
        return sum(int(kept.sum()) for kept in self.kept.values())

    @property
    def evidence(self) -> str:
        """Where the evidence is from, of a criterion that goes by it; else empty."""
        if not isinstance(self.criterion, EvidenceCriterion):
            return ""
        is_closed = self.criterion.evidence == "closed"
        return "evidence of the guide, in closed form" if is_closed else "evidence evaluated on data"

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for each unit, by site and number: its score, whether it is kept, went now, or was rescued."""
        import pandas as pd

        index = [(name, unit) for name, score in self.scores.items() for unit in range(len(score))]
        columns = {
            "score": torch.cat(list(self.scores.values())).tolist(),
            "kept": torch.cat(list(self.kept.values())).tolist(),
            "removed": torch.cat(list(self.removed.values())).tolist(),
            "rescued": [unit in self.rescued for unit in index],
        }
        return pd.DataFrame(columns, index=pd.MultiIndex.from_tuples(index, names=["site", "unit"]))

    def __repr__(self) -> str:
        weights = sorted({f"{weight:.4g}" for weight in self.kl_weights.values()} - {"1"})
        tempered = f" (KL weight {', '.join(weights)})" if weights else ""
        source = f"; {self.evidence}" if self.evidence else ""
        lines = [f"{self.criterion.name}: {self.num_removed} units removed, {self.num_kept} left{tempered}{source}"]
        for name, kept in self.kept.items():
            rescued = [unit for site, unit in self.rescued if site == name]
            note = f" (unit {', '.join(map(str, rescued))} rescued: none would be left)" if rescued else ""
            lines.append(
                f"  {name}: {int(self.removed[name].sum())} removed, {int(kept.sum())} of {len(kept)} left{note}"
            )
        return "\n".join(lines)


def prune(
    net: nn.Module,
    guide: AutoTruncatedLogNormal,
    criterion: Criterion | None = None,
    *,
    fraction: float | None = None,
    example_inputs: Any = None,
) -> PruningResult:
    """
    Prunes a network: units that go are multiplied by 0 from now on, and have no part in training any more.

    Call it after training, or every so often during training. What was pruned before stays so. A site that would lose
    all its units keeps the one for which most speaks; only a residual block may go as a whole.

    :param net: a network with noise, fitted; its ``kept`` buffers are changed in place.
    :param guide: the guide of its noise.
    :param criterion: :class:`BMRS_N` by default.
    :param fraction: the share of the units left that is to go, those first for which the criterion speaks most; by
        default the criterion decides.
    :param example_inputs: what the network is called with. Where they are given, units that the network ties together
        (residual sums, grouped convolutions) go together, by the sum of what speaks for it (the mean, if the
        criterion's scores only rank).
    :return: the :class:`PruningResult`.
    :raises ReductionError: for a guide of another network or one that is not fitted, scores that are NaN, a criterion
        without a threshold and no ``fraction``, or one that is not between 0 and 1. Nothing is pruned then.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import SNR, AutoTruncatedLogNormal, attach_noise, prune
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> with torch.no_grad():  # in place of fitting
        ...     guide.noise_locs[:3] = -20.0
        ...     guide.noise_log_scales[:3] = 2.0
        >>> prune(net, guide, SNR())
        SNR: 3 units removed, 1 left
          0: 3 removed, 1 of 4 left
    """
    return prune_groups(
        net, guide, BMRS_N() if criterion is None else criterion, unit_groups(net, example_inputs), fraction
    )


def prune_groups(
    net: nn.Module,
    guide: AutoTruncatedLogNormal,
    criterion: Criterion,
    groups: Sequence[Sequence[Unit]],
    fraction: float | None = None,
) -> PruningResult:
    """
    As :func:`prune`, for who has the groups of units already: to follow a network takes longer than to prune it.

    :param net: as there, as are ``guide``, ``criterion`` and ``fraction``.
    :param groups: the units that go together, as of :func:`~pyro_bmrs.pruning.selection.order.unit_groups`.
    :raises ReductionError: as there.
    """
    if fraction is not None and not 0 <= fraction <= 1:
        raise ReductionError(f"fraction is a share of the units, between 0 and 1, not {fraction}")
    if fraction is None and not criterion.decides:
        raise ReductionError(
            f"{criterion.name} has no threshold of its own; say what share of the units goes: fraction="
        )
    scores = score_units(criterion, net, guide)
    margins = margins_of(criterion, scores)
    order = removal_order(net, margins, groups, adds=criterion.adds)
    if fraction is None:
        going = [group for group, margin in order if margin >= 0]
    else:
        left = round(fraction * sum(len(group) for group, _ in order))
        going = []
        for group, _ in order:
            if left >= len(group):
                going.append(group)
                left -= len(group)
    going, rescued = rescue(net, [group for group, _ in order], going)
    removed = {name: torch.zeros_like(noise.kept) for name, noise in guide.noise.items()}
    for group in going:
        for name, unit in group:
            removed[name][unit] = True
    for name, noise in guide.noise.items():
        noise.kept &= ~removed[name]
    kept = {name: noise.kept.clone() for name, noise in guide.noise.items()}
    model, weights = guide.model, {}
    if isinstance(model, Likelihood):
        weights = {name: model.noise_weight(name) for name in guide.noise}
    return PruningResult(criterion, scores, removed, kept, tuple(rescued), weights)
