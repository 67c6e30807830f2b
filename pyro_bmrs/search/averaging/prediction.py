# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Joint draws of all sites from a posterior averaged over models, to predict with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.integration.stated_model import StatedModel
from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.search.averaging.model_average import AveragedPosterior
from pyro_bmrs.search.probabilities.models import ModelPosterior, Models, weighted
from pyro_bmrs.structure.vectorised import Vectorised, own_parameters


@dataclass(frozen=True)
class Averaged:
    """
    A posterior averaged over models, with all of a guide's sites.

    :param fitted: the fitted guide.
    :param posterior: of the sites that depend on the models.
    :param models: with their probabilities.
    """

    fitted: FittedGuide
    posterior: AveragedPosterior
    models: ModelPosterior

    def over(self, models: Models, weights: Tensor) -> Averaged:
        """The same over some models alone, with weights that add up to 1."""
        return replace(self, models=weighted(models, weights, self.models.prior, self.models.alone))

    @torch.no_grad()
    def draw(self, num_samples: int, num_models: int | None = None) -> dict[str, Tensor]:
        """
        Draws of all sites, along the first dimension.

        Sites that do not depend on the models are drawn as the guide draws them, given those that do.

        :param num_samples: how many.
        :param num_models: over how many models, by default all, or as many as an average takes.
        """
        fitted, drawn = self.fitted, self.posterior.average(self.models, num_models).draw(num_samples)
        rest = sorted(fitted.sites - drawn.keys())
        if not rest:
            return drawn
        guide = fitted.unreduced_guide

        def given(values: dict[str, Tensor]) -> dict[str, Tensor]:
            trace = poutine.trace(poutine.condition(guide, data=values)).get_trace(*fitted.args, **fitted.kwargs)
            nodes: Any = trace.nodes
            return {name: nodes[name]["value"] for name in rest}

        with own_parameters():
            others: dict[str, Tensor] = Vectorised("drawing from the guide")(given, drawn)
        return drawn | others

    def predictive(self, num_samples: int, num_models: int | None, options: dict[str, Any]) -> Predictive:
        """
        Pyro's predictive distribution of the model at draws of its sites.

        :raises ReductionError: where nothing but priors and a density is known of the model.
        """
        if isinstance(self.fitted.model, StatedModel):
            raise ReductionError(
                "predictions run the model, of which nothing but priors and a density is known; pass the Pyro model as "
                "model=, or take the draws of to_arviz() to the language that the model is written in"
            )
        return Predictive(self.fitted.model, posterior_samples=self.draw(num_samples, num_models), **options)
