# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Models that were visited under one evidence, under another.

The time spent at a model is weighted by how much more probable it is by the other evidence,
:math:`w_m = e^{F'_m - F_m}`. The inclusion odds of a group are what the walks, or a count of all models, say of them
under the first evidence, times the factor by which the weights change them at the models visited: where that is near 1,
there is next to no noise in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_bmrs.search.probabilities.models import VisitedModels, ranked


def reweighted(models: VisitedModels, delta_evidence: Tensor, alone: Tensor) -> VisitedModels:
    """
    The models visited, under another evidence.

    :param models: as they were visited.
    :param delta_evidence: of each by the other evidence, less that of the full model, shape ``(num_models,)``.
    :param alone: of the reduction of each group alone.
    """
    visits, prior = models.visits, models.prior
    shift = delta_evidence - models.delta_evidence
    times = visits.times / visits.times.sum(0)
    weighted = times * (shift - shift.max()).exp()[visits.which]
    log_mean_weight = (weighted.sum() / times.sum()).log() + shift.max()
    weighted = weighted / weighted.sum(0)
    # Of groups that keep their prior, and of groups that do not.
    factors = []
    for side in (~models.states, models.states):
        before, after = (_by_walk(part, visits.which, side.to(times)) for part in (times, weighted))
        factors.append(torch.where(before > 0, after / before, 1.0))
    kept, left_out = visits.inclusion * factors[0], (1 - visits.inclusion) * factors[1]
    inclusion = kept / (kept + left_out)
    # The mass of all models under the first evidence is that of any of them over its probability.
    log_mass = models.delta_evidence[0] + prior.log_prob(models.states[0])
    log_total = log_mass - models.probability[0].log() + log_mean_weight
    moved = visits._replace(times=weighted, inclusion=inclusion)
    return ranked(models.states, delta_evidence, log_total, prior, alone, moved)


def _by_walk(shares: Tensor, which: Tensor, side: Tensor) -> Tensor:
    """The share of its time that each walk spent at models with each group on a side, shape ``(num_walks, n)``."""
    spent = shares.new_zeros(shares.shape[1], len(side))
    walks = torch.arange(shares.shape[1], device=shares.device).expand_as(which)
    return spent.index_put_((walks, which), shares, accumulate=True) @ side
