# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
The evidence of reduced models with the model's own density, one evaluation each.

The reduced posterior :math:`s` of a model is where its evidence is decided, and the density of the model there is at
hand however far it is out in the tail of the fit. For any x, the log evidence is
:math:`\log p(y, x) - \log p(x \mid y)` (Besag 1989, "A candidate's formula",
https://doi.org/10.1093/biomet/76.1.183). With :math:`s` for the posterior, it is taken at the mean of :math:`s`, for
the full model and for each reduced one alike. What is read off the fit alone is the same with the density continued
from the full posterior as a normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.integration.log_joint import LogJoint
from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.search.averaging.conditioning import reduced_normals
from pyro_bmrs.search.averaging.model_average import AveragedPosterior, NormalPosterior
from pyro_bmrs.search.models import ListedModels, ModelPosterior
from pyro_bmrs.search.observations import NormalSpace

MOST_MODELS = 2**16


def refine_models(fitted: FittedGuide, posterior: AveragedPosterior, models: ModelPosterior, what: str) -> ListedModels:
    """
    All models of a space, with their evidence by the model's density.

    :param fitted: the fitted guide.
    :param posterior: of the space.
    :param models: of the space.
    :param what: the space, in words.
    :raises ReductionError: for a posterior that is not jointly normal in all latent sites, models that are not all
        counted through, or too many, and a model whose density is not at hand.
    """
    if (
        not isinstance(posterior, NormalPosterior)
        or not isinstance(models, ListedModels)
        or not models.num_models == 2 ** len(models.alone) <= MOST_MODELS
    ):
        raise ReductionError(
            f"the evidence of models is refined where a jointly normal posterior is counted through, of at most "
            f"{MOST_MODELS:,} models; this is {what}. Take fewer groups, or check() the best models"
        )
    if missing := sorted(fitted.latent - {block.name for block in posterior.space.blocks}):
        raise ReductionError(f"the sites {missing} are not in the joint normal; check() the best models instead")
    nodes: Any = fitted.trace.nodes
    example = {name: nodes[name]["value"].detach() for name in fitted.latent}
    joint = LogJoint(fitted.model, fitted.args, fitted.kwargs, example=example)
    return refine(posterior.space, models, lambda values: joint(joint.coordinates(values)), posterior.dtype)


def refine(
    space: NormalSpace, models: ListedModels, log_density: Callable[[Mapping[str, Tensor]], Tensor], dtype: torch.dtype
) -> ListedModels:
    """
    All models, with their evidence by the model's density.

    :param space: the posterior and the reductions of its elements.
    :param models: all models that there are.
    :param log_density: of the full model's data and sites, with the Jacobian of the posterior's coordinates, at values
        of the sites along the first dimension.
    :param dtype: of the sites.
    """
    index = torch.arange(models.num_models, device=space.loc.device)
    evidence = torch.cat([_evidence(space, models.reduced(part), log_density, dtype) for part in index.split(4096)])
    delta_evidence = evidence - evidence[0]
    alone = delta_evidence[2 ** torch.arange(len(models.open), device=index.device)]
    return replace(models, delta_evidence=delta_evidence, alone=alone)


def _evidence(
    space: NormalSpace, reduced: Tensor, log_density: Callable[[Mapping[str, Tensor]], Tensor], dtype: torch.dtype
) -> Tensor:
    normals = reduced_normals(space, reduced)
    packed = normals.loc.to(dtype)
    values = {block.name: (block.take(packed), block.transform) for block in space.blocks}
    full = log_density({name: value if to is None else to(value) for name, (value, to) in values.items()}).double()
    free = (~normals.fixed).sum(-1)
    own = -normals.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * free * math.log(2 * math.pi)
    return full + _log_ratios(space, normals.loc, reduced) - own


def _log_ratios(space: NormalSpace, loc: Tensor, reduced: Tensor) -> Tensor:
    """The log of reduced prior over prior, of the elements that are reduced; of a point, what the prior has there."""
    noise = torch.where(space.pinned, 1.0, space.noise)
    density = -0.5 * noise.log() - 0.5 * (space.target - space.slope * loc[:, space.at]).square() / noise
    ratio = space.constant + torch.where(space.pinned, 0.5 * math.log(2 * math.pi), density)
    return torch.where(reduced[:, space.label], ratio, 0.0).sum(-1)
