# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import constraints, transform_to, transforms

from pyro_bmrs import ReductionError
from pyro_bmrs.structure.coordinates import (
    concatenate,
    drop_identity,
    elements,
    flatten,
    is_normal_vector,
    marginals,
    pull_back,
    push_forward,
)
from pyro_bmrs.structure.packed import Packed

EXP = transforms.ExpTransform()
MASK = torch.tensor([True, False, True])


@pytest.fixture(autouse=True)
def double_precision() -> None:
    torch.set_default_dtype(torch.float64)


def test_pulled_back_densities_change_variables() -> None:
    u = torch.linspace(-2, 2, 9)
    pulled = pull_back(dist.Gamma(2.0, 3.0), EXP)
    exact = stats.loggamma.logpdf(u, 2.0, loc=-np.log(3.0))  # the logarithm of a gamma variable
    np.testing.assert_allclose(pulled.log_prob(u), exact, rtol=1e-12)


def test_pulling_back_undoes_pushing_forward() -> None:
    normal = dist.Normal(torch.randn(3), 0.5)
    assert pull_back(push_forward(normal, EXP), EXP) is not None
    base = pull_back(dist.TransformedDistribution(normal, [EXP]), EXP)
    assert base is normal
    assert pull_back(normal, None) is normal
    assert push_forward(normal, None) is normal


def test_normals_pushed_through_the_exponential_are_log_normals() -> None:
    pushed = push_forward(dist.Normal(0.3, 0.7), EXP)
    assert type(pushed) is dist.LogNormal
    x = torch.tensor([0.1, 1.0, 5.0])
    np.testing.assert_allclose(pushed.log_prob(x), stats.lognorm.logpdf(x, 0.7, scale=np.exp(0.3)), rtol=1e-12)


@pytest.mark.parametrize(
    "point",
    [
        dist.Delta(torch.tensor([1.0, 2.0])).to_event(1),
        dist.Delta(torch.tensor([1.0, 2.0]), event_dim=1),
        dist.Delta(torch.tensor(1.0)).expand([2]).to_event(1),
    ],
)
def test_points_go_back_and_forth_unstretched(point) -> None:
    pulled = pull_back(point, EXP)
    assert type(pulled) is dist.Delta
    value = point.mean
    torch.testing.assert_close(pulled.v, value.log())
    assert pulled.log_prob(value.log()) == 0
    pushed = push_forward(pulled, EXP)
    assert type(pushed) is dist.Delta
    torch.testing.assert_close(pushed.v, value)


def test_a_point_outside_the_support_is_refused() -> None:
    with pytest.raises(ReductionError, match="outside the prior's support"):
        pull_back(dist.Delta(torch.tensor(-1.0)), EXP)


def test_pulling_back_goes_beneath_masks_and_mixtures() -> None:
    u = torch.randn(3)
    gamma, other = dist.Gamma(torch.ones(3), 2.0), dist.Gamma(torch.full((3,), 4.0), 2.0)
    masked = pull_back(gamma.mask(MASK), EXP).log_prob(u)
    torch.testing.assert_close(masked, torch.where(MASK, gamma.log_prob(u.exp()) + u, 0.0))
    mixed = pull_back(dist.MaskedMixture(MASK, gamma, other), EXP).log_prob(u)
    torch.testing.assert_close(mixed, torch.where(MASK, other.log_prob(u.exp()), gamma.log_prob(u.exp())) + u)


@pytest.mark.parametrize(
    "distribution",
    [
        dist.Normal(torch.zeros(2, 3), 1.0).to_event(2),
        dist.Normal(0.0, 1.0).expand([3]).to_event(1),
        dist.LogNormal(torch.zeros(3), 1.0).to_event(1),
        dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [EXP]),
        dist.Normal(torch.zeros(3), 1.0).to_event(1).mask(torch.tensor(False)),
        dist.Normal(torch.zeros(3), 1.0).mask(MASK).to_event(1),
    ],
)
def test_elements_have_the_same_density(distribution) -> None:
    x = distribution.sample()
    alone = elements(distribution)
    assert alone is not None
    assert alone.batch_shape == distribution.batch_shape + distribution.event_shape
    assert not alone.event_shape
    torch.testing.assert_close(alone.log_prob(x).sum(), distribution.log_prob(x).sum())


@pytest.mark.parametrize(
    "distribution",
    [
        dist.Dirichlet(torch.ones(3)),
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [transform_to(constraints.simplex)]),
        dist.Delta(torch.zeros(2), torch.tensor(1.0), event_dim=1),
    ],
)
def test_dependent_elements_cannot_be_parted(distribution) -> None:
    assert elements(distribution) is None


