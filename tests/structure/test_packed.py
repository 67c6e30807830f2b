# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_bmrs.structure.packed import Packed, RegressedNormal, Slice, holds_draws
from pyro_bmrs.structure.parameters import map_parameters

pytestmark = pytest.mark.usefixtures("double")


def packed() -> Packed:
    parts = [
        (dist.Gamma(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 2.0), torch.tensor([4, 0, 3, 2])),
        (dist.Normal(torch.tensor([0.5]), 0.2).to_event(1), slice(1, 2)),
    ]
    return Packed(parts, 5)


def test_parts_are_independent_each_at_its_own_positions() -> None:
    vector = packed()
    x = vector.sample((6,))
    assert x.shape == (6, 5)
    assert vector.support.check(x).all()
    exact = stats.norm.logpdf(x[:, 1], 0.5, 0.2)
    for shape, position in zip((1.0, 2.0, 3.0, 4.0), (4, 0, 3, 2)):
        exact = exact + stats.gamma.logpdf(x[:, position], shape, scale=0.5)
    torch.testing.assert_close(vector.log_prob(x), torch.as_tensor(exact))
    torch.testing.assert_close(vector.mean, torch.tensor([1.0, 0.5, 2.0, 1.5, 0.5]))
    torch.testing.assert_close(vector.variance, torch.tensor([0.5, 0.04, 1.0, 0.75, 0.25]))


def test_a_value_outside_any_parts_support_is_outside() -> None:
    x = packed().mean.repeat(3, 1)
    x[1, 4] = -1.0
    x[2, 1] = -1.0  # the normal's
    assert packed().support.check(x).tolist() == [True, False, True]


def test_draws_of_parts_that_can_be_have_gradients() -> None:
    vector = packed()
    assert vector.has_rsample
    scale = torch.tensor(1.0, requires_grad=True)
    moved = map_parameters(vector, lambda path, value, *_: value * scale)
    moved.rsample().sum().backward()
    assert scale.grad is not None and scale.grad != 0
    assert not Packed([(dist.Empirical(torch.randn(9, 1), torch.zeros(9)), slice(0, 1))], 1).has_rsample


def regressed(root) -> RegressedNormal:
    intercept, slope = torch.tensor([1.0, -1.0]), torch.tensor([[2.0], [0.5]])
    tril = torch.tensor([[0.5, 0.0], [0.2, 0.3]])
    return RegressedNormal(root, intercept, slope, tril, torch.tensor([1]), torch.tensor([2, 0]))


def test_on_a_normal_root_the_regressed_are_a_joint_normal() -> None:
    vector = regressed(dist.Normal(torch.tensor([0.3]), 0.7).to_event(1))
    # x = offset + loading @ (root's noise, the others' noise), at positions 1, 2 and 0.
    loading = torch.tensor([[0.5 * 0.7, 0.2, 0.3], [0.7, 0.0, 0.0], [2.0 * 0.7, 0.5, 0.0]])
    joint = dist.MultivariateNormal(torch.tensor([-0.85, 0.3, 1.6]), loading @ loading.mT)
    x = joint.sample((7,))
    torch.testing.assert_close(vector.log_prob(x), joint.log_prob(x))
    torch.testing.assert_close(vector.mean, joint.mean)
    torch.testing.assert_close(vector.variance, joint.variance)


@pytest.mark.parametrize(
    "root",
    [
        lambda: dist.Gamma(torch.tensor([2.0]), 3.0).to_event(1),
        lambda: dist.Empirical(torch.rand(50, 1), torch.randn(50)),
    ],
    ids=["a density", "weighted draws"],
)
def test_moments_are_those_of_draws(root) -> None:
    vector = regressed(root())
    draws = vector.sample((100_000,))
    torch.testing.assert_close(draws.mean(0), vector.mean, rtol=0, atol=2e-2)
    torch.testing.assert_close(draws.var(0), vector.variance, rtol=3e-2, atol=0)


def test_a_slice_has_draws_and_moments_and_no_density() -> None:
    vector = regressed(dist.Gamma(torch.tensor([2.0]), 3.0).to_event(1))
    part = Slice(vector, torch.tensor([2, 1]))
    assert part.event_shape == (2,)
    assert part.sample((3,)).shape == (3, 2)
    torch.testing.assert_close(part.mean, vector.mean[[2, 1]])
    torch.testing.assert_close(part.variance, vector.variance[[2, 1]])
    with pytest.raises(NotImplementedError, match="no closed form"):
        part.log_prob(part.mean)


def test_weighted_draws_are_found_wherever_they_are() -> None:
    draws, normal = dist.Empirical(torch.zeros(4, 2), torch.zeros(4)), dist.Normal(0.0, 1.0)
    at_once = dist.Empirical(torch.zeros(4), torch.zeros(4))
    root = RegressedNormal(draws, torch.zeros(1), torch.zeros(1, 2), torch.eye(1), torch.arange(2), torch.tensor([2]))
    for found in (draws, dist.TransformedDistribution(at_once, [dist.transforms.ExpTransform()]), root):
        assert holds_draws(found)
    assert holds_draws(at_once.expand((3,)))
    assert holds_draws(Packed([(normal.expand([1]), slice(0, 1)), (root, slice(1, 4))], 4))
    assert not holds_draws(packed())
    assert not holds_draws(dist.MaskedMixture(torch.tensor(True), normal, dist.Delta(torch.tensor(0.0))))


def test_expanded_weighted_draws_are_taken_apart_and_put_together() -> None:
    draws = dist.Empirical(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])).expand((3,))
    vector = map_parameters(Packed([(draws, slice(0, 3))], 3), lambda path, value, *_: 2 * value)
    torch.testing.assert_close(vector.mean, torch.full((3,), 2 * torch.sigmoid(torch.tensor(2.0)).item()))
