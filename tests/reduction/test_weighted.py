# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Guides whose densities are not at hand site by site are reduced by joint draws."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoNormal,
    AutoRegressiveMessenger,
    AutoStructured,
)
from torch import Tensor

from pyro_bmrs import ReductionError, ReductionWarning, reduce_model
from tests import conjugate
from tests.programs import fit, hierarchical

pytestmark = pytest.mark.usefixtures("double")

REDUCED = {"first": dist.Normal(0.3, 0.6), "rest": dist.Normal(0.0, 0.5)}


def exact_posterior(x: Tensor, y: Tensor) -> dist.MultivariateNormal:
    return conjugate.exact_posterior(x, y, *conjugate.prior(4))


def exact_guide(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The exact posterior of the conjugate regression, by an auxiliary variable, so that no site has a density."""
    coefficients = pyro.sample("coefficients", exact_posterior(x, y), infer={"is_auxiliary": True})
    first, rest = coefficients[..., :2], coefficients[..., 2:]
    with pyro.plate("rest_plate", 2):
        rest = pyro.sample("rest", dist.Delta(rest))
    return {"first": pyro.sample("first", dist.Delta(first, event_dim=1)), "rest": rest}


def exact_change(x: Tensor, y: Tensor) -> float:
    full, reduced = conjugate.prior(4), (torch.tensor([0.3, 0.3, 0.0, 0.0]), torch.tensor([0.6, 0.6, 0.5, 0.5]))
    return (conjugate.log_evidence(x, y, *reduced) - conjugate.log_evidence(x, y, *full)).item()


def test_draws_from_the_exact_posterior_agree_with_the_exact_evidence():
    x, y = conjugate.data()
    reduction = reduce_model(exact_guide, REDUCED, model=conjugate.model, args=(x, y), num_samples=600)
    assert reduction.method == "importance"
    assert abs(reduction.delta_evidence.item() - exact_change(x, y)) < 3 * reduction.standard_error
    assert 1 < reduction.effective_sample_size < 600


def test_one_draw_is_no_estimate_and_says_so():
    x, y = conjugate.data()
    options = {"model": conjugate.model, "args": (x, y), "num_samples": 1}
    with pytest.warns(ReductionWarning, match="not to be trusted"):
        insisted = reduce_model(exact_guide, REDUCED, method="importance", **options)
    assert insisted.standard_error == math.inf and "not to be trusted" in repr(insisted)
    # Left to itself, it takes the integrals of the model's density, which need no draws.
    reduction = reduce_model(exact_guide, REDUCED, **options)
    assert reduction.method == "integration"
    assert abs(reduction.delta_evidence.item() - exact_change(x, y)) < 4 * reduction.standard_error + 1e-6


def test_standard_error_and_effective_sample_size_are_those_of_independent_weights():
    x, y = conjugate.data()
    reduction = reduce_model(exact_guide, REDUCED, model=conjugate.model, args=(x, y), num_samples=300)
    weights = (reduction.guide.log_weights - reduction.guide.log_weights.logsumexp(0)).exp()
    assert reduction.effective_sample_size.item() == pytest.approx(1 / weights.square().sum().item())
    variance = (300 * weights).var() / 300
    assert reduction.standard_error.item() == pytest.approx(variance.sqrt().item())


def grouped_prior(factor: float) -> Tensor:
    tau = pyro.sample("tau", dist.LogNormal(torch.tensor(0.0), 0.3))
    return pyro.sample("mean", dist.Normal(torch.zeros(3), factor * tau).to_event(1))


def grouped(y: Tensor | None = None) -> None:
    mean = grouped_prior(1.0)
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize(
    "make", [lambda model: AutoIAFNormal(model, hidden_dim=[8]), AutoRegressiveMessenger, AutoStructured]
)
def test_flows_and_autoregressive_guides_agree_with_plain_monte_carlo(make):
    y = torch.tensor([0.3, -0.4, 0.8])
    guide = make(grouped)
    svi = SVI(grouped, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(100):
        svi.step(y)
    reduction = reduce_model(guide, lambda: grouped_prior(0.7), args=(y,), num_samples=400)
    assert reduction.method == "importance"
    assert reduction.pareto_k < 0.7
    with torch.no_grad():
        draws = [guide(y) for _ in range(400)]
    tau, mean = (torch.stack([draw[name] for draw in draws]) for name in ("tau", "mean"))
    prior, reduced = (dist.Normal(0.0, factor * tau.unsqueeze(-1)) for factor in (1.0, 0.7))
    ratio = (reduced.log_prob(mean) - prior.log_prob(mean)).sum(-1).exp()
    error = ratio.std() / ratio.mean() / math.sqrt(400)
    distance = reduction.delta_evidence - ratio.mean().log()
    assert abs(distance) < 4 * (error**2 + reduction.standard_error**2).sqrt()

    assert Predictive(reduction.model, guide=reduction.guide, num_samples=3)()["y"].shape == (3, 3)
    assert reduction.to_arviz(num_samples=50).posterior["mean"].shape == (1, 50, 3)
    assert reduction.summary().notna().all(axis=None)


def test_one_sampled_factor_beside_an_exact_one():
    # Of a list of guides, each part is reduced by its own method where no site depends on another.
    x, y = conjugate.data()
    guide = AutoGuideList(conjugate.model)
    guide.append(AutoNormal(pyro.poutine.block(conjugate.model, expose=["first"])))
    guide.append(AutoNormal(pyro.poutine.block(conjugate.model, expose=["rest"])))
    svi = SVI(conjugate.model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(100):
        svi.step(x, y)
    exact = reduce_model(guide, REDUCED)
    sampled = reduce_model(guide, REDUCED, method="importance", num_samples=1500)
    assert exact.effective_sample_size is None
    assert 0 < sampled.effective_sample_size <= 1500
    assert abs(sampled.delta_evidence - exact.delta_evidence) < 4 * sampled.standard_error


def test_no_draw_hits_a_point():
    x, y = conjugate.data()
    asked = {"model": conjugate.model, "args": (x, y), "num_samples": 30, "method": "importance"}
    with pytest.raises(ReductionError, match="'rest' is a point, which no draw hits.*method='auto'"):
        reduce_model(exact_guide, {"rest": dist.Delta(torch.zeros(2))}, **asked)


def test_a_point_where_only_draws_are_to_be_had():
    def hierarchical():
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        pyro.sample("z", dist.Normal(0.0, tau))

    guide = AutoNormal(hierarchical)
    guide()
    # The model has no data, so that none of its priors explains them better than another.
    reduction = reduce_model(guide, {"z": dist.Delta(torch.tensor(0.0))})
    assert reduction.method == "integration"
    assert float(reduction.delta_evidence) == pytest.approx(0.0, abs=max(0.05, 3 * float(reduction.standard_error)))


def test_a_prior_that_depends_on_another_site_goes_by_importance_sampling():
    y = torch.tensor([0.3, -0.2, 0.5])
    guide = fit(hierarchical, AutoNormal(hierarchical), y, steps=200)
    reduction = reduce_model(guide, {"theta": dist.Normal(0.0, 0.8)}, num_samples=1500)
    assert reduction.method == "importance"
    tau = dist.LogNormal(guide.locs.tau, guide.scales.tau).sample((200_000,)).unsqueeze(-1)
    theta = dist.Normal(guide.locs.theta, guide.scales.theta).sample((200_000,))
    log_ratio = (dist.Normal(0.0, 0.8).log_prob(theta) - dist.Normal(0.0, tau).log_prob(theta)).sum(-1)
    expected = log_ratio.logsumexp(0) - math.log(200_000)
    assert abs(reduction.delta_evidence - expected) < 5 * reduction.standard_error
    assert Predictive(reduction.model, guide=reduction.guide, num_samples=3)(y)["y"].shape == (3, 3)


def test_a_hierarchical_guide_is_drawn():
    y = torch.tensor([0.3, -0.2, 0.5])
    guide = fit(hierarchical, AutoHierarchicalNormalMessenger(hierarchical), y, steps=50)
    reduction = reduce_model(guide, {"theta": dist.Normal(0.0, 0.9)}, args=(y,), num_samples=500)
    assert reduction.method == "importance"


def test_draws_that_cannot_support_a_reduction_warn():
    y = torch.tensor([5.0, -6.0, 7.0])
    guide = fit(hierarchical, AutoNormal(hierarchical), y, steps=200)
    with pytest.warns(ReductionWarning, match="not to be trusted"):
        reduction = reduce_model(guide, {"theta": dist.Normal(0.0, 0.05)}, num_samples=500, method="importance")
    assert reduction.pareto_k > 0.7
    assert "not to be trusted" in repr(reduction)
