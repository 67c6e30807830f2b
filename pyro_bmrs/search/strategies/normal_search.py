# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The reduced models of a joint normal posterior: all of them, some at random, or those around the best."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.search.observations import NormalSpace
from pyro_bmrs.search.probabilities.model_prior import ModelPrior
from pyro_bmrs.search.probabilities.models import ListedModels, VisitedModels
from pyro_bmrs.search.strategies.exhaustive import evidence_of_all
from pyro_bmrs.search.strategies.greedy import TOLERANCE, Observed, Sweep, climb, climb_from_several, starts
from pyro_bmrs.search.strategies.sampling import NUM_STEPS, exchangeable_pairs, visit
from pyro_bmrs.search.strategies.walks import SweptWalk

STRATEGIES = ("auto", "exhaustive", "sample", "greedy")
MAX_MODELS = 2**23
# After a greedy search, all models are listed that so many of the least decided groups can form.
_OPEN_GROUPS = 12
# Elements of which the walks still take no longer than a climb from one group to the next.
_MOST_SAMPLED = 400


def search_normal(
    space: NormalSpace,
    prior: ModelPrior,
    strategy: str,
    max_models: int,
    progress: bool,
    num_steps: int = NUM_STEPS,
) -> tuple[ListedModels | VisitedModels, str]:
    """
    The posterior over the reduced models of a joint normal posterior.

    :param space: the posterior and the reductions of its elements.
    :param prior: the prior of models.
    :param strategy: ``"exhaustive"``, ``"sample"``, ``"greedy"``, or ``"auto"`` for the first as long as there are no
        more than ``max_models`` models, the second up to some hundred elements, and the third beyond.
    :param max_models: how many models may be counted through.
    :param progress: whether to show a progress bar.
    :param num_steps: of each walk.
    :return: the models, and the strategy taken.
    :raises ReductionError: where there are too many models, where the covariance is singular, or for a greedy search
        under a prior of models that is not independent between groups.
    """
    count = len(prior.log_odds)
    if strategy == "auto":
        beyond = "greedy" if prior.is_product and len(space.at) > _MOST_SAMPLED else "sample"
        strategy = "exhaustive" if 2**count <= max_models else beyond
    if strategy == "exhaustive":
        check_number_of_models(count, max_models)
        return _count_through(space, prior, progress), strategy
    if strategy == "greedy":
        if not prior.is_product:
            raise ReductionError(
                "a greedy search goes from group to group, under a prior that is independent between them; take "
                "strategy='sample' with model_prior= or heredity="
            )
        return _search(space, prior, progress), strategy
    return _sample(space, prior, num_steps, progress), strategy


def check_number_of_models(count: int, max_models: int) -> None:
    """
    Sees that the models of so many groups may be counted through.

    :raises ReductionError: if they may not.
    """
    if 2**count > max_models:
        number = f"2^{count} = {2**count:,}" if count < 60 else f"2^{count}"
        raise ReductionError(
            f"{count} groups make {number} models, more than max_models={max_models:,}; take strategy='sample' or "
            "'greedy', fewer or larger groups, or raise max_models (each model takes some 50 bytes)"
        )


def _count_through(space: NormalSpace, prior: ModelPrior, progress: bool) -> ListedModels:
    """All models."""
    log_odds = prior.log_odds
    with tqdm(total=2 ** len(log_odds), desc="models", unit_scale=True, disable=not progress, leave=False) as bar:
        delta_evidence = evidence_of_all(
            space.covariance, space.residual, space.constants, space.sizes.tolist(), bar.update
        )
    none = torch.zeros_like(log_odds, dtype=torch.bool)
    everything = torch.arange(len(log_odds), device=log_odds.device)
    alone = delta_evidence[2**everything]
    return _checked(ListedModels(delta_evidence, prior, none, everything, alone, torch.ones_like(log_odds)))


def _checked(models: ListedModels) -> ListedModels:
    wrong = ~models.delta_evidence.isfinite()
    if wrong.any():
        raise ReductionError(
            f"the evidence of {int(wrong.sum())} of {len(wrong)} models is not finite: the posterior's covariance is "
            "singular to rounding; leave out elements that others determine"
        )
    return models


def _sample(space: NormalSpace, prior: ModelPrior, num_steps: int, progress: bool) -> VisitedModels:
    """Models at random: the walks begin at the climbs' starts, and at the best that these reach."""
    nothing = torch.zeros_like(prior.log_odds, dtype=torch.bool)
    covariance, residual = space.covariance, space.residual
    begin = [nothing, ~nothing]
    if prior.is_product:
        favoured = Observed(covariance, residual, space.constants + prior.log_odds, space.label)
        begin = [*starts(favoured), climb_from_several(favoured).reduced]
    observed = Observed(covariance, residual, space.constants, space.label)
    alone = Sweep(observed, nothing).changes()
    pairs = exchangeable_pairs(_alike(space, covariance))
    return visit(lambda at: SweptWalk(observed, at), begin, prior, pairs, alone, num_steps, progress)


def _alike(space: NormalSpace, covariance: Tensor) -> Tensor:
    """The largest correlation between the elements of two groups, shape ``(n, n)``."""
    scale = covariance.diagonal().sqrt()
    of_elements = (covariance / scale / scale.unsqueeze(-1)).abs()
    count = len(space.sizes)
    to_group = space.label.expand_as(of_elements)
    rows = of_elements.new_zeros(len(of_elements), count).scatter_reduce(-1, to_group, of_elements, "amax")
    return rows.new_zeros(count, count).scatter_reduce(0, space.label.unsqueeze(-1).expand_as(rows), rows, "amax")


def _search(space: NormalSpace, prior: ModelPrior, progress: bool) -> ListedModels:
    """The optimum of a greedy search, and around it all models that its least decided groups can form."""
    log_odds = prior.log_odds
    observed = Observed(space.covariance, space.residual, space.constants + log_odds, space.label)
    with tqdm(desc="flips", disable=not progress, leave=False) as bar:

        def advance(sweep: Sweep) -> None:
            bar.update()
            bar.set_postfix(reduced=int(sweep.reduced.sum()), refresh=False)

        best = climb_from_several(observed, advance)
        while True:
            models = _around(best, observed, space, prior)
            top = models.top(1)
            if not float(top.delta_evidence + top.reduced[0].to(log_odds) @ log_odds - best.score) > TOLERANCE:
                return models
            # Some of the models around it, more than two flips away, was better still.
            best = climb(observed, top.reduced[0], advance)


def _around(best: Sweep, observed: Observed, space: NormalSpace, prior: ModelPrior) -> ListedModels:
    log_odds, changes = prior.log_odds, best.changes()
    open_groups = changes.topk(min(_OPEN_GROUPS, len(changes))).indices.sort().values
    base = best.reduced.clone()
    base[open_groups] = False
    given = Sweep(observed, base)
    base_evidence = given.score - base.to(log_odds) @ log_odds
    delta_evidence = base_evidence + evidence_of_all(
        *given.given(open_groups), space.constants[open_groups], space.sizes[open_groups].tolist()
    )
    inclusion = torch.sigmoid(torch.where(best.reduced, changes, -changes))
    alone = Sweep(observed, torch.zeros_like(base)).changes() - log_odds
    return _checked(ListedModels(delta_evidence, prior, base, open_groups, alone, inclusion))
