# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A reduction held against the model, on regressions whose evidence is known exactly."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_bmrs import ReductionError, reduce_model
from tests import conjugate

X, Y = conjugate.data()
PRIOR = conjugate.prior(4)
FULL = float(conjugate.log_evidence(X, Y, *PRIOR))


def change(loc: torch.Tensor, scale: torch.Tensor) -> float:
    return float(conjugate.log_evidence(X, Y, loc, scale)) - FULL


def without_the_first_two() -> float:
    loc, scale = (values.clone() for values in PRIOR)
    loc[:2], scale[:2] = 0.0, 1e-9
    return change(loc, scale)


@pytest.fixture
def mean_field(exact_guide):
    """The best of AutoNormal on correlated covariates: narrower than the posterior, so off in its tails."""
    return exact_guide(AutoNormal)[0]


def test_a_guide_that_is_too_narrow_is_found_out_and_corrected(mean_field):
    reduction = reduce_model(mean_field, {"first": dist.Delta(X.new_tensor(0.0))}, args=(X, Y))
    check = reduction.check()
    exact = without_the_first_two()
    assert abs(reduction.delta_evidence.item() - exact) > 1.0
    assert check.trusted
    assert not check.agrees
    assert check.delta_evidence == pytest.approx(exact, abs=max(0.05, 3 * check.standard_error))
    assert "the posterior is off" in repr(check)


def test_the_exact_posterior_agrees_with_the_model(exact_guide):
    guide, x, y = exact_guide(AutoMultivariateNormal)
    reduction = reduce_model(guide, {"rest": dist.Normal(x.new_tensor(0.0), 0.1)}, args=(x, y))
    check = reduction.check()
    loc, scale = (values.clone() for values in PRIOR)
    loc[2:], scale[2:] = 0.0, 0.1
    assert check.trusted
    assert check.agrees
    assert check.delta_evidence == pytest.approx(change(loc, scale), abs=max(0.05, 3 * check.standard_error))
    assert check.probability == pytest.approx(reduction.probability.item(), abs=0.05)
    assert "agrees" in repr(check)


def test_some_elements_at_a_point(mean_field):
    mask = torch.tensor([True, False])
    mixed = dist.MaskedMixture(mask, dist.Normal(X.new_zeros(2), 1.0), dist.Delta(X.new_zeros(2))).to_event(1)
    check = reduce_model(mean_field, {"first": mixed}, args=(X, Y)).check()
    loc, scale = (values.clone() for values in PRIOR)
    loc[0], scale[0] = 0.0, 1e-9
    assert check.delta_evidence == pytest.approx(change(loc, scale), abs=max(0.05, 3 * check.standard_error))


def test_a_model_that_subsamples_cannot_be_checked():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])

    guide = AutoMultivariateNormal(model)
    guide(torch.zeros(4))
    reduction = reduce_model(guide, {"mean": dist.Normal(0.0, 0.5)}, args=(torch.zeros(4),))
    with pytest.raises(ReductionError, match="subsample"):
        reduction.check()


def test_a_site_by_quadrature_under_a_joint_guide():
    """Its reduced posterior has no mean of its own to ask for. The model's other site integrates out in closed form."""

    def model():
        location = pyro.sample("location", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        pyro.sample("y", dist.Normal(location, 1 + scale), obs=torch.tensor(1.0))

    def evidence(prior):
        log_scale = torch.linspace(-20.0, 20.0, 4001, dtype=torch.float64)
        likelihood = dist.Normal(0.0, (1 + (1 + log_scale.exp()) ** 2).sqrt()).log_prob(torch.tensor(1.0))
        return float((likelihood + prior.log_prob(log_scale.exp()) + log_scale).logsumexp(0))

    guide, reduced = AutoMultivariateNormal(model), dist.HalfNormal(0.5)
    guide()
    reduction = reduce_model(guide, {"scale": reduced}, check=False)
    check = reduction.check()
    assert reduction.method == "quadrature"
    assert check.delta_evidence == pytest.approx(evidence(reduced) - evidence(dist.HalfCauchy(1.0)), abs=0.03)
