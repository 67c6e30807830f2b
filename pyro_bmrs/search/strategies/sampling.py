# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Models drawn from their posterior, where there are too many to be counted through.

A walk knows what each flip of a group, and of a pair of groups that stand for each other, would be worth, so that no
step of it need be refused: from model m it jumps to a neighbour m' at the rate

.. math:: \lambda(m, m') = \frac{p(m')}{p(m) + p(m')}

in continuous time, which leaves the posterior over models as it is (Zanella 2020, *Informed proposals for local MCMC in
discrete spaces*, https://doi.org/10.1080/01621459.2019.1585255). Each model counts for the time that is expected
to pass in it, and the inclusion of a group for its probability given all others there (Rao and Blackwell). Several
walks begin far apart; how they differ is the error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_bmrs.errors import ReductionWarning
from pyro_bmrs.search.probabilities.model_prior import ModelPrior
from pyro_bmrs.search.probabilities.models import VisitedModels, Visits, ranked
from pyro_bmrs.search.strategies.walks import Walk

NUM_STEPS = 500
_NUM_WALKS = 16
# Neighbours that each group may be exchanged with.
_PARTNERS = 4
# Of the steps, those at first that are not counted: the walks come from where they were put.
_WARM_UP = 0.25
# Of an inclusion probability, above which it is not to be trusted.
_LARGEST_ERROR = 0.05


def exchangeable_pairs(alike: Tensor) -> tuple[Tensor, Tensor]:
    """
    The pairs of groups that may stand for each other.

    :param alike: how much two groups are alike, shape ``(n, n)``.
    """
    count = len(alike)
    if count < 2:
        none = torch.zeros(0, dtype=torch.long, device=alike.device)
        return none, none
    apart = alike.clone().fill_diagonal_(-torch.inf)
    partners = apart.topk(min(_PARTNERS, count - 1), -1).indices
    first = torch.arange(count, device=alike.device).unsqueeze(-1).expand_as(partners)
    pairs = torch.stack([torch.minimum(first, partners), torch.maximum(first, partners)], -1).reshape(-1, 2)
    one, other = pairs.unique(dim=0).unbind(-1)
    return one, other


class _Records(NamedTuple):
    """Of each step and each walk: the model, its score, the time there, and the inclusion of each group."""

    states: Tensor
    scores: Tensor
    times: Tensor
    inclusions: Tensor


@torch.no_grad()
def visit(
    start: Callable[[Tensor], Walk],
    begin: Sequence[Tensor],
    prior: ModelPrior,
    pairs: tuple[Tensor, Tensor],
    alone: Tensor,
    num_steps: int,
    progress: bool = False,
) -> VisitedModels:
    """
    Lets walks run, and tells of the models that they have come to.

    :param start: the walks from some models.
    :param begin: models to begin at, which the prior allows; as many walks at each.
    :param prior: the prior of models.
    :param pairs: groups that may be flipped together.
    :param alone: change in log evidence with the reduction of each group alone.
    :param num_steps: of each walk.
    :param progress: whether to show a progress bar.
    :warns ReductionWarning: where the walks do not agree.
    """
    walk = start(torch.stack([begin[number % len(begin)] for number in range(_NUM_WALKS)]))
    with tqdm(total=num_steps, desc="models drawn", disable=not progress, leave=False) as bar:
        records = _run(walk, prior, pairs, num_steps, bar.update)
    return _tell(records, prior, alone)


def _run(
    walk: Walk,
    prior: ModelPrior,
    pairs: tuple[Tensor, Tensor],
    num_steps: int,
    advance: Callable[[], object],
) -> _Records:
    """Where the walks were, the scores there, for how long, and the inclusion of each group given all others."""
    # A group goes, and comes, together with one that it needs, which could not go without it.
    first, second = torch.cat([torch.stack(pairs, -1), prior.needs.sort(-1).values]).unique(dim=0).unbind(-1)
    num_groups, warm_up = walk.reduced.shape[-1], int(_WARM_UP * num_steps)
    like = walk.score
    generator = torch.Generator(like.device).manual_seed(0)
    everyone = torch.arange(len(like), device=like.device)
    states, scores, times, inclusions = [], [], [], []
    for step in range(num_steps):
        reduced = walk.reduced
        changes = walk.changes() + _prior_changes(prior, reduced)
        together = walk.pair_changes(first, second) + _pair_prior_changes(prior, reduced, first, second)
        rates = torch.sigmoid(torch.cat([changes, together], -1)).nan_to_num(0.0)
        total = rates.sum(-1)
        if step >= warm_up:
            states.append(reduced.clone())
            scores.append(walk.score.clone())
            times.append(1 / total.clamp(min=torch.finfo(total.dtype).tiny ** 0.5))
            inclusions.append(torch.sigmoid(torch.where(reduced, changes, -changes)))
        ends = rates.cumsum(-1)
        uniform = torch.rand(len(like), 1, dtype=like.dtype, device=like.device, generator=generator)
        chosen = torch.searchsorted(ends, uniform * ends[:, -1:]).squeeze(-1).clamp(max=rates.shape[-1] - 1)
        # Where nothing is allowed beside a model, a walk stays there.
        moves = total > 0
        single, double = moves & (chosen < num_groups), moves & (chosen >= num_groups)
        pair = (chosen - num_groups).clamp(min=0)
        walk.flip(everyone[single], chosen[single])
        for side in (first, second):
            if double.any():
                walk.flip(everyone[double], side[pair[double]])
        advance()
    return _Records(*(torch.stack(kept) for kept in (states, scores, times, inclusions)))


def _prior_changes(prior: ModelPrior, reduced: Tensor) -> Tensor:
    """What it would add to the log prior to flip each group; minus infinity where that is not allowed."""
    if prior.is_product:
        return torch.where(reduced, -prior.log_odds, prior.log_odds)
    eye = torch.eye(reduced.shape[-1], dtype=torch.bool, device=reduced.device)
    return prior.log_prob(reduced.unsqueeze(-2) ^ eye) - prior.log_prob(reduced).unsqueeze(-1)


def _pair_prior_changes(prior: ModelPrior, reduced: Tensor, first: Tensor, second: Tensor) -> Tensor:
    if prior.is_product:
        alone = _prior_changes(prior, reduced)
        return alone[:, first] + alone[:, second]
    both = torch.zeros(len(first), reduced.shape[-1], dtype=torch.bool, device=reduced.device)
    at = torch.arange(len(first), device=reduced.device)
    both[at, first] = both[at, second] = True
    return prior.log_prob(reduced.unsqueeze(-2) ^ both) - prior.log_prob(reduced).unsqueeze(-1)


def _tell(records: _Records, prior: ModelPrior, alone: Tensor) -> VisitedModels:
    """What the walks say."""
    states, scores, times, inclusions = records
    # Each walk counts the same, however long it stayed where it was.
    times = times / times.sum(0)
    by_walk = (times.unsqueeze(-1) * inclusions).sum(0)
    unique, which = states.flatten(0, 1).unique(dim=0, return_inverse=True)
    which = which.reshape(times.shape)
    delta_evidence = scores.new_empty(len(unique)).scatter_(0, which.flatten(), scores.flatten())
    log_total = _log_total(delta_evidence + prior.log_prob(unique), which, times)
    found = ranked(unique, delta_evidence, log_total, prior, alone, Visits(which, times, by_walk))
    _warn_where_apart(found.inclusion_error, log_total)
    return found


def _warn_where_apart(error: Tensor, log_total: Tensor) -> None:
    if error.max() > _LARGEST_ERROR:
        problem = f"inclusion probabilities are known to {float(error.max()):.2g} only, one standard error"
    elif log_total.isnan():
        problem = "the walks have no model in common, so that the probabilities of models are among those visited"
    else:
        return
    warnings.warn(f"The walks through the models do not agree: {problem}. Raise num_steps=.", ReductionWarning, 2)


def _log_total(log_mass: Tensor, which: Tensor, times: Tensor) -> Tensor:
    """
    The log of the mass of all models.

    It is the mass of the models that half of the walks have seen over the share of time that the other half has been
    at these (George and McCulloch 1997, *Approaches for Bayesian variable selection*, Statistica Sinica 7), and no less
    than that of all that were seen; NaN where the halves have no model in common.
    """
    totals = []
    for half in (0, 1):
        seen = torch.zeros(len(log_mass), dtype=torch.bool, device=log_mass.device)
        seen[which[:, half::2].flatten()] = True
        other, time = which[:, 1 - half :: 2], times[:, 1 - half :: 2]
        share = (time * seen[other]).sum() / time.sum()
        totals.append(log_mass[seen].logsumexp(0) - share.log())
    total = torch.stack(totals).logsumexp(0) - torch.tensor(2.0).log()
    return torch.where(total.isfinite(), torch.maximum(total, log_mass.logsumexp(0)), torch.nan)
