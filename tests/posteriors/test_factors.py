# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Factors of a posterior, of which each reduction is known exactly."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to, constraints

from pyro_bmrs import ReductionError, evidence
from pyro_bmrs.posteriors.factors import JointNormalFactor, PackedFactor, SiteFactor
from pyro_bmrs.structure.coordinates import Block
from pyro_bmrs.structure.mixtures import mix
from tests import conjugate

pytestmark = pytest.mark.usefixtures("double")
AUTO = {"method": "auto", "num_samples": 1000}
WHERE = {"first": slice(0, 2), "rest": slice(2, 4)}


def prior_of(loc, scale, name):
    normal = dist.Normal(loc[WHERE[name]], scale[WHERE[name]])
    return normal.to_event(1) if name == "first" else normal


@pytest.fixture
def priors():
    return {name: prior_of(*conjugate.prior(4), name) for name in WHERE}


@pytest.fixture
def joint():
    """The exact posterior of the conjugate regression, as one factor of two sites."""
    posterior = conjugate.exact_posterior(*conjugate.data(), *conjugate.prior(4))
    blocks = tuple(Block(name, where, torch.Size([2]), None) for name, where in WHERE.items())
    return JointNormalFactor("packed", posterior, blocks)


def exact(**reduced):
    """Change in log evidence and posterior where some have another location and scale, of which 0 is a point."""
    x, y = conjugate.data()
    loc, scale = conjugate.prior(4)
    full = conjugate.log_evidence(x, y, loc, scale)
    for name, (at, width) in reduced.items():
        loc[WHERE[name]], scale[WHERE[name]] = at, width
    posterior = conjugate.exact_posterior(x, y, loc, scale.clamp(min=1e-7))
    return conjugate.log_evidence(x, y, loc, scale) - full, posterior


NARROW = {"first": (0.1, 0.3), "rest": (0.0, 0.2)}


@pytest.mark.parametrize("names", [("first",), ("rest",), ("first", "rest")])
def test_a_joint_normal_under_normal_priors(joint, priors, names):
    stated = {name: NARROW[name] for name in names}
    reduced_priors = {
        name: prior_of(torch.full((4,), loc), torch.full((4,), scale), name) for name, (loc, scale) in stated.items()
    }
    reduced = joint.reduce(priors, reduced_priors, AUTO)
    change, posterior = exact(**stated)
    torch.testing.assert_close(reduced.delta_evidence, change, rtol=0, atol=1e-9)
    assert reduced.method == "exact"
    torch.testing.assert_close(reduced.statement.mean, posterior.mean)
    torch.testing.assert_close(reduced.statement.variance, posterior.variance)
    for name, where in WHERE.items():
        torch.testing.assert_close(reduced.posteriors[name].mean, posterior.mean[where])
        torch.testing.assert_close(reduced.posteriors[name].stddev, posterior.stddev[where])


def test_a_point_first_and_a_normal_given_it_by_the_chain_rule(joint, priors):
    reduced_priors = {
        "first": prior_of(torch.full((4,), 0.1), torch.full((4,), 0.3), "first"),
        "rest": dist.Delta(torch.full((2,), 0.05)),
    }
    reduced = joint.reduce(priors, reduced_priors, AUTO)
    change, posterior = exact(first=(0.1, 0.3), rest=(0.05, 0.0))
    torch.testing.assert_close(reduced.delta_evidence, change, rtol=0, atol=1e-9)
    torch.testing.assert_close(reduced.posteriors["first"].mean, posterior.mean[:2], rtol=1e-6, atol=1e-8)
    draw = reduced.statement.sample()
    assert draw.shape == (4,) and (draw[2:] == 0.05).all()


def test_elements_of_one_site_may_take_different_priors(joint, priors):
    narrow = prior_of(torch.full((4,), 0.0), torch.full((4,), 0.2), "rest")
    mixed = mix(priors["rest"], narrow, torch.tensor([False, True]))
    reduced = joint.reduce(priors, {"rest": mixed}, AUTO)
    x, y = conjugate.data()
    loc, scale = conjugate.prior(4)
    full = conjugate.log_evidence(x, y, loc, scale)
    loc[3], scale[3] = 0.0, 0.2
    torch.testing.assert_close(
        reduced.delta_evidence, conjugate.log_evidence(x, y, loc, scale) - full, rtol=0, atol=1e-9
    )
    posterior = conjugate.exact_posterior(x, y, loc, scale)
    torch.testing.assert_close(reduced.posteriors["rest"].mean, posterior.mean[2:])
    torch.testing.assert_close(reduced.posteriors["first"].mean, posterior.mean[:2])


def test_elementwise_reduces_each_alone(joint, priors):
    narrow = prior_of(torch.zeros(4), torch.full((4,), 0.2), "rest")
    alone = joint.elementwise("rest", priors["rest"], narrow, AUTO)
    x, y = conjugate.data()
    full = conjugate.log_evidence(x, y, *conjugate.prior(4))
    for place, change in zip((2, 3), alone):
        loc, scale = conjugate.prior(4)
        loc[place], scale[place] = 0.0, 0.2
        torch.testing.assert_close(change, conjugate.log_evidence(x, y, loc, scale) - full, rtol=0, atol=1e-9)


