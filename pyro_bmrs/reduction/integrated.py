# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduction by integrating the model under both priors, where no posterior density is at hand to read it off."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from pyro.distributions import Empirical
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.evidence.accuracy import Accuracy, Estimated
from pyro_bmrs.integration.ends import LogEvidence, Values, conditioned, integrate_model
from pyro_bmrs.integration.fits import full_evidence
from pyro_bmrs.integration.log_evidence import num_starts
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.posteriors.reading import read_guide
from pyro_bmrs.posteriors.reduced_guide import DrawsGuide
from pyro_bmrs.reduction.priors import ReducedPriors, match_prior, reduced_model
from pyro_bmrs.structure.mixtures import mix


class IntegratedReduction(Estimated):
    """
    The log evidence of the reduced model less that of the full one, both integrated.

    It is the model's answer, not the guide's, and needs no density of the posterior: a point is no more than a
    coordinate less. It is not differentiable.

    :param fitted: the posterior.
    :param reduced_priors: the reduced priors.
    :param near: draws near the reduced posterior to begin at, beside those that the full posterior gives; None where
        there are none.
    :param num_draws: draws a round of the integrals.
    :param progress: whether to show a progress bar while drawing from a guide.
    """

    draws = None

    def __init__(
        self,
        fitted: Posterior,
        reduced_priors: ReducedPriors,
        *,
        near: Values | None = None,
        num_draws: int | None = None,
        progress: bool = False,
    ) -> None:
        self._fitted, self._reduced_priors, self._num_draws = fitted, reduced_priors, num_draws
        self.full = full_evidence(fitted, num_draws=num_draws, progress=progress)
        self.reduced = self._integrate(reduced_model(fitted.model, reduced_priors), near)
        self.delta_evidence = torch.tensor(self.reduced.value - self.full.value)
        self.accuracy = self._accuracy()

    def _accuracy(self) -> Accuracy:
        ends = (self.full, self.reduced)
        return Accuracy(
            "integration",
            torch.tensor([end.standard_error for end in ends]).square().sum().sqrt(),
            torch.tensor([end.pareto_k for end in ends]).max(),
            torch.tensor([end.effective_sample_size for end in ends]).min(),
        )

    def _integrate(self, model: Callable[..., Any], near: Values | None = None) -> LogEvidence:
        fitted = self._fitted
        num = num_starts(fitted)
        starts = [start for start in (conditioned(self.full, model, num), near) if start is not None]
        starts = starts or [self.full.draws(num)]
        return integrate_model(model, fitted.args, fitted.kwargs, starts, num_draws=self._num_draws)

    @property
    def elementwise(self) -> dict[str, Tensor]:
        """Delta F of reducing each element of each reduced site alone: an integral each."""
        return {name: changes for name, (changes, _) in self._alone.items()}

    @property
    def elementwise_error(self) -> dict[str, Tensor]:
        """The standard errors of :attr:`elementwise`, in nats."""
        return {name: errors for name, (_, errors) in self._alone.items()}

    @cached_property
    def _alone(self) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for name in sorted(self._reduced_priors.sites):
            value = self._full_draws[name][0]
            one_by_one = torch.eye(value.numel(), dtype=torch.bool).reshape(-1, *value.shape)
            ends = [self._integrate(self._reduced_at(name, here)) for here in one_by_one]
            changes = torch.tensor([end.value - self.full.value for end in ends])
            errors = torch.tensor([math.hypot(end.standard_error, self.full.standard_error) for end in ends])
            found[name] = changes.reshape(value.shape), errors.reshape(value.shape)
        return found

    def _reduced_at(self, name: str, elements: Tensor) -> Callable[..., Any]:
        return _SomeReduced(name, elements, self._reduced_priors)(self._fitted.model)

    @cached_property
    def _full_draws(self) -> Values:
        return self.full.log_joint.values(self.full.integral.points)

    @cached_property
    def _reduced_draws(self) -> Values:
        return self.reduced.log_joint.values(self.reduced.integral.points)

    @property
    def fitted_posterior(self) -> dict[str, Distribution]:
        """The posterior of each site under the full model, as weighted draws."""
        log_weights = self.full.integral.log_weights
        return {name: Empirical(values, log_weights.to(values)) for name, values in self._full_draws.items()}

    @property
    def posterior(self) -> dict[str, Distribution]:
        """The posterior of each site under the reduced model, as weighted draws."""
        log_weights = self.reduced.integral.log_weights
        return {name: Empirical(values, log_weights.to(values)) for name, values in self._reduced_draws.items()}

    def guide(self, model: Callable[..., Any]) -> DrawsGuide:
        """The weighted draws as a guide for the reduced model."""
        arguments = (self._fitted.args, self._fitted.kwargs)
        return DrawsGuide(model, self._reduced_draws, self.reduced.integral.log_weights, arguments)


def reduced_draws(reduction: Any, progress: bool) -> Values:
    """Draws from the reduced posterior that was read off, by site, along the first dimension."""
    fitted, posterior = reduction.fitted, reduction.posterior
    num = num_starts(fitted)
    if reduction.method == "quadrature" and fitted.sites <= posterior.keys():
        # Quantiles by quadrature are quick together and slow one by one, and marginals are as good to begin at.
        return {name: posterior[name].sample(torch.Size([num])) for name in fitted.sites}
    guide = reduction.new_guide()
    if isinstance(guide, DrawsGuide):
        return guide.resample(num)
    return read_guide(guide, reduction.model, fitted.args, fitted.kwargs).draw((), num, progress).values


class _SomeReduced(Messenger):
    """The reduced prior in the place of a site's own, for some of its elements."""

    def __init__(self, name: str, elements: Tensor, reduced_priors: ReducedPriors) -> None:
        super().__init__()
        self.name, self.elements, self.reduced_priors = name, elements, reduced_priors
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.name and not msg["is_observed"]:
            reduced_prior = match_prior(self.name, self.reduced_priors.at(self.name, self.values), msg["fn"])
            msg["fn"] = mix(msg["fn"], reduced_prior, self.elements)

    def _pyro_post_sample(self, msg: Any) -> None:
        self.values[msg["name"]] = msg["value"]
