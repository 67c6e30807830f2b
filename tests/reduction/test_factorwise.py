# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduction factor by factor, and what is said where a factor has no reduction."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoNormal,
)

from pyro_bmrs import ReductionError, reduce_model
from pyro_bmrs.evidence import log_evidence_change
from tests import conjugate
from tests.programs import NARROW, Y, fit, hierarchical, model, one_site

pytestmark = pytest.mark.usefixtures("double")


def test_a_reduced_prior_that_leaves_the_priors_support(guide):
    with pytest.raises(ReductionError, match="'scale'"):
        reduce_model(guide, {"scale": dist.Normal(0.0, 1.0)})


def test_a_reduced_prior_broader_than_the_prior():
    guide = AutoNormal(one_site, init_scale=2.0)
    guide()
    with pytest.raises(ReductionError, match="'z'.*broader"):
        reduce_model(guide, dist.Normal(0.0, 10.0))


def test_a_discrete_reduced_prior_of_a_continuous_site(guide):
    with pytest.raises(ReductionError, match="'bias'"):
        reduce_model(guide, {"bias": dist.Poisson(1.0)})


def test_a_continuous_reduced_prior_of_a_discrete_site():
    def coin():
        pyro.sample("coin", dist.Bernoulli(0.5))

    def coin_guide():
        pyro.sample("coin", dist.Bernoulli(pyro.param("p", torch.tensor(0.3))))

    SVI(coin, coin_guide, pyro.optim.Adam({"lr": 0.0}), Trace_ELBO()).step()
    with pytest.raises(ReductionError, match="'coin'"):
        reduce_model(coin_guide, dist.Beta(1.0, 1.0), model=coin)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_guide_that_diverged(bad):
    guide = AutoNormal(model)
    guide(Y)
    with torch.no_grad():
        guide.locs.weights[1] = bad
    with pytest.raises(ReductionError, match=r"weights'.*1 of 3"):
        with pyro.validation_enabled(False):
            reduce_model(guide, {"weights": NARROW})


def test_a_point_outside_the_support(guide):
    with pytest.raises(ReductionError, match="'scale'.*outside"):
        reduce_model(guide, {"scale": dist.Delta(torch.tensor(-1.0))})


@pytest.mark.parametrize(
    "point",
    [
        dist.Delta(torch.tensor(0.0)),
        dist.Delta(torch.zeros(2)),
        dist.Delta(torch.zeros(2)).to_event(1),
        dist.Delta(torch.zeros(2), event_dim=1),
        dist.Delta(torch.tensor(0.0)).expand([2]).to_event(1),
    ],
    ids=["a number", "a batch", "a batch, declared dependent", "an event", "expanded"],
)
def test_a_joint_site_of_a_written_guide_is_put_on_a_point_however_it_is_spelled(point):
    x, y = conjugate.data(num_columns=2)
    prior_loc, prior_scale = torch.zeros(2), torch.ones(2)
    posterior = conjugate.exact_posterior(x, y, prior_loc, prior_scale)

    def regression():
        b = pyro.sample("b", dist.Normal(prior_loc, prior_scale).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ b, conjugate.NOISE), obs=y)

    def written():
        pyro.sample("b", posterior)

    reduction = reduce_model(written, {"b": point}, model=regression)
    nothing = conjugate.log_evidence(x, y, prior_loc, torch.zeros(2))
    exact = nothing - conjugate.log_evidence(x, y, prior_loc, prior_scale)
    torch.testing.assert_close(reduction.delta_evidence, exact, rtol=1e-9, atol=1e-9)
    assert reduction.method == "exact"
    assert (pyro.poutine.trace(reduction.guide).get_trace().nodes["b"]["value"] == 0).all()


def test_a_second_reduction_of_a_point(guide):
    reduction = reduce_model(guide, {"bias": dist.Delta(torch.tensor(0.0))})
    with pytest.raises(ReductionError):
        reduce_model(reduction.guide, {"bias": NARROW})


def test_a_reduced_upper_level_is_exact():
    # p(theta | tau) stands in both models and cancels.
    y = torch.tensor([0.3, -0.2, 0.5])
    guide = fit(hierarchical, AutoNormal(hierarchical), y, steps=50)
    reduced_prior = dist.LogNormal(-1.0, 0.1)
    reduction = reduce_model(guide, {"tau": reduced_prior})
    posterior = dist.LogNormal(guide.locs.tau, guide.scales.tau)
    expected = log_evidence_change(posterior, dist.LogNormal(0.0, 0.2), reduced_prior)
    assert reduction.method == "exact"
    torch.testing.assert_close(reduction.delta_evidence, expected)


def test_elementwise_drops_one_covariate_at_a_time(exact_guide):
    guide, x, y = exact_guide()
    loc, scale = conjugate.prior(4)
    full = conjugate.log_evidence(x, y, loc, scale)
    reduction = reduce_model(guide, {"first": dist.Delta(torch.tensor(0.0)), "rest": dist.Delta(torch.tensor(0.0))})
    elementwise = torch.cat([reduction.elementwise["first"], reduction.elementwise["rest"]])
    for column, delta in enumerate(elementwise):
        kept = [other for other in range(4) if other != column]
        expected = conjugate.log_evidence(x[:, kept], y, loc[kept], scale[kept]) - full
        assert delta.item() == pytest.approx(expected.item(), abs=1e-8)
