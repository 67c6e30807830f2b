# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import constraints, transforms

from pyro_bmrs.distributions import LogUniform, TruncatedNormal
from pyro_bmrs.structure.parameters import is_leaf, map_parameters, tensor_of

HALF = torch.randn(2, 2)
DISTRIBUTIONS = {
    "normal": dist.Normal(torch.randn(3), 0.5),
    "event": dist.Gamma(torch.ones(2, 3), 2.0).to_event(1),
    "expanded": ExpandedDistribution(dist.Normal(torch.randn(3), 0.5), torch.Size([2, 3])).to_event(1),
    "masked": dist.Normal(torch.randn(3), 0.5).mask(torch.tensor([True, False, True])),
    "mixture": dist.MaskedMixture(
        torch.tensor([True, False]), dist.Normal(0.0, torch.ones(2)), dist.Laplace(0.0, torch.ones(2))
    ),
    "expanded mixture": dist.MaskedMixture(
        torch.tensor([True, False]), dist.Normal(0.0, torch.ones(2)), dist.Laplace(0.0, torch.ones(2))
    ).expand([3, 2]),
    "joint": dist.MultivariateNormal(torch.randn(2), HALF @ HALF.mT + torch.eye(2)),
    "low rank": dist.LowRankMultivariateNormal(torch.randn(2), torch.randn(2, 1), torch.ones(2)),
    "wishart": dist.Wishart(torch.tensor(3.0), HALF @ HALF.mT + torch.eye(2)),
    "probs": dist.Bernoulli(probs=torch.rand(3)),
    "logits": dist.Categorical(logits=torch.randn(3)),
    "log-normal": dist.LogNormal(torch.randn(3), 0.5),
    "transformed": dist.TransformedDistribution(dist.Normal(torch.randn(3), 0.5), [transforms.SigmoidTransform()]),
    "truncated": TruncatedNormal(torch.randn(3), 0.5, 0.0, 1.0),
    "log-uniform": LogUniform(0.1, torch.tensor([1.0, 2.0])),
    "point": dist.Delta(torch.randn(3), event_dim=1),
    "draws": dist.Empirical(torch.randn(5, 2), torch.randn(5)),
}
each = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)


@each
def test_with_the_same_parameters_it_is_the_same_distribution(distribution) -> None:
    same = map_parameters(distribution, lambda path, value, *_: value.clone())
    assert (same.batch_shape, same.event_shape) == (distribution.batch_shape, distribution.event_shape)
    # Torch warns of singular draws of a Wishart distribution where there are none.
    x = distribution.mean if isinstance(distribution, dist.Wishart) else distribution.sample()
    torch.testing.assert_close(same.log_prob(x), distribution.log_prob(x))


@each
def test_each_tensor_has_a_name_of_its_own_and_meets_its_constraint(distribution) -> None:
    seen = {}

    def note(path: str, value: Tensor, constraint, event_dim: int) -> Tensor:
        assert path not in seen
        assert path.startswith("site_")
        assert constraints.is_dependent(constraint) or constraint.check(value).all()
        assert value.dim() >= event_dim
        seen[path] = value
        return value

    map_parameters(distribution, note, "site_")
    assert seen


def test_dimensions_of_an_event_are_told_from_those_of_a_batch() -> None:
    event_dims = {}

    def note(path: str, value: Tensor, constraint, event_dim: int) -> Tensor:
        event_dims[path] = event_dim
        return value

    map_parameters(dist.Normal(torch.zeros(4, 3), 1.0).to_event(1), note)
    map_parameters(dist.MultivariateNormal(torch.zeros(4, 2), torch.eye(2)), note, "joint_")
    assert event_dims == {"loc": 1, "scale": 1, "joint_loc": 1, "joint_scale_tril": 2}


def test_the_spelling_that_was_given_is_the_one_that_is_mapped() -> None:
    paths: list[str] = []
    for spelling in ("probs", "logits"):
        coin = dist.Bernoulli(**{spelling: torch.tensor(0.3)})
        map_parameters(coin, lambda path, value, *_: paths.append(path) or value)
    assert paths == ["probs", "logits"]


def test_what_expanded_elements_share_becomes_one_for_each() -> None:
    shared = ExpandedDistribution(dist.Normal(torch.zeros(()), torch.ones(())), torch.Size([3]))
    moved = map_parameters(shared, lambda path, value, *_: value + torch.arange(3.0) if path == "loc" else value)
    torch.testing.assert_close(moved.mean, torch.arange(3.0))


def test_what_cannot_be_rebuilt_is_refused() -> None:
    class Opaque(dist.Normal):
        arg_constraints = {}

    with pytest.raises(NotImplementedError, match="Opaque cannot be rebuilt"):
        map_parameters(Opaque(0.0, 1.0), lambda path, value, *_: value)


@each
def test_a_tensor_of_it_has_its_dtype(distribution) -> None:
    wide = map_parameters(distribution, lambda path, value, *_: value.double())
    assert tensor_of(distribution).dtype == torch.float32
    assert tensor_of(wide).dtype == torch.float64


def test_a_leaf_is_made_of_its_own_parameters() -> None:
    assert is_leaf(DISTRIBUTIONS["normal"]) and is_leaf(DISTRIBUTIONS["log-normal"])
    assert not is_leaf(DISTRIBUTIONS["event"]) and not is_leaf(DISTRIBUTIONS["transformed"])