def test_a_single_coordinate_goes_by_the_univariate_rules(joint, priors):
    one = JointNormalFactor(
        "packed",
        joint.distribution,
        (Block("w", slice(0, 1), torch.Size([]), None), Block("v", slice(1, 4), torch.Size([3]), None)),
    )
    prior, laplace = dist.Normal(0.0, 1.0), dist.Laplace(0.0, 0.2)
    reduced = one.reduce({"w": prior}, {"w": laplace}, AUTO)
    assert reduced.method == "quadrature"
    alone = dist.Normal(joint.distribution.mean[0], joint.distribution.stddev[0])
    torch.testing.assert_close(reduced.delta_evidence, evidence.log_evidence_change(alone, prior, laplace))
    # The others follow by their regression upon it.
    slope = joint.distribution.covariance_matrix[1:, 0] / joint.distribution.variance[0]
    moved = joint.distribution.mean[1:] + slope * (reduced.posteriors["w"].mean - alone.mean)
    torch.testing.assert_close(reduced.posteriors["v"].mean, moved)


def test_an_error_of_a_rule_names_the_site():
    wide = SiteFactor("s", "s", dist.Normal(0.0, 2.0))
    with pytest.raises(ReductionError, match="^site 's': "):
        wide.reduce({"s": dist.Normal(0.0, 1.0)}, {"s": dist.Normal(0.0, 10.0)}, AUTO)


def test_a_site_in_other_coordinates_has_the_evidence_of_its_own():
    exp = biject_to(constraints.positive)
    factor = SiteFactor("s", "s_unconstrained", dist.Normal(torch.tensor([0.1, -0.3]), 0.2), exp)
    prior, narrow = dist.LogNormal(torch.zeros(2), 1.0), dist.LogNormal(torch.zeros(2), 0.3)
    reduced = factor.reduce({"s": prior}, {"s": narrow}, AUTO)
    log_of = [dist.Normal(torch.zeros(2), scale) for scale in (1.0, 0.3)]
    exact = evidence.reduce(factor.distribution, *log_of)
    torch.testing.assert_close(reduced.delta_evidence, exact.delta_evidence.sum())
    torch.testing.assert_close(factor.elementwise("s", prior, narrow, AUTO), exact.delta_evidence)
    # The statement is in the guide's coordinates, the posterior in the site's.
    value = torch.tensor([0.2, 0.4])
    torch.testing.assert_close(reduced.statement.log_prob(value), exact.posterior.log_prob(value))
    torch.testing.assert_close(reduced.posteriors["s"].log_prob(value.exp()), exact.posterior.log_prob(value) - value)


def packed():
    parts = (
        SiteFactor("a", "a", dist.Normal(torch.tensor([0.1, 0.5]), 0.2).to_event(1)),
        SiteFactor("b", "b", dist.Normal(torch.tensor(-0.3), 0.4)),
    )
    return PackedFactor("packed", parts)


def test_sites_packed_together_reduce_as_they_do_apart():
    prior, narrow = dist.Normal(0.0, 1.0), dist.Normal(0.0, 0.3)
    factor = packed()
    priors = {"a": prior.expand([2]).to_event(1), "b": prior}
    reduced = factor.reduce(priors, {"b": narrow}, AUTO)
    torch.testing.assert_close(
        reduced.delta_evidence, evidence.log_evidence_change(factor.parts[1].distribution, prior, narrow)
    )
    # What is not reduced stays in the statement as it was.
    torch.testing.assert_close(reduced.statement.mean[:2], torch.tensor([0.1, 0.5]))
    torch.testing.assert_close(reduced.statement.mean[2], reduced.posteriors["b"].mean)
    both = factor.reduce(priors, {"a": narrow.expand([2]).to_event(1), "b": narrow}, AUTO)
    apart = [
        part.reduce(
            priors,
            {part.name: narrow.expand(part.distribution.event_shape).to_event(len(part.distribution.event_shape))},
            AUTO,
        )
        for part in factor.parts
    ]
    torch.testing.assert_close(both.delta_evidence, sum(part.delta_evidence for part in apart))


def test_another_distribution_in_the_statement():
    vector = dist.Normal(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3])).to_event(1)
    again = packed().with_statement(vector)
    assert again.posterior("a").event_shape == (2,) and again.posterior("b").event_shape == ()
    torch.testing.assert_close(again.posterior("a").mean, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(again.posterior("b").stddev, torch.tensor(0.3))
    assert packed().with_statement(dist.Laplace(torch.zeros(3), 1.0).to_event(1)) is None


def test_a_joint_normal_stays_one_under_a_joint_normal_alone(joint):
    normal = dist.MultivariateNormal(torch.zeros(4), torch.eye(4))
    assert (joint.with_statement(normal).posterior("rest").mean == 0).all()
    assert joint.with_statement(dist.Normal(torch.zeros(4), 1.0).to_event(1)) is None
