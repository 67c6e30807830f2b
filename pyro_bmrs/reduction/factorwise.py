# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduction factor by factor, for posteriors that fall into independent factors of known density."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.evidence.accuracy import Accuracy, Estimated, combine
from pyro_bmrs.posteriors.draws import log_density
from pyro_bmrs.posteriors.factors import Factor, How, ReducedFactor
from pyro_bmrs.posteriors.guides.branches import Branch
from pyro_bmrs.posteriors.posterior import FactoredPosterior
from pyro_bmrs.posteriors.reduced_guide import BranchedGuide
from pyro_bmrs.reduction.priors import ReducedPriors, match_prior
from pyro_bmrs.structure.copies import with_own_tensors
from pyro_bmrs.structure.layers import is_point, peel
from pyro_bmrs.structure.mixtures import unmask

# Of each branch, for its part in the posterior of a site.
_DRAWS_OF_BRANCH = 1000


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

    @property
    def statements(self) -> dict[str, Distribution]:
        """What takes the place of the guide's sample statements."""
        statements = {factor.statement: reduced.statement for factor, reduced in self._factors.items()}
        # A transform there and back may miss a point by a rounding; the site itself is put on it.
        points = {name: prior for name, prior in self._reduced_priors.items() if is_point(prior)}
        return statements | points

    def guide(self, model: Callable[..., Any]) -> Any:
        """The reduced posterior as a guide for the reduced model, with parameters of its own."""
        return self._fitted.with_statements(self.statements, model)


class BranchedReduction(Estimated):
    """
    The change in log evidence of a posterior that falls into branches, and in each of these into factors.

    The mean of r/p over the posterior is that over the branches of its means within them, so that it is as exact as
    they are. Discrete sites that branches are told by may be reduced themselves.

    :param fitted: the posterior.
    :param reduced_priors: the reduced priors.
    :param branches: the branches.
    :param how: keywords of :func:`pyro_bmrs.evidence.reduce`.
    """

    # It needs none.
    draws = None

    def __init__(
        self, fitted: FactoredPosterior, reduced_priors: ReducedPriors, branches: Sequence[Branch], how: How
    ) -> None:
        self._fitted, self._branches = fitted, branches
        self._parts = [_InBranch(branch, reduced_priors, how) for branch in branches]
        self._log_probs = torch.stack([branch.log_prob for branch in branches])
        joint = self._log_probs + torch.stack([part.delta_evidence for part in self._parts])
        self.delta_evidence = joint.logsumexp(0)
        self._log_weights = (joint - self.delta_evidence).detach()
        weights = self._log_weights.exp().tolist()
        self.accuracy = combine(part.accuracy.scaled(weight) for part, weight in zip(self._parts, weights))

    @cached_property
    def elementwise(self) -> dict[str, Tensor]:
        """Delta F of reducing each element of each reduced site alone."""
        changes = [part.elementwise for part in self._parts]
        return {
            name: torch.stack([prob + own[name] for prob, own in zip(self._log_probs, changes)]).logsumexp(0)
            for name in changes[0]
        }

    @property
    def fitted_posterior(self) -> dict[str, Distribution]:
        """The posterior of each site as it was fitted: draws from each branch, as probable as it is."""
        return _mixed([part.fitted_posterior for part in self._parts], self._log_probs.detach())

    @cached_property
    def posterior(self) -> dict[str, Distribution]:
        """The posterior of each site under the reduced model: draws from each branch, as probable as it is then."""
        return _mixed([part.posterior for part in self._parts], self._log_weights)

    def guide(self, model: Callable[..., Any]) -> BranchedGuide:
        """The reduced posterior as a guide for the reduced model, with parameters of its own."""
        kept = self._log_weights > -torch.inf
        guides = [self._fitted.with_statements(part.statements, model) for part, here in zip(self._parts, kept) if here]
        arguments = (self._fitted.args, self._fitted.kwargs)
        return BranchedGuide(guides, self._log_weights[kept], model, arguments)


class _InBranch:
    """What a reduction comes to in one branch."""

    def __init__(self, branch: Branch, reduced_priors: ReducedPriors, how: How) -> None:
        self._branch = branch
        self._terms: dict[str, Tensor] = {}
        for name in sorted(reduced_priors.sites & branch.values.keys()):
            site: Any = branch.fitted.traces[1].nodes[name]
            prior, value = site["fn"], branch.values[name]
            reduced_prior = match_prior(name, reduced_priors.at(name, branch.values), prior)
            self._terms[name] = log_density(reduced_prior, value) - log_density(prior, value)
        left = dict.fromkeys(reduced_priors.sites - branch.values.keys(), frozenset[str]())
        here = ReducedPriors(left, partial(_at_values, reduced_priors, branch.values))
        self._rest = FactorwiseReduction(branch.fitted, here, how) if left else None

    @property
    def delta_evidence(self) -> Tensor:
        own = torch.stack([torch.zeros(()), *(term.sum() for term in self._terms.values())]).sum()
        return own if self._rest is None else own + self._rest.delta_evidence

    @property
    def accuracy(self) -> Accuracy:
        return Accuracy() if self._rest is None else self._rest.accuracy

    @property
    def elementwise(self) -> dict[str, Tensor]:
        return self._terms | ({} if self._rest is None else self._rest.elementwise)

    @cached_property
    def _fixed(self) -> dict[str, Distribution]:
        nodes: Any = self._branch.fitted.traces[0].nodes
        return {
            name: dist.Delta(value, event_dim=len(nodes[name]["fn"].event_shape))
            for name, value in self._branch.values.items()
        }

    @property
    def statements(self) -> dict[str, Distribution]:
        return self._fixed | ({} if self._rest is None else self._rest.statements)

    @property
    def fitted_posterior(self) -> dict[str, Distribution]:
        return self._fixed | {name: f.posterior(name) for name, f in self._branch.fitted.factor_of.items()}

    @property
    def posterior(self) -> dict[str, Distribution]:
        return self.fitted_posterior | ({} if self._rest is None else self._rest.posterior)


def _at_values(
    priors: ReducedPriors, values: Mapping[str, Tensor], name: str, others: Mapping[str, Tensor]
) -> Distribution:
    return priors.at(name, {**values, **others})


@torch.no_grad()
def _mixed(branches: Sequence[Mapping[str, Distribution]], log_weights: Tensor) -> dict[str, Distribution]:
    """Draws of each site that all branches have, as weighted as their branch is."""
    weights = log_weights.repeat_interleave(_DRAWS_OF_BRANCH) - math.log(_DRAWS_OF_BRANCH)
    shape = torch.Size([_DRAWS_OF_BRANCH])
    found: dict[str, Distribution] = {}
    for name in branches[0]:
        if all(name in branch for branch in branches):
            found[name] = dist.Empirical(torch.cat([branch[name].sample(shape) for branch in branches]), weights)
    return found
