# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A posterior of a kind that the package does not know is reduced by what the protocol asks of it, and no more."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.posteriors import Draws, PriorAtDraws, SiteFactor
from pyro_bmrs.posteriors.draws import log_density
from pyro_bmrs.posteriors.posterior import FactoredPosterior, Posterior
from pyro_bmrs.reduction.reduce_model import reduce_posterior

DATA = torch.tensor([0.4, -0.1, 0.7, 0.2], dtype=torch.double)
REDUCED_SCALE = 0.3


def model() -> None:
    mean = pyro.sample("mean", dist.Normal(DATA.new_zeros(()), 1.0))
    with pyro.plate("data", len(DATA)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=DATA)


def log_evidence(prior_scale: float) -> torch.Tensor:
    """log N(y; 0, s² 11' + I)."""
    covariance = prior_scale**2 * torch.ones(4, 4, dtype=torch.double) + torch.eye(4, dtype=torch.double)
    return torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.double), covariance).log_prob(DATA)


def exact(prior_scale: float) -> dist.Normal:
    precision = len(DATA) + prior_scale**-2
    return dist.Normal(DATA.sum() / precision, DATA.new_tensor(precision**-0.5))


class ConjugatePosterior:
    """The exact posterior of the model, which no guide and no chain stands for."""

    noun, model, args, guide = "the formula", staticmethod(model), (), None
    latent = sites = frozenset({"mean"})

    def __init__(self, known: bool) -> None:
        self.kwargs: dict = {}
        self.factored: FactoredPosterior | None = self if known else None
        factor = SiteFactor("mean", "mean", exact(1.0))
        self.factors, self.factor_of = (factor,), {"mean": factor}

    def keep(self) -> None:
        pass

    def upstream(self, names) -> dict[str, frozenset[str]]:
        return dict.fromkeys(names, frozenset())

    def prior(self, name: str) -> dist.Normal:
        return dist.Normal(DATA.new_zeros(()), 1.0)

    def is_weighted(self, name: str) -> bool:
        return False

    def multiplicity(self, name: str) -> float:
        return 1.0

    def with_statements(self, statements, model):
        return lambda: {name: pyro.sample(name, distribution) for name, distribution in statements.items()}

    def draw(self, names, num_samples: int, progress: bool = False) -> Draws:
        values = exact(1.0).sample((num_samples,))
        prior = self.prior("mean")
        return Draws({"mean": values}, {"mean": PriorAtDraws(prior, log_density(prior, values))})


def test_one_of_known_density_is_reduced_exactly() -> None:
    posterior: Posterior = ConjugatePosterior(known=True)
    reduction = reduce_posterior(posterior, dist.Normal(0.0, REDUCED_SCALE))
    assert reduction.method == "exact"
    torch.testing.assert_close(reduction.delta_evidence, log_evidence(REDUCED_SCALE) - log_evidence(1.0))
    torch.testing.assert_close(reduction.posterior["mean"].mean, exact(REDUCED_SCALE).mean)
    torch.testing.assert_close(reduction.posterior["mean"].stddev, exact(REDUCED_SCALE).stddev)
    torch.testing.assert_close(reduction.fitted_posterior["mean"].mean, exact(1.0).mean)
    assert reduction.draws is None
    with pyro.poutine.trace() as captured:
        reduction.guide()
    torch.testing.assert_close(captured.trace.nodes["mean"]["fn"].mean, exact(REDUCED_SCALE).mean)


def test_one_that_can_only_be_drawn_from_is_weighted() -> None:
    posterior: Posterior = ConjugatePosterior(known=False)
    reduction = reduce_posterior(posterior, dist.Normal(0.0, REDUCED_SCALE), num_samples=5000)
    assert reduction.method == "importance"
    change = log_evidence(REDUCED_SCALE) - log_evidence(1.0)
    assert (reduction.delta_evidence - change).abs() < 4 * reduction.standard_error < 0.1
    assert len(reduction.draws.values["mean"]) == 5000
    with pytest.raises(ReductionError, match="method='exact' cannot be had"):
        reduce_posterior(posterior, dist.Normal(0.0, REDUCED_SCALE), method="exact")


def test_what_it_does_not_hold_is_told_by_its_noun() -> None:
    posterior = ConjugatePosterior(known=True)
    posterior.sites = frozenset()
    with pytest.raises(ReductionError, match="the formula has no latent site 'mean'"):
        reduce_posterior(posterior, dist.Normal(0.0, 1.0))