def test_marginals_of_a_joint_normal_are_normals() -> None:
    half = torch.randn(3, 3)
    covariance = half @ half.mT + torch.eye(3)
    low_rank = dist.LowRankMultivariateNormal(torch.ones(3), half[:, :1], torch.ones(3))
    for joint, variance in (
        (dist.MultivariateNormal(torch.ones(3), covariance), covariance.diagonal()),
        (low_rank, half[:, 0] ** 2 + 1),
    ):
        parts = marginals(joint)
        torch.testing.assert_close(parts.mean, torch.ones(3))
        torch.testing.assert_close(parts.variance, variance)


@pytest.mark.parametrize(
    ("distribution", "shape"),
    [
        (dist.Normal(torch.randn(2, 3), 0.5).to_event(1), (2, 3)),
        (dist.Normal(0.3, 0.5), (2, 3)),
        (dist.MultivariateNormal(torch.randn(2, 3), torch.eye(3) + 0.2), (2, 3)),
        (dist.Gamma(torch.ones(2, 3), 2.0).to_event(2), (2, 3)),
        (dist.Dirichlet(torch.ones(2, 3)), (2, 3)),
    ],
)
def test_flat_distributions_have_the_density_of_the_whole(distribution, shape) -> None:
    shape = torch.Size(shape)
    x = distribution.expand(shape[: len(shape) - len(distribution.event_shape)]).sample()
    flat = flatten(distribution, shape)
    assert flat.event_shape == (6,)
    torch.testing.assert_close(flat.log_prob(x.reshape(-1)), distribution.log_prob(x).sum())


def test_what_is_flattened_keeps_its_kind() -> None:
    shape = torch.Size([2, 3])
    assert is_normal_vector(flatten(dist.Normal(0.0, 1.0), shape))
    assert type(flatten(dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), shape)) is dist.MultivariateNormal
    for point in (
        dist.Delta(torch.tensor(0.0)),
        dist.Delta(torch.zeros(2, 3)),
        dist.Delta(torch.zeros(3), event_dim=1),
    ):
        flat = flatten(point, shape)
        assert type(flat) is dist.Delta
        assert flat.event_shape == (6,)
    assert type(flatten(dist.Gamma(1.0, 1.0), shape)) is Packed


def test_a_points_own_log_density_is_not_lost_on_the_way() -> None:
    flat = flatten(dist.Delta(torch.zeros(2), torch.tensor([1.0, 2.0])), torch.Size([2]))
    assert flat.log_prob(torch.zeros(2)) == 3.0
    assert concatenate([flat, flat]).log_prob(torch.zeros(4)) == 6.0


def test_a_masked_point_is_not_flattened_in_silence() -> None:
    with pytest.raises(ReductionError, match="mask on single elements"):
        flatten(dist.Delta(torch.zeros(3)).mask(MASK), torch.Size([3]))


@pytest.mark.parametrize("kind", [dist.Normal, dist.MultivariateNormal, dist.Delta, Packed])
def test_independent_vectors_end_to_end_keep_their_kind(kind) -> None:
    normal = dist.Normal(torch.randn(2), 0.5).to_event(1)
    second = {
        dist.Normal: normal,
        dist.MultivariateNormal: dist.MultivariateNormal(torch.randn(2), torch.eye(2) + 0.3),
        dist.Delta: dist.Delta(torch.zeros(2), event_dim=1),
        Packed: dist.Gamma(torch.ones(2), 1.0).to_event(1),
    }[kind]
    first = second if kind is dist.Delta else normal
    joint = concatenate([first, second])
    assert type(getattr(joint, "base_dist", joint)) is kind
    x = torch.cat([first.sample(), second.sample()])
    torch.testing.assert_close(joint.log_prob(x), first.log_prob(x[:2]) + second.log_prob(x[2:]))


def test_transforms_that_do_nothing_are_dropped() -> None:
    nothing = transforms.AffineTransform(0.0, 1.0)
    assert drop_identity(nothing) is None
    assert drop_identity(transforms.ComposeTransform([nothing, EXP])) == EXP


def test_a_point_keeps_its_batch_where_a_transform_changes_the_number_of_dimensions() -> None:
    """A Cholesky factor of correlations is a matrix in its own coordinates, and a vector in unconstrained ones."""
    point = pull_back(dist.Delta(torch.eye(3), event_dim=2), transforms.CorrCholeskyTransform())
    assert point.event_shape == (3,)
    assert point.batch_shape == ()
    torch.testing.assert_close(point.mean, torch.zeros(3))
