# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import transforms

from pyro_bmrs.structure.coordinates import Block
from pyro_bmrs.structure.joint_normal import complement, marginal, regress, site_marginal
from pyro_bmrs.structure.packed import Packed, RegressedNormal, Slice

pytestmark = pytest.mark.usefixtures("double")
AT = torch.tensor([3, 1])
REST = [0, 2]


def joint() -> dist.MultivariateNormal:
    half = torch.randn(4, 4)
    return dist.MultivariateNormal(torch.randn(4), half @ half.mT + 0.5 * torch.eye(4))


def low_rank() -> dist.LowRankMultivariateNormal:
    return dist.LowRankMultivariateNormal(torch.randn(4), torch.randn(4, 2), torch.rand(4) + 0.1)


def blocks_of(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Covariances of the root, between the others and the root, and of the others."""
    return covariance[AT][:, AT], covariance[REST][:, AT], covariance[REST][:, REST]


def test_the_complement_holds_every_other_position_in_order() -> None:
    assert complement(AT, joint()).tolist() == REST
    assert complement(torch.arange(4), joint()).tolist() == []


@pytest.mark.parametrize("make", [joint, low_rank])
def test_a_marginal_has_the_rows_and_columns_of_the_covariance(make) -> None:
    normal = make()
    part = marginal(normal, AT)
    assert type(part) is type(normal)
    torch.testing.assert_close(part.mean, normal.mean[AT])
    torch.testing.assert_close(part.covariance_matrix, normal.covariance_matrix[AT][:, AT])


@pytest.mark.parametrize("make", [joint, low_rank])
def test_given_a_point_the_others_are_conditional_upon_it(make) -> None:
    normal, point = make(), torch.tensor([0.3, -0.7])
    regressed = regress(normal, AT, dist.Delta(point, event_dim=1))
    assert isinstance(regressed, Packed)
    of_root, across, of_rest = blocks_of(normal.covariance_matrix)
    gain = across @ torch.linalg.inv(of_root)
    conditional = regressed.parts[1][0]
    torch.testing.assert_close(conditional.mean, normal.mean[REST] + gain @ (point - normal.mean[AT]))
    torch.testing.assert_close(conditional.covariance_matrix, of_rest - gain @ across.mT)
    torch.testing.assert_close(regressed.mean[AT], point)


@pytest.mark.parametrize("make", [joint, low_rank])
def test_a_normal_root_is_carried_along_by_the_law_of_total_variance(make) -> None:
    normal = make()
    root = dist.MultivariateNormal(torch.tensor([1.0, 2.0]), torch.tensor([[0.4, 0.1], [0.1, 0.3]]))
    regressed = regress(normal, AT, root)
    of_root, across, of_rest = blocks_of(normal.covariance_matrix)
    gain = across @ torch.linalg.inv(of_root)
    covariance = regressed.covariance_matrix
    torch.testing.assert_close(regressed.mean[REST], normal.mean[REST] + gain @ (root.mean - normal.mean[AT]))
    torch.testing.assert_close(covariance[AT][:, AT], root.covariance_matrix)
    torch.testing.assert_close(covariance[REST][:, AT], gain @ root.covariance_matrix)
    expected = of_rest - gain @ across.mT + gain @ root.covariance_matrix @ gain.mT
    torch.testing.assert_close(covariance[REST][:, REST], expected)


def test_where_the_root_keeps_its_marginal_nothing_changes() -> None:
    normal = joint()
    for root in (marginal(normal, AT), dist.Gamma(torch.ones(2), 1.0).to_event(1)):
        regressed = regress(normal, AT, root)
        x = torch.rand(4)
        # p(rest | root) is the same, whatever the root.
        same = normal.log_prob(x) - marginal(normal, AT).log_prob(x[AT])
        torch.testing.assert_close(regressed.log_prob(x) - root.log_prob(x[AT]), same)


def test_where_the_root_is_everything_nothing_is_left_to_carry_along() -> None:
    root = dist.Gamma(torch.ones(4), 1.0).to_event(1)
    assert regress(joint(), torch.arange(4), root) is root


def test_marginals_of_sites_have_their_shapes_and_moments() -> None:
    normal = joint()
    pair = Block("pair", slice(0, 2), torch.Size([2]), None)
    square = Block("square", slice(0, 4), torch.Size([2, 2]), None)
    scalar = Block("scalar", slice(3, 4), torch.Size([]), None)
    positive = Block("positive", slice(2, 3), torch.Size([1]), transforms.ExpTransform())
    torch.testing.assert_close(site_marginal(normal, pair).covariance_matrix, normal.covariance_matrix[:2, :2])
    whole = site_marginal(normal, square)
    assert whole.event_shape == (2, 2)
    x = torch.randn(4)
    torch.testing.assert_close(whole.log_prob(x.reshape(2, 2)), normal.log_prob(x))
    single = site_marginal(normal, scalar)
    assert single.event_shape == ()
    torch.testing.assert_close((single.mean, single.stddev), (normal.mean[3], normal.stddev[3]))
    log_normal = dist.LogNormal(normal.mean[2:3], normal.stddev[2:3]).to_event(1)
    x = torch.tensor([0.7])
    torch.testing.assert_close(site_marginal(normal, positive).log_prob(x), log_normal.log_prob(x))


def test_a_site_on_a_point_is_a_point_and_one_without_closed_form_a_slice() -> None:
    fixed = regress(joint(), torch.tensor([1]), dist.Delta(torch.tensor([0.5]), event_dim=1))
    point = site_marginal(fixed, Block("b", slice(1, 2), torch.Size([]), transforms.ExpTransform()))
    assert type(point) is dist.Delta
    torch.testing.assert_close(point.v, torch.tensor(0.5).exp())
    carried = regress(joint(), torch.tensor([1]), dist.Gamma(torch.ones(1), 1.0).to_event(1))
    assert isinstance(carried, RegressedNormal)
    assert isinstance(site_marginal(carried, Block("a", slice(0, 1), torch.Size([1]), None)), Slice)
