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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.integration.fits import fit_of
from pyro_bmrs.integration.log_joint import LogJoint
from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.reduction.automatic import where_cheap
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
    if (why_not := objection(fitted, posterior, models)) is not None:
        raise ReductionError(
            f"the evidence of models is refined where a joint normal of all sites is counted through, of at most "
            f"{MOST_MODELS:,} models; this is {what}: {why_not}. Take fewer groups, or check() the best models"
        )
    assert isinstance(posterior, NormalPosterior) and isinstance(models, ListedModels)  # else there is an objection
    nodes: Any = fitted.trace.nodes
    example = {name: nodes[name]["value"].detach() for name in fitted.latent}
    joint = LogJoint(fitted.model, fitted.args, fitted.kwargs, example=example)
    return refine(posterior.space, models, lambda values: joint(joint.coordinates(values)), posterior.dtype)


def refine_where_cheap(
    fitted: FittedGuide, posterior: AveragedPosterior, models: ModelPosterior, reduced_priors: Iterable[Distribution]
) -> tuple[ListedModels | None, str | None]:
    """
    All models of a space, refined if that costs less than fitting the model did.

    :param fitted: the fitted guide.
    :param posterior: of the space.
    :param models: of the space.
    :param reduced_priors: of the sites that may be reduced.
    :return: the models, or None and why they are not refined; None and None where nothing is to be checked unasked.
    """

    def refined() -> ListedModels:
        found = refine_models(fitted, posterior, models, "")
        fit_of(fitted).num_evaluations += found.num_models
        return found

    if not pyro.settings.get("bmrs_automatic_check"):
        return None, None
    if (why_not := objection(fitted, posterior, models)) is not None:
        return None, why_not
    # A model of priors alone beside draws from elsewhere: its density is not that of the posterior.
    nodes: Any = fitted.trace.nodes
    if not any(site["type"] == "sample" and site["is_observed"] for site in nodes.values()):
        return None, "the model has no data"
    return where_cheap(fitted, lambda _: list(reduced_priors), refined)


def objection(fitted: FittedGuide, posterior: AveragedPosterior, models: ModelPosterior) -> str | None:
    """Why the models of a space cannot be refined, as far as that is told without running the model."""
    if not isinstance(posterior, NormalPosterior):
        return "the posterior is not jointly normal"
    if not isinstance(models, ListedModels) or models.num_models < 2 ** len(models.alone):
        return "the models are not all counted through"
    if models.num_models > MOST_MODELS:
        return f"there are {models.num_models:,} models"
    missing = sorted(fitted.latent - {block.name for block in posterior.space.blocks})
    return f"the sites {missing} are not in the joint normal" if missing else None


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
