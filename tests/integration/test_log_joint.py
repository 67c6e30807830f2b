# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The joint density, in coordinates on which it can be integrated."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_bmrs import ReductionError
from pyro_bmrs.integration.log_joint import LogJoint

Y = torch.tensor([0.9, 1.3, 0.4], dtype=torch.float64)


def integral_on_a_grid(log_joint: LogJoint, low: float = -30.0, high: float = 30.0, count: int = 200_001) -> float:
    """The logarithm of the integral of a density over one coordinate, by the trapezoid rule."""
    grid = torch.linspace(low, high, count, dtype=torch.float64)
    step = (high - low) / (count - 1)
    return float(torch.logsumexp(log_joint(grid.unsqueeze(-1)), 0)) + math.log(step)


def normal_evidence(prior_scale: float) -> float:
    covariance = torch.eye(3, dtype=torch.float64) + prior_scale**2
    return float(dist.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(Y))


def normal(y: Tensor, scale: float = 1.0) -> None:
    mean = pyro.sample("mean", dist.Normal(Y.new_tensor(0.0), scale))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize(
    "prior",
    [
        dist.Uniform(Y.new_tensor(-1.0), Y.new_tensor(2.0)),
        dist.Gamma(Y.new_tensor(2.0), Y.new_tensor(3.0)),
        dist.Beta(Y.new_tensor(2.0), Y.new_tensor(3.0)),
        dist.LogNormal(Y.new_tensor(0.0), Y.new_tensor(1.0)),
        dist.Normal(Y.new_tensor(0.0), Y.new_tensor(1.0)),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_a_prior_integrates_to_one_whatever_its_support(prior):
    assert integral_on_a_grid(LogJoint(lambda: pyro.sample("x", prior))) == pytest.approx(0.0, abs=1e-6)


def test_the_evidence_of_a_conjugate_model():
    assert integral_on_a_grid(LogJoint(normal, (Y,), {"scale": 2.0})) == pytest.approx(normal_evidence(2.0), abs=1e-9)


def test_a_scale_counts_and_is_no_part_of_the_jacobian():
    def tempered(y):
        rate = pyro.sample("rate", dist.Gamma(Y.new_tensor(2.0), 1.0))
        with poutine.scale(scale=0.5), pyro.plate("data", len(y)):
            pyro.sample("y", dist.Exponential(rate), obs=y)

    # The likelihood to the power 1/2: a gamma integral with half the counts.
    exact = torch.lgamma(torch.tensor(3.5, dtype=torch.float64)) - 3.5 * (1 + Y.sum() / 2).log()
    assert integral_on_a_grid(LogJoint(tempered, (Y,))) == pytest.approx(float(exact), abs=1e-6)


def test_a_point_is_no_coordinate():
    log_joint = LogJoint(lambda y: normal(y, 1.0), (Y,))
    fixed = LogJoint(poutine.condition(normal, data={"mean": Y.new_tensor(0.5)}), (Y,))
    assert (log_joint.dim, fixed.dim) == (1, 0)

    def at_a_point(y):
        mean = pyro.sample("mean", dist.Delta(Y.new_tensor(0.5)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    expected = dist.Normal(0.5, 1.0).log_prob(Y).sum()
    assert float(LogJoint(at_a_point, (Y,))(Y.new_zeros(1, 0))) == pytest.approx(float(expected), rel=1e-12)


def test_elements_at_a_point_are_no_coordinates_beside_others_that_are():
    x = torch.randn(20, 3, dtype=torch.float64)
    mask = torch.tensor([False, True, False])
    prior = dist.MaskedMixture(mask, dist.Normal(Y.new_zeros(3), 1.0), dist.Delta(Y.new_zeros(3))).to_event(1)

    def model(y):
        slopes = pyro.sample("slopes", prior)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ slopes, 0.5), obs=y)

    y = x @ Y + 0.5 * torch.randn(20, dtype=torch.float64)
    log_joint = LogJoint(model, (y,))
    assert log_joint.dim == 2
    slopes = torch.tensor([[0.3, 0.0, -0.2]], dtype=torch.float64)
    expected = (
        dist.Normal(x @ slopes[0], 0.5).log_prob(y).sum() + dist.Normal(0.0, 1.0).log_prob(slopes[0, [0, 2]]).sum()
    )
    assert float(log_joint(slopes[:, [0, 2]])) == pytest.approx(float(expected), rel=1e-12)
    assert torch.equal(log_joint.values(slopes[:, [0, 2]])["slopes"], slopes)
    assert torch.equal(log_joint.coordinates({"slopes": slopes}), slopes[:, [0, 2]])


def test_what_a_mask_takes_out_is_no_coordinate():
    mask = torch.tensor([True, False, True])

    def model(y):
        with pyro.plate("data", 3), poutine.mask(mask=mask):
            local = pyro.sample("local", dist.Normal(Y.new_zeros(3), 1.0))
            pyro.sample("y", dist.Normal(local, 1.0), obs=y)

    log_joint = LogJoint(model, (Y,))
    assert log_joint.dim == 2
    points = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
    expected = dist.Normal(0.0, 1.0).log_prob(points[0]) + dist.Normal(points[0], 1.0).log_prob(Y[mask])
    assert float(log_joint(points)) == pytest.approx(float(expected.sum()), rel=1e-12)


def test_a_support_that_depends_on_another_site():
    def model():
        width = pyro.sample("width", dist.Uniform(Y.new_tensor(0.0), 2.0))
        pyro.sample("x", dist.Uniform(Y.new_tensor(0.0), width))

    grid = torch.linspace(-20.0, 20.0, 401, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    assert float(torch.logsumexp(LogJoint(model)(points), 0) + 2 * torch.tensor(0.1).log()) == pytest.approx(
        0.0, abs=1e-4
    )


def test_values_and_coordinates_are_each_others_inverse():
    def model():
        pyro.sample("simplex", dist.Dirichlet(torch.ones(3, dtype=torch.float64)))
        pyro.sample("factor", dist.LKJCholesky(3, Y.new_tensor(1.0)))
        with pyro.plate("plate", 2):
            pyro.sample("scale", dist.HalfCauchy(Y.new_tensor(1.0)))

    log_joint = LogJoint(model)
    points = torch.randn(5, log_joint.dim, dtype=torch.float64)
    assert log_joint.dim == 2 + 3 + 2
    torch.testing.assert_close(log_joint.coordinates(log_joint.values(points)), points, rtol=1e-8, atol=1e-8)


def test_a_model_that_branches_is_evaluated_point_by_point_to_the_same_numbers():
    def branching(y):
        mean = pyro.sample("mean", dist.Normal(Y.new_tensor(0.0), 1.0))
        if mean.item() > 100.0:
            mean = mean * 2
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    points = torch.linspace(-2.0, 2.0, 7, dtype=torch.float64).unsqueeze(-1)
    torch.testing.assert_close(LogJoint(branching, (Y,))(points), LogJoint(normal, (Y,))(points))


def test_discrete_sites_are_summed_out():
    def mixture(y):
        weights = pyro.sample("weights", dist.Beta(Y.new_tensor(2.0), 2.0))
        with pyro.plate("data", len(y)):
            side = pyro.sample("side", dist.Bernoulli(weights))
            pyro.sample("y", dist.Normal(2 * side, 1.0), obs=y)

    log_joint = LogJoint(mixture, (Y,))
    assert log_joint.dim == 1
    weight = torch.tensor([0.0], dtype=torch.float64).sigmoid()
    inside = weight * dist.Normal(2.0, 1.0).log_prob(Y).exp() + (1 - weight) * dist.Normal(0.0, 1.0).log_prob(Y).exp()
    expected = inside.log().sum() + dist.Beta(2.0, 2.0).log_prob(weight) + (weight * (1 - weight)).log()
    assert float(log_joint(torch.zeros(1, 1, dtype=torch.float64))) == pytest.approx(float(expected), rel=1e-6)


def test_a_model_without_a_density_at_hand_is_refused_by_name():
    def subsampling(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])

    with pytest.raises(ReductionError, match="'y'.*subsample"):
        LogJoint(subsampling, (Y,))
    with pytest.raises(ReductionError, match="'count' has infinitely many"):
        LogJoint(lambda: pyro.sample("count", dist.Poisson(3.0)))


def test_a_prior_that_cannot_be_drawn_from_stands_at_its_example():
    def model():
        loc = pyro.sample("loc", dist.ImproperUniform(dist.constraints.real, (), ()))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(loc, scale), obs=torch.tensor(1.0))

    example = {"loc": torch.tensor(0.7), "scale": torch.tensor(2.0)}
    points = LogJoint(model, example=example).prior_points(50)
    assert torch.equal(points[:, 0], torch.full((50,), 0.7).to(points))
    assert len(points[:, 1].unique()) == 50
