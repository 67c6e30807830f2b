# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduction by importance sampling over joint draws, where a posterior or a prior has no density of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, singledispatch
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Empirical
from pyro.distributions.util import sum_rightmost
from pyro.poutine.guide import GuideMessenger
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import trange

from . import arviz_adapter
from .coordinates import elements, is_point
from .errors import ReductionError
from .evidence.importance import ImportanceEstimate, check_log_weights, importance_estimate
from .guides import DrawsGuide
from .posteriors import FittedGuide
from .priors import ReducedPriors, latent_nodes, match_prior


@dataclass(frozen=True)
class PriorAtDraws:
    """
    What the prior of a site says at each of a number of draws.

    :param example: the prior at one of them; those at the others have its shapes and its type.
    :param log_prob: log density, of the site's shape where its elements are independent, else of its batch shape;
        the draws along the first dimension.
    :param scale: how many elements each element stands for.
    """

    example: Distribution
    log_prob: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Draws:
    """
    Joint draws from a posterior.

    :param values: of each latent site, the draws along the first dimension.
    :param priors: of each site that may be reduced.
    :param num_chains: into how many Markov chains of equal length the draws fall, one after the other; None where they
        are independent.
    """

    values: Mapping[str, Tensor]
    priors: Mapping[str, PriorAtDraws]
    num_chains: int | None = None

    def log_ratios(self, reduced_priors: ReducedPriors) -> dict[str, Tensor]:
        """
        log r(x) - log p(x) of each reduced site at each draw x.

        Of the site's shape where both priors are independent between its elements, else of its batch shape.

        :raises ReductionError: for a point as the reduced prior of a continuous site.
        """
        return {name: self._log_ratio(name, reduced_priors) for name in sorted(reduced_priors.sites)}

    def _log_ratio(self, name: str, reduced_priors: ReducedPriors) -> Tensor:
        prior, values = self.priors[name], self.values[name]
        if reduced_priors.upstream[name]:
            sites = [{site: drawn[i] for site, drawn in self.values.items()} for i in range(len(values))]
            rows = [self._log_reduced(name, reduced_priors.at(name, here), here[name]) for here in sites]
            log_r = torch.stack(rows)
        else:
            log_r = self._log_reduced(name, reduced_priors.at(name, {}), values)
        log_p = prior.log_prob
        # Where the elements of only one of the two are independent, theirs are added up.
        dims = min(log_p.dim(), log_r.dim())
        return prior.scale * (sum_rightmost(log_r, log_r.dim() - dims) - sum_rightmost(log_p, log_p.dim() - dims))

    def _log_reduced(self, name: str, stated: Distribution, values: Tensor) -> Tensor:
        prior = self.priors[name].example
        reduced_prior = match_prior(name, stated, prior)
        if is_point(reduced_prior) and not prior.support.is_discrete:  # type: ignore[union-attr]
            raise ReductionError(
                f"the reduced prior of site {name!r} is a point, which no draw hits, and the posterior's density "
                "there is not at hand; take a narrow normal instead"
            )
        return log_density(reduced_prior, values)


def log_density(distribution: Distribution, values: Tensor) -> Tensor:
    """
    Log density at each of a number of values, element by element where the elements are independent.

    :param distribution: one distribution, for all values.
    :param values: along the first dimension, or one alone; minus infinity outside the support.
    """
    parted = elements(distribution)
    bare: Any = distribution if parted is None else parted
    inside = bare.support.check(values)
    if inside.all():
        return bare.log_prob(values)
    event_dim = len(bare.event_shape)
    # What is outside is put where there is a density, so that no NaN comes back through the gradient.
    stand_in = bare.sample().expand(values.shape)
    chosen = torch.where(inside.reshape(inside.shape + (1,) * event_dim), values, stand_in)
    return torch.where(inside, bare.log_prob(chosen), -torch.inf)


@singledispatch
def draw(fitted: Any, names: Collection[str], num_samples: int, progress: bool = False) -> Draws:
    """
    Joint draws from a fitted posterior, with the priors of some sites at each draw.

    From a guide, one run of guide and model for each draw.
    """
    values: dict[str, list[Tensor]] = {}
    examples: dict[str, Distribution] = {}
    log_probs: dict[str, list[Tensor]] = {name: [] for name in names}
    for _ in trange(num_samples, desc="drawing from the guide", disable=not progress, leave=False):
        with torch.no_grad():
            guide_trace, model_trace = _run_once(fitted)
            sites = latent_nodes(model_trace)
            for name, site in sites.items():
                if name in fitted.sites:
                    values.setdefault(name, []).append(site["value"])
            for name in names:
                examples[name] = sites[name]["fn"]
                log_probs[name].append(log_density(examples[name], sites[name]["value"]))
    return Draws(
        {name: torch.stack(drawn) for name, drawn in values.items()},
        {name: PriorAtDraws(examples[name], torch.stack(log_probs[name]), fitted.scale(name)) for name in names},
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

    :param draws: draws from the posterior, with the priors there.
    :param reduced_priors: the reduced priors.
    :param arguments: arguments and keyword arguments that the model was fitted with.
    :warns ReductionWarning: where the Pareto k of the weights is above 0.7.
    """

    method = "importance"

    def __init__(self, draws: Draws, reduced_priors: ReducedPriors, arguments: tuple[tuple, dict[str, Any]]) -> None:
        self.draws, self._arguments = draws, arguments
        self._log_ratios = draws.log_ratios(reduced_priors)
        rows = [ratios.reshape(len(ratios), -1).sum(-1) for ratios in self._log_ratios.values()]
        self._estimate = self._estimate_from(torch.stack(rows).sum(0))
        self.delta_evidence = self._estimate.delta_evidence
        self.standard_error, self.pareto_k = self._estimate.standard_error, self._estimate.pareto_k
        self.effective_sample_size = self._estimate.effective_sample_size

    def _estimate_from(self, log_ratios: Tensor) -> ImportanceEstimate:
        return importance_estimate(log_ratios, relative_efficiency=self._relative_efficiency(log_ratios.detach()))

    def _relative_efficiency(self, log_ratios: Tensor) -> float | Tensor:
        """How much the autocorrelation of Markov chains takes from the precision of the mean weight."""
        if self.draws.num_chains is None:
            return 1.0
        check_log_weights(log_ratios)
        largest = log_ratios.amax(0)
        weights = (log_ratios - torch.where(largest.isfinite(), largest, 0.0)).exp()
        chains = weights.reshape((self.draws.num_chains, -1) + weights.shape[1:])
        return torch.from_numpy(arviz_adapter.relative_efficiency(chains.double().cpu().numpy()))

    @cached_property
    def elementwise(self) -> dict[str, Tensor]:
        """Delta F of reducing each element of each reduced site alone, from the same draws."""
        return {name: self._estimate_from(ratios).delta_evidence for name, ratios in self._log_ratios.items()}

    @property
    def fitted_posterior(self) -> dict[str, Distribution]:
        """The draws of each site as they were drawn."""
        log_weights = torch.zeros_like(self._estimate.log_weights)
        return {name: Empirical(values, log_weights) for name, values in self.draws.values.items()}

    @cached_property
    def posterior(self) -> dict[str, Distribution]:
        """The weighted draws of each site."""
        log_weights = self._estimate.log_weights.detach()
        return {name: Empirical(values, log_weights) for name, values in self.draws.values.items()}

    def guide(self, model: Callable[..., Any]) -> DrawsGuide:
        """The weighted draws as a guide for the reduced model."""
        return DrawsGuide(model, self.draws.values, self._estimate.log_weights, self._arguments)
