# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduction by importance sampling over joint draws, where a posterior or a prior has no density of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from pyro.distributions import Empirical
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs import arviz_adapter
from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence.accuracy import Estimated
from pyro_bmrs.evidence.importance import ImportanceEstimate, check_log_weights, importance_estimate
from pyro_bmrs.posteriors.draws import Draws, log_density
from pyro_bmrs.posteriors.reduced_guide import DrawsGuide
from pyro_bmrs.reduction.priors import ReducedPriors, match_prior
from pyro_bmrs.structure.layers import is_point


class DrawnReduction(Estimated):
    """
    A reduction by Pareto-smoothed importance sampling over joint draws.

    :param draws: draws from the posterior, with the priors there.
    :param reduced_priors: the reduced priors.
    :param arguments: arguments and keyword arguments that the model was fitted with.
    :warns ReductionWarning: where the Pareto k of the weights is above 0.7.
    """

    def __init__(
        self, draws: Draws, reduced_priors: ReducedPriors, arguments: tuple[tuple[Any, ...], dict[str, Any]]
    ) -> None:
        self.draws, self._arguments = draws, arguments
        self._log_ratios = log_ratios(draws, reduced_priors)
        rows = [ratios.reshape(len(ratios), -1).sum(-1) for ratios in self._log_ratios.values()]
        self._estimate = self._estimate_from(torch.stack(rows).sum(0))
        self.delta_evidence = self._estimate.delta_evidence
        self.accuracy = self._estimate.accuracy

    def _estimate_from(self, log_ratios: Tensor) -> ImportanceEstimate:
        efficiency = weight_efficiency(self.draws, self._log_ratios, log_ratios.detach())
        return importance_estimate(log_ratios, relative_efficiency=efficiency)

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


def weight_efficiency(draws: Draws, names: Iterable[str], log_weights: Tensor) -> float | Tensor:
    """
    How much the autocorrelation of Markov chains takes from the precision of the mean weight.

    The weights may seem to mix where the sites that they are of do not.

    :param draws: the draws.
    :param names: the sites that the weights are of.
    :param log_weights: shape ``(num_draws, ...)``.
    """
    if draws.num_chains is None:
        return 1.0
    check_log_weights(log_weights)
    largest = log_weights.amax(0)
    weights = (log_weights - torch.where(largest.isfinite(), largest, 0.0)).exp()
    chains = weights.reshape((draws.num_chains, -1) + weights.shape[1:])
    of_weights = torch.from_numpy(arviz_adapter.relative_efficiency(chains.double().cpu().numpy()))
    of_sites = [draws.relative_efficiency.get(name, 1.0) for name in names]
    return of_weights.clamp(max=min(of_sites)) if min(of_sites) < 1 else of_weights


def log_ratios(draws: Draws, reduced_priors: ReducedPriors) -> dict[str, Tensor]:
    """
    log r(x) - log p(x) of each reduced site at each draw x.

    Of the site's shape where both priors are independent between its elements, else of its batch shape.

    :raises ReductionError: for a point as the reduced prior of a continuous site.
    """
    return {name: _log_ratio(name, draws, reduced_priors) for name in sorted(reduced_priors.sites)}


def _log_ratio(name: str, draws: Draws, reduced_priors: ReducedPriors) -> Tensor:
    prior, values = draws.priors[name], draws.values[name]
    if reduced_priors.upstream[name]:
        sites = [{site: drawn[i] for site, drawn in draws.values.items()} for i in range(len(values))]
        rows = [_log_reduced(name, reduced_priors.at(name, here), prior.example, here[name]) for here in sites]
        log_r = torch.stack(rows)
    else:
        log_r = _log_reduced(name, reduced_priors.at(name, {}), prior.example, values)
    log_p = prior.log_prob
    # Where the elements of only one of the two are independent, theirs are added up.
    dims = min(log_p.dim(), log_r.dim())
    log_ratio: Tensor = sum_rightmost(log_r, log_r.dim() - dims) - sum_rightmost(log_p, log_p.dim() - dims)
    scale = torch.as_tensor(prior.scale)
    # A weight is one for each batch element.
    return scale.reshape(scale.shape + (1,) * (log_ratio.dim() - 1 - len(prior.example.batch_shape))) * log_ratio


def _log_reduced(name: str, stated: Distribution, prior: Distribution, values: Tensor) -> Tensor:
    reduced_prior = match_prior(name, stated, prior)
    support: Any = prior.support
    if is_point(reduced_prior) and not support.is_discrete:
        raise ReductionError(
            f"the reduced prior of site {name!r} is a point, which no draw hits, and the posterior's density "
            "there is not at hand; take method='auto' or 'integration', which ask the model"
        )
    return log_density(reduced_prior, values)
