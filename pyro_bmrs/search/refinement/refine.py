# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The models of a space with their evidence by the model's own density, whatever guide the space was read off.

Where the guide is a joint normal of all sites, the reduced posterior of each model is known by it. Where it is not, or
where the density says that it is none, the normal is that of the draws with which the evidence of the full model is
integrated.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.integration.fits import Shift, fit_of
from pyro_bmrs.integration.log_joint import LogJoint
from pyro_bmrs.integration.stated_model import StatedModel, check_density
from pyro_bmrs.reduction.automatic import CHECK, Limits, where_cheap
from pyro_bmrs.search.averaging.model_average import AveragedPosterior, NormalPosterior
from pyro_bmrs.search.groups import Candidates, Groups
from pyro_bmrs.search.observations import NormalSpace
from pyro_bmrs.search.probabilities.models import ListedModels, ModelPosterior, VisitedModels
from pyro_bmrs.search.refinement.agreement import Agreement, agreement
from pyro_bmrs.search.refinement.correction import NUM_DRAWS, NUM_MODELS, NUM_NEIGHBOURS, missed_by_group, sample_models
from pyro_bmrs.search.refinement.evidence_by_density import DensityEvidence
from pyro_bmrs.search.refinement.joint_density import JointDensity, normal_of_integral
from pyro_bmrs.search.refinement.reweighting import reweighted
from pyro_bmrs.search.strategies.normal_search import MAX_MODELS, search_normal

# Models that are all evaluated; of more, as many are drawn as so many walks of so many steps.
_MOST_MODELS = 2**14
_NUM_STEPS, _NUM_WALKS = 512, 16
_IS_NO_NORMAL = "the posterior is no joint normal of all sites"
# Where nobody asked for a refinement: numbers in the largest tensor of an evaluation times evaluations, as of a check,
# and coordinates squared times models, whose reduced posteriors take some seconds then.
_MOST_NUMBERS, _MOST_SQUARES = 40_000 * CHECK.numbers, 2e7


class Refined(NamedTuple):
    """
    Models with their evidence by the model's density.

    :param models: the models.
    :param posterior: the full posterior that their reduced posteriors are of.
    :param agreement: of their inclusion probabilities with those by integrals.
    :param shift: where what was fitted lies beside the model's posterior, if the model was integrated.
    """

    models: ListedModels | VisitedModels
    posterior: NormalPosterior
    agreement: Agreement
    shift: Shift | None = None

    def warn(self, noun: str, stacklevel: int = 3) -> None:
        """
        Says what is not to be trusted.

        :param noun: what was fitted.
        :param stacklevel: of the warning; by default that of the caller's caller.
        """
        if self.shift is not None and self.shift.is_far:
            warnings.warn(
                f"The probabilities of models are those of the model given, and {self.shift.words(noun)}. See that "
                "model=, args= and kwargs= are those of the fit, and that it has converged.",
                ReductionWarning,
                stacklevel=stacklevel,
            )
        if self.agreement.is_off:
            warnings.warn(
                f"Inclusion probabilities are not to be trusted: {self.agreement.words()}. Hold the best models "
                "against the model, with check(), or fit them by themselves.",
                ReductionWarning,
                stacklevel=stacklevel,
            )


