# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The reduced models of a posterior that is independent between groups."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.search.probabilities.model_prior import ModelPrior, subset_sums
from pyro_bmrs.search.probabilities.models import IndependentModels, ListedModels, VisitedModels
from pyro_bmrs.search.strategies.normal_search import check_number_of_models
from pyro_bmrs.search.strategies.sampling import exchangeable_pairs, visit
from pyro_bmrs.search.strategies.walks import IndependentWalk

# Groups whose likeness to each other is looked at.
_MOST_SAMPLED = 2000


def search_independent(
    alone: Tensor, prior: ModelPrior, strategy: str, max_models: int, progress: bool, num_steps: int
) -> tuple[IndependentModels | ListedModels | VisitedModels, str]:
    """
    The posterior over models whose changes in log evidence are sums over their groups.

    :param alone: change in log evidence with the reduction of each group, shape ``(n,)``.
    :param prior: the prior of models. Where it is independent between groups as well, nothing needs to be searched.
    :param strategy: as for :func:`~pyro_bmrs.search.strategies.normal_search.search_normal`, as are ``max_models``,
        ``progress`` and ``num_steps``.
    :return: the models, and the strategy taken.
    :raises ReductionError: where there are too many models.
    """
    count = len(alone)
    if prior.is_product:
        return IndependentModels(alone, prior), "factorised"
    if strategy == "exhaustive" or (strategy == "auto" and 2**count <= max_models):
        check_number_of_models(count, max_models)
        none = torch.zeros_like(alone, dtype=torch.bool)
        everything = torch.arange(count, device=alone.device)
        listed = ListedModels(subset_sums(alone), prior, none, everything, alone, torch.ones_like(alone))
        return listed, "exhaustive"
    if strategy == "greedy" or count > _MOST_SAMPLED:
        raise ReductionError(
            f"a prior of models that is not independent between {count:,} groups needs all models, or a sample; take "
            f"strategy='sample' and at most {_MOST_SAMPLED:,} groups"
        )
    nothing = torch.zeros_like(alone, dtype=torch.bool)
    # What is worth the same may best be exchanged.
    pairs = exchangeable_pairs(-(alone - alone.unsqueeze(-1)).abs())
    begin = [nothing, ~nothing]
    return visit(lambda at: IndependentWalk(alone, at), begin, prior, pairs, alone, num_steps, progress), "sample"
