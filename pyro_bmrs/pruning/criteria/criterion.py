# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a criterion of pruning is: a score for each unit, and a decision where there is one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeAlias

from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.noise.attachment import noise_sites
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal

Scores: TypeAlias = dict[str, Tensor]


class Criterion(ABC):
    """
    What decides which units go: a class with scores, and, unless the smallest are to go first, margins.

    ``decides`` says whether the criterion has a threshold of its own; else :func:`~pyro_bmrs.pruning.prune` has to be
    told how many units to remove. ``adds`` says whether what speaks for units that go together is the sum over them, as
    log evidence is; of scores that only rank it is the mean, so that units do not go or stay for being tied.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, Criterion, attach_noise, prune
        >>> _ = torch.manual_seed(0)
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> with torch.no_grad():  # in place of fitting
        ...     guide.noise_locs[:3] = -20.0
        >>> class Location(Criterion):
        ...     def scores(self, net, guide):
        ...         return {"0": guide.noise_locs}
        >>> prune(net, guide, Location(), fraction=0.75).kept["0"]
        tensor([False, False, False,  True])
    """

    decides: bool = False
    adds: bool = False

    @abstractmethod
    def scores(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
        """
        A score for each unit, by site; of shape ``(num_units,)`` each, without gradients.

        :param net: a network with noise.
        :param guide: the fitted guide of its noise.
        """

    def margins(self, scores: Scores) -> Scores:
        """
        How much speaks for the removal of each unit: the larger, the sooner it goes; by default the smallest scores.

        Where the criterion ``decides``, a unit goes from 0 on.

        :param scores: what :meth:`scores` returned.
        """
        return {name: -score for name, score in scores.items()}

    @property
    def name(self) -> str:
        """What tables call it."""
        return type(self).__name__


def score_units(criterion: Criterion, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
    """
    A criterion's scores, checked.

    :param criterion: the criterion.
    :param net: a network with noise.
    :param guide: the fitted guide of its noise.
    :raises ReductionError: for a guide of another network, one that is not fitted, or parameters that are not finite;
        for scores that are NaN, or not one for each unit of each site.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import SNR, AutoTruncatedLogNormal, attach_noise, score_units
        >>> _ = torch.manual_seed(0)
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> with torch.no_grad():  # in place of fitting
        ...     guide.noise_locs[:3] = -20.0
        >>> score_units(SNR(), net, guide)["0"].shape
        torch.Size([4])
    """
    check_guide(net, guide)
    scores = criterion.scores(net, guide)
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    units = {name: (noise.num_units,) for name, noise in guide.noise.items()}
    if shapes != units:
        raise ReductionError(
            f"{criterion.name} gives scores of the shapes {shapes}; one for each unit are of the shapes {units}"
        )
    for name, score in scores.items():
        if score.isnan().any():
            raise ReductionError(
                f"{criterion.name} gives {int(score.isnan().sum())} of {len(score)} units at site {name!r} a score "
                "that is NaN: the weights, or the noise, are not finite"
            )
    return scores


def margins_of(criterion: Criterion, scores: Scores) -> Scores:
    """
    A criterion's margins, checked.

    :param criterion: the criterion.
    :param scores: what it gave the units.
    :raises ReductionError: for margins that are NaN or infinite where the scores are not.
    """
    margins = criterion.margins(scores)
    bad = {name for name, margin in margins.items() if (scores[name].isfinite() & ~margin.isfinite()).any()}
    if bad:
        raise ReductionError(
            f"what {criterion!r} makes of its scores at {sorted(bad)} is NaN or infinite: its threshold, or its prior "
            "odds, have to be finite numbers"
        )
    return margins


def check_guide(net: nn.Module, guide: AutoTruncatedLogNormal) -> None:
    """
    Sees that a guide belongs to a network, and has been fitted.

    :param net: a network with noise.
    :param guide: what a user gives for the guide of its noise.
    :raises ReductionError: if not.
    """
    if not isinstance(guide, AutoTruncatedLogNormal):
        raise ReductionError(f"the guide of the noise is an AutoTruncatedLogNormal, not a {type(guide).__name__}")
    sites = noise_sites(net)
    if not sites:
        raise ReductionError("the network has no noise; attach_noise(net) puts it there, and training fits it")
    if sites.keys() != guide.noise.keys() or any(sites[name].noise is not guide.noise[name] for name in sites):
        raise ReductionError(
            f"the guide belongs to another network: its noise sites are {sorted(guide.noise)}, the network's "
            f"{sorted(sites)}; give the network that it was made for (and no copy of it)"
        )
    bad = int((~guide.noise_parameters.isfinite()).sum())
    if bad:
        raise ReductionError(f"{bad} of the guide's {guide.noise_parameters.numel()} noise parameters are not finite")
    if not guide.is_fitted:
        raise ReductionError("the guide is not fitted: its noise is where it began; train before pruning")
