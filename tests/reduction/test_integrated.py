# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reductions by integrating the model, of draws and where priors depend on other sites."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy import stats

from pyro_bmrs import ReductionWarning, reduce_model
from pyro_bmrs.arviz_adapter import to_arviz
from pyro_bmrs.reduction import integrated
from pyro_bmrs.reduction.integrated import reduced_draws
from tests import conjugate

X, Y = conjugate.data()
PRIOR = conjugate.prior(4)


def exact_change(**fixed: list[int]) -> float:
    loc, scale = (values.clone() for values in PRIOR)
    at = fixed["at"]
    loc[at], scale[at] = 0.0, 1e-9
    return float(conjugate.log_evidence(X, Y, loc, scale) - conjugate.log_evidence(X, Y, *PRIOR))


@pytest.fixture(scope="module")
def draws():
    posterior = conjugate.exact_posterior(X, Y, *PRIOR)
    torch.manual_seed(0)
    values = posterior.sample((4, 500)).numpy()
    return to_arviz({"posterior": {"first": values[..., :2], "rest": values[..., 2:]}})


@pytest.fixture(scope="module")
def without_first(draws):
    return reduce_model(draws, {"first": dist.Delta(torch.tensor(0.0))}, model=conjugate.model, args=(X, Y))


def test_a_point_from_draws(without_first):
    exact = exact_change(at=[0, 1])
    assert without_first.method == "integration"
    error = float(without_first.standard_error)
    assert float(without_first.delta_evidence) == pytest.approx(exact, abs=max(0.1, 2 * error))


def test_a_point_from_draws_that_the_data_speak_against(draws):
    """Six standard deviations out, where there are no draws to estimate a density from."""
    posterior = conjugate.exact_posterior(X, Y, *PRIOR)
    marginal = dist.MultivariateNormal(posterior.mean[:2], posterior.covariance_matrix[:2, :2])
    at = marginal.mean + 6 * marginal.scale_tril @ X.new_tensor([0.6, -0.8])
    found = reduce_model(draws, {"first": dist.Delta(at)}, model=conjugate.model, args=(X, Y))
    exact = float(marginal.log_prob(at) - dist.Normal(0.0, 1.0).log_prob(at).sum())
    assert exact < -10
    assert float(found.delta_evidence) == pytest.approx(exact, abs=max(0.05, 3 * float(found.standard_error)))


def test_elements_one_by_one(without_first):
    found = without_first.elementwise["first"]
    assert found.tolist() == pytest.approx([exact_change(at=[0]), exact_change(at=[1])], abs=0.1)


def test_the_reduced_posterior_is_that_of_the_smaller_regression(without_first):
    exact = conjugate.exact_posterior(X[:, 2:], Y, PRIOR[0][2:], PRIOR[1][2:])
    posterior = without_first.posterior["rest"]
    torch.testing.assert_close(posterior.mean, exact.mean, atol=0.02, rtol=0.0)
    assert not without_first.posterior["first"].mean.any()
    drawn = without_first.guide(X, Y)
    assert not drawn["first"].any()
    assert list(without_first.summary().index) == ["first[0]", "first[1]"]


def test_a_prior_that_no_draw_is_near_is_integrated_too(draws):
    with pytest.warns(ReductionWarning):
        sampled = reduce_model(
            draws,
            {"rest": dist.Normal(X.new_tensor(3.0), 0.05)},
            model=conjugate.model,
            args=(X, Y),
            method="importance",
        )
    found = reduce_model(draws, {"rest": dist.Normal(X.new_tensor(3.0), 0.05)}, model=conjugate.model, args=(X, Y))
    loc, scale = (values.clone() for values in PRIOR)
    loc[2:], scale[2:] = 3.0, 0.05
    exact = float(conjugate.log_evidence(X, Y, loc, scale) - conjugate.log_evidence(X, Y, *PRIOR))
    assert abs(float(sampled.delta_evidence) - exact) > 1.0
    assert float(found.delta_evidence) == pytest.approx(exact, abs=max(0.1, 3 * float(found.standard_error)))


def test_it_can_be_insisted_upon(exact_guide):
    guide, x, y = exact_guide(AutoMultivariateNormal)
    reduced_prior = {"rest": dist.Normal(x.new_tensor(0.0), 0.5)}
    found = reduce_model(guide, reduced_prior, args=(x, y), method="integration")
    closed = reduce_model(guide, reduced_prior, args=(x, y))
    assert (found.method, closed.method) == ("integration", "exact")
    assert float(found.delta_evidence) == pytest.approx(closed.delta_evidence.item(), abs=0.05)


def test_a_point_where_the_prior_depends_on_another_site():
    """The scale of the prior is integrated over on a grid: given it, the rest is conjugate."""

    def model(x, y):
        width = pyro.sample("width", dist.HalfNormal(x.new_tensor(1.0)))
        slopes = pyro.sample("slopes", dist.Normal(x.new_zeros(2), width).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ slopes, 0.7), obs=y)

    x = X[:, :2]
    width = torch.linspace(1e-4, 6.0, 3000, dtype=torch.float64)
    marginals = [
        conjugate.log_evidence(x, Y, x.new_zeros(2), here * torch.ones(2, dtype=torch.float64)) for here in width[::10]
    ]
    step = float(width[10] - width[0])
    prior = dist.HalfNormal(1.0).log_prob(width[::10])
    full = float(torch.logsumexp(torch.stack(marginals) + prior, 0)) + float(torch.tensor(step).log())
    reduced = float(conjugate.log_evidence(x, Y, x.new_zeros(2), 1e-9 * torch.ones(2, dtype=torch.float64)))
    guide = AutoNormal(model)
    guide(x, Y)
    found = reduce_model(guide, {"slopes": dist.Delta(x.new_tensor(0.0))}, args=(x, Y))
    assert found.method == "integration"
    assert float(found.delta_evidence) == pytest.approx(reduced - full, abs=max(0.1, 3 * float(found.standard_error)))


def test_reduced_draws_by_quadrature_are_made_together_where_sites_are_summed_out(monkeypatch):
    y = torch.tensor([-1.2, -0.8, 1.4, 1.6, 1.5])

    @config_enumerate
    def model():
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(y)):
            which = pyro.sample("which", dist.Bernoulli(share)).long()
            pyro.sample("y", dist.Normal(torch.tensor([-1.0, 1.5])[which], 0.5), obs=y)

    guide = AutoNormal(poutine.block(model, hide=["which"]))
    guide()
    reduction = reduce_model(guide, {"share": dist.Beta(50.0, 50.0)}, model=model)
    assert reduction.method == "quadrature"
    # One by one is by runs of the reduced guide, each of which solves for its quantile anew.
    monkeypatch.setattr(integrated, "read_guide", None)
    draws = reduced_draws(reduction, False)["share"]
    together = reduction.posterior["share"].sample(torch.Size([4000]))
    assert stats.ks_2samp(draws.numpy(), together.numpy()).pvalue > 1e-3