class Refinement:
    """
    What may be asked of the model about a space.

    :param candidates: what may be reduced.
    :param groups: which elements switch together.
    :param posterior: of the space.
    :param models: of the space.
    """

    def __init__(
        self, candidates: Candidates, groups: Groups, posterior: AveragedPosterior, models: ModelPosterior
    ) -> None:
        self._candidates, self._groups, self._posterior, self._models = candidates, groups, posterior, models
        self._fitted = candidates.fitted

    def insist(self) -> Refined:
        """
        The models, whatever that costs.

        :raises ReductionError: for models around the best of a climb alone; for a model whose density is not at hand;
            and where the guide is no joint normal and the model cannot be integrated, or not in coordinates in which
            the reduced priors are normal.
        """
        check_density(self._fitted.model, "refining the evidence of models")
        if (why_not := self._objection) not in (None, _IS_NO_NORMAL):
            raise ReductionError(f"the evidence of these models cannot be refined: {why_not}")
        found = self._by_guide() if why_not is None else None
        if found is not None and found.agreement.is_beyond_doubt:
            return found
        try:
            other = self._by_integral()
        except ReductionError as error:
            if found is None:
                raise ReductionError(
                    f"the evidence of these models cannot be refined: {why_not}, and {error}"
                ) from error
            return found
        return _closer(found, other)

    def where_cheap(self) -> tuple[Refined | None, str | None]:
        """
        The models, if that costs less than fitting the model did.

        :return: the models, or None and why they are not refined; None and None where nothing is to be checked unasked.
        """
        if not pyro.settings.get("bmrs_automatic_check"):
            return None, None
        if isinstance(self._fitted.model, StatedModel) and self._fitted.model.log_density is None:
            return None, "no more than priors is known of the model"
        # A model of priors alone beside draws from elsewhere: its density is not that of the posterior.
        nodes: Any = self._fitted.trace.nodes
        if not any(site["type"] == "sample" and site["is_observed"] for site in nodes.values()):
            return None, "the model has no data"
        why_not, found = self._objection, None
        if why_not is None:
            found, why_not = self._unasked(self._by_guide, self._limits)
        elif why_not != _IS_NO_NORMAL:
            return None, why_not
        if found is None or not found.agreement.is_beyond_doubt:
            other, neither = self._unasked(self._by_integral, CHECK)
            why_not = f"{why_not}, and {neither}" if found is None else None
            found = found if other is None else _closer(found, other)
        if found is not None and not found.agreement.is_known:
            return None, found.agreement.words()
        return found, None if found is not None else why_not

    @property
    def _limits(self) -> Limits:
        """Of models whose space is refined unasked with the guide's own normal."""
        count = self._models.num_models
        count = count if count <= _MOST_MODELS or isinstance(self._models, VisitedModels) else _NUM_STEPS * _NUM_WALKS
        return Limits(
            math.sqrt(_MOST_SQUARES / count), _MOST_NUMBERS // (count + 2 * (NUM_MODELS + NUM_NEIGHBOURS) * NUM_DRAWS)
        )

    def _unasked(self, refine: Callable[[], Refined], limits: Limits) -> tuple[Refined | None, str | None]:
        return where_cheap(self._fitted, lambda _: list(self._candidates.reduced_priors.values()), refine, limits)

    @property
    def _objection(self) -> str | None:
        """Why the models cannot be refined with the guide's own normal, as far as that is told without the model."""
        if isinstance(self._models, ListedModels) and not self._models.is_whole:
            return "only the models around the best of a climb are known"
        if not isinstance(self._posterior, NormalPosterior):
            return _IS_NO_NORMAL
        known = {block.name for block in self._posterior.space.blocks}
        return None if self._fitted.latent <= known else _IS_NO_NORMAL

    def _by_guide(self) -> Refined:
        assert isinstance(self._posterior, NormalPosterior)
        assert isinstance(self._models, (ListedModels, VisitedModels))
        return self._refined(self._posterior.space, self._models)

    def _by_integral(self) -> Refined:
        _, priors, reduced_priors = self._candidates
        fit = fit_of(self._fitted)
        is_known = None in fit.evidence
        normal = normal_of_integral(self._fitted, priors, reduced_priors, self._groups)
        fit.num_evaluations += 0 if is_known else normal.num_evaluations
        models, _ = search_normal(normal.space, self._models.prior, "auto", MAX_MODELS, progress=False)
        return self._refined(normal.space, models)._replace(shift=normal.shift)

    def _refined(self, space: NormalSpace, models: ListedModels | VisitedModels) -> Refined:
        nodes: Any = self._fitted.trace.nodes
        example = {name: nodes[name]["value"].detach() for name in self._fitted.latent}
        joint = LogJoint(self._fitted.model, self._fitted.args, self._fitted.kwargs, example=example)
        dtype = self._candidates.example.dtype
        evidence = DensityEvidence(space, JointDensity(joint, space, dtype))
        found, agrees = refined_models(evidence, models)
        fit_of(self._fitted).num_evaluations += evidence.num_evaluations
        return Refined(found, NormalPosterior(space, dtype), agrees)


def refined_models(
    evidence: DensityEvidence, models: ListedModels | VisitedModels
) -> tuple[ListedModels | VisitedModels, Agreement]:
    """
    Models with their evidence by the model's density: all, or, of many, as many as are drawn.

    :param evidence: by the model's density.
    :param models: as read off the posterior: all there are, or those visited.
    :return: the models, and how far their inclusion probabilities are from those by integrals.
    """
    if isinstance(models, ListedModels) and models.num_models > _MOST_MODELS:
        models = models.drawn(_NUM_STEPS, _NUM_WALKS)
    states = models.states
    # Each group reduced alone, and nothing.
    each = torch.eye(states.shape[-1], device=states.device).bool()
    *ends, full = evidence.at_mean(torch.cat([each, torch.zeros_like(each[:1])]))
    alone, at_mean = torch.stack(ends) - full, evidence.at_mean(states) - full
    before = _with_evidence(models, at_mean, alone)
    by_group = missed_by_group(sample_models(evidence, before, seed=0))
    found = _with_evidence(models, at_mean + states.to(by_group) @ by_group, alone + by_group)
    return found, agreement(sample_models(evidence, found, seed=1), by_group)


def _with_evidence(
    models: ListedModels | VisitedModels, delta_evidence: Tensor, alone: Tensor
) -> ListedModels | VisitedModels:
    if isinstance(models, ListedModels):
        return replace(models, delta_evidence=delta_evidence, alone=alone)
    return reweighted(models, delta_evidence, alone)


def _closer(found: Refined | None, other: Refined) -> Refined:
    """The one to be trusted more; where the posterior lies is told in any case."""
    nearer = other if found is None else min(found, other, key=lambda refined: refined.agreement.distance)
    return nearer._replace(shift=other.shift)
