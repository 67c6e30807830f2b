# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduction factor by factor, for posteriors that fall into independent factors of known density."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.evidence.accuracy import Estimated, combine
from pyro_bmrs.posteriors.factors import Factor, How, ReducedFactor
from pyro_bmrs.posteriors.posterior import FactoredPosterior
from pyro_bmrs.reduction.priors import ReducedPriors, match_prior
from pyro_bmrs.structure.copies import with_own_tensors
from pyro_bmrs.structure.layers import is_point, peel
from pyro_bmrs.structure.mixtures import unmask


class FactorwiseReduction(Estimated):
    """
    The sum of the changes in log evidence of a posterior's independent factors.

    :param fitted: the posterior.
    :param reduced_priors: the reduced priors; none depends on another site.
    :param how: keywords of :func:`pyro_bmrs.evidence.reduce`.
    """

    # It needs none.
    draws = None

    def __init__(self, fitted: FactoredPosterior, reduced_priors: ReducedPriors, how: How) -> None:
        self._fitted, self._how = fitted, how
        names = sorted(reduced_priors.sites)
        self._priors: dict[str, Distribution] = {}
        self._reduced_priors: dict[str, Distribution] = {}
        for name in names:
            prior = with_own_tensors(fitted.prior(name))
            pair = prior, match_prior(name, reduced_priors.at(name, {}), prior)
            # A posterior with a mask of its own is compared under it.
            masked = peel(fitted.factor_of[name].posterior(name)).mask is not True
            self._priors[name], self._reduced_priors[name] = pair if masked else unmask(*pair)
        self._factors: dict[Factor, ReducedFactor] = {}
        for factor in dict.fromkeys(fitted.factor_of[name] for name in names):
            here = {name: self._reduced_priors[name] for name in factor.sites if name in self._reduced_priors}
            self._factors[factor] = factor.reduce(self._priors, here, how)
        counted = [(fitted.multiplicity(factor.sites[0]), reduced) for factor, reduced in self._factors.items()]
        self.delta_evidence = torch.stack([times * reduced.delta_evidence for times, reduced in counted]).sum()
        self.accuracy = combine(reduced.accuracy.scaled(times) for times, reduced in counted)

    @cached_property
    def elementwise(self) -> dict[str, Tensor]:
        """Delta F of reducing each element of each reduced site alone."""
        return {
            name: self._fitted.factor_of[name].elementwise(name, self._priors[name], reduced_prior, self._how)
            for name, reduced_prior in self._reduced_priors.items()
        }

    @property
    def fitted_posterior(self) -> dict[str, Distribution]:
        """The posterior of each site as it was fitted."""
        return {name: factor.posterior(name) for name, factor in self._fitted.factor_of.items()}

    @cached_property
    def posterior(self) -> dict[str, Distribution]:
        """The posterior of each site under the reduced model."""
        posteriors = {}
        for factor in self._fitted.factors:
            unchanged = {name: factor.posterior(name) for name in factor.sites}
            posteriors.update(self._factors[factor].posteriors if factor in self._factors else unchanged)
        return posteriors

    def guide(self, model: Callable[..., Any]) -> Any:
        """The reduced posterior as a guide for the reduced model, with parameters of its own."""
        statements = {factor.statement: reduced.statement for factor, reduced in self._factors.items()}
        # A transform there and back may miss a point by a rounding; the site itself is put on it.
        points = {name: prior for name, prior in self._reduced_priors.items() if is_point(prior)}
        return self._fitted.with_statements(statements | points, model)
