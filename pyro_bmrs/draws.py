# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduction by importance sampling over joint draws, where a posterior or a prior has no density of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Empirical
from pyro.poutine.guide import GuideMessenger
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import trange

from .coordinates import elements, is_point
from .errors import ReductionError
from .evidence.importance import importance_estimate
from .guides import DrawsGuide
from .posteriors import FittedGuide
from .priors import ReducedPriors, latent_nodes, match_prior


@dataclass(frozen=True)
class Draws:
    """
    Joint draws from a posterior, and what they say of the reduced priors.

    :param values: of each latent site, the draws along the first dimension.
    :param log_ratios: log r(x) - log p(x) of each reduced site at each draw, of the site's shape where both priors are
        independent between its elements, else of its batch shape.
    """

    values: Mapping[str, Tensor]
    log_ratios: Mapping[str, Tensor]


def log_ratio(prior: Distribution, reduced_prior: Distribution, value: Tensor) -> Tensor:
    """log r(x) - log p(x), element by element where both priors are independent between elements."""
    p, r = elements(prior), elements(reduced_prior)
    if p is None or r is None:
        p, r = prior, reduced_prior
    return r.log_prob(value) - p.log_prob(value)


def draw(fitted: FittedGuide, reduced_priors: ReducedPriors, num_samples: int, progress: bool = False) -> Draws:
    """Draws from a guide, one run of guide and model for each, with the reduced priors evaluated at each draw."""
    names = sorted(reduced_priors.sites)
    values: dict[str, list[Tensor]] = {}
    ratios: dict[str, list[Tensor]] = {name: [] for name in names}
    for _ in trange(num_samples, desc="drawing from the guide", disable=not progress, leave=False):
        with torch.no_grad():
            guide_trace, model_trace = _run_once(fitted)
        sites = latent_nodes(model_trace)
        here = {name: site["value"] for name, site in sites.items() if name in fitted.sites}
        for name, value in here.items():
            values.setdefault(name, []).append(value)
        for name in names:
            prior = sites[name]["fn"]
            reduced_prior = match_prior(name, reduced_priors.at(name, here), prior)
            if is_point(reduced_prior):
                raise ReductionError(
                    f"the reduced prior of site {name!r} is a point, which no draw hits, and the posterior's density "
                    "there is not at hand; take a narrow normal instead"
                )
            ratios[name].append(log_ratio(prior, reduced_prior, here[name]) * fitted.scale(name))
    return Draws(
        {name: torch.stack(drawn) for name, drawn in values.items()},
        {name: torch.stack(drawn) for name, drawn in ratios.items()},
    )


def _run_once(fitted: FittedGuide) -> tuple[poutine.Trace, poutine.Trace]:
    guide_trace = poutine.trace(fitted.guide).get_trace(*fitted.args, **fitted.kwargs)
    if isinstance(fitted.guide, GuideMessenger):
        model_trace, guide_trace = fitted.guide.get_traces()
        return guide_trace, model_trace
    replayed = poutine.replay(fitted.model, trace=guide_trace)
    return guide_trace, poutine.trace(replayed).get_trace(*fitted.args, **fitted.kwargs)


class DrawnReduction:
    """
    A reduction by Pareto-smoothed importance sampling over joint draws.

    :param draws: draws from the posterior, with their log ratios.
    :warns ReductionWarning: where the Pareto k of the weights is above 0.7.
    """

    method = "importance"

    def __init__(self, draws: Draws) -> None:
        self._draws = draws
        total = torch.stack([ratios.reshape(len(ratios), -1).sum(-1) for ratios in draws.log_ratios.values()]).sum(0)
        self._estimate = importance_estimate(total)
        self.delta_evidence = self._estimate.delta_evidence
        self.standard_error, self.pareto_k = self._estimate.standard_error, self._estimate.pareto_k

    @cached_property
    def elementwise(self) -> dict[str, Tensor]:
        """Delta F of reducing each element of each reduced site alone, from the same draws."""
        return {name: importance_estimate(ratios).delta_evidence for name, ratios in self._draws.log_ratios.items()}

    @cached_property
    def posterior(self) -> dict[str, Distribution]:
        """The weighted draws of each site."""
        log_weights = self._estimate.log_weights.detach()
        return {name: Empirical(values, log_weights) for name, values in self._draws.values.items()}

    def guide(self, model: Callable[..., Any]) -> DrawsGuide:
        """The weighted draws as a guide for the reduced model."""
        return DrawsGuide(model, self._draws.values, self._estimate.log_weights)
