# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The reduced models of a joint normal posterior: all of them, or those around the best that a search finds."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.search.models import ListedModels
from pyro_bmrs.search.observations import NormalSpace
from pyro_bmrs.search.strategies.exhaustive import evidence_of_all
from pyro_bmrs.search.strategies.greedy import TOLERANCE, Observed, Sweep, climb, climb_from_several

STRATEGIES = ("auto", "exhaustive", "greedy")
MAX_MODELS = 2**20
# After a greedy search, all models are listed that so many of the least decided groups can form.
_OPEN_GROUPS = 12


def search_normal(
    space: NormalSpace, log_odds: Tensor, strategy: str, max_models: int, progress: bool
) -> tuple[ListedModels, str]:
    """
    The posterior over the reduced models of a joint normal posterior.

    :param space: the posterior and the reductions of its elements.
    :param log_odds: prior log odds for each group's reduction.
    :param strategy: ``"exhaustive"``, ``"greedy"``, or ``"auto"`` for the first as long as there are no more than
        ``max_models`` models.
    :param max_models: how many models may be counted through.
    :param progress: whether to show a progress bar.
    :return: the models, and the strategy taken.
    :raises ReductionError: where there are too many models, or where the covariance is singular.
    """
    count = len(log_odds)
    if strategy == "auto":
        strategy = "exhaustive" if 2**count <= max_models else "greedy"
    if strategy == "greedy":
        return _search(space, log_odds, progress), strategy
    if 2**count > max_models:
        number = f"2^{count} = {2**count:,}" if count < 60 else f"2^{count}"
        raise ReductionError(
            f"{count} groups make {number} models, more than max_models={max_models:,}; take strategy='greedy', fewer "
            "or larger groups, or raise max_models (each model takes some 50 bytes)"
        )
    return _count_through(space, log_odds, progress), strategy


def _count_through(space: NormalSpace, log_odds: Tensor, progress: bool) -> ListedModels:
    """All models."""
    with tqdm(total=2 ** len(log_odds), desc="models", unit_scale=True, disable=not progress, leave=False) as bar:
        delta_evidence = evidence_of_all(
            space.covariance, space.residual, space.constants, space.sizes.tolist(), bar.update
        )
    none = torch.zeros_like(log_odds, dtype=torch.bool)
    everything = torch.arange(len(log_odds), device=log_odds.device)
    alone = delta_evidence[2**everything]
    return _checked(ListedModels(delta_evidence, log_odds, none, everything, alone, torch.ones_like(log_odds)))


def _checked(models: ListedModels) -> ListedModels:
    wrong = ~models.delta_evidence.isfinite()
    if wrong.any():
        raise ReductionError(
            f"the evidence of {int(wrong.sum())} of {len(wrong)} models is not finite: the posterior's covariance is "
            "singular to rounding; leave out elements that others determine"
        )
    return models


def _search(space: NormalSpace, log_odds: Tensor, progress: bool) -> ListedModels:
    """The optimum of a greedy search, and around it all models that its least decided groups can form."""
    observed = Observed(space.covariance, space.residual, space.constants + log_odds, space.label)
    with tqdm(desc="flips", disable=not progress, leave=False) as bar:

        def advance(sweep: Sweep) -> None:
            bar.update()
            bar.set_postfix(reduced=int(sweep.reduced.sum()), refresh=False)

        best = climb_from_several(observed, advance)
        while True:
            models = _around(best, observed, space, log_odds)
            top = models.top(1)
            if not float(top.delta_evidence + top.reduced[0].to(log_odds) @ log_odds - best.score) > TOLERANCE:
                return models
            # Some of the models around it, more than two flips away, was better still.
            best = climb(observed, top.reduced[0], advance)


def _around(best: Sweep, observed: Observed, space: NormalSpace, log_odds: Tensor) -> ListedModels:
    changes = best.changes()
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
    return _checked(ListedModels(delta_evidence, log_odds, base, open_groups, alone, inclusion))
