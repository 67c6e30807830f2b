# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs.structure.coordinates import Block
from pyro_bmrs.structure.mixtures import is_mixed, mix, part

REDUCED = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    ("prior", "reduced_prior"),
    [
        (dist.Normal(torch.zeros(3), 1.0), dist.Normal(torch.ones(3), 0.1)),
        (dist.Normal(0.0, 1.0).expand([3]), dist.Laplace(0.0, torch.ones(3))),
        (dist.LogNormal(torch.zeros(3), 1.0), dist.Gamma(1.0, torch.ones(3))),
    ],
)
@pytest.mark.parametrize("dims", [0, 1])
def test_each_element_has_the_density_of_its_side(prior, reduced_prior, dims: int) -> None:
    mixed = mix(prior.to_event(dims), reduced_prior.to_event(dims), REDUCED)
    x = torch.rand(3)
    terms = torch.where(REDUCED, reduced_prior.log_prob(x), prior.log_prob(x))
    assert len(mixed.event_shape) == dims
    torch.testing.assert_close(mixed.log_prob(x), terms.sum() if dims else terms)


def test_two_of_one_type_are_one_of_that_type() -> None:
    mixed = mix(dist.Normal(torch.zeros(3), 1.0), dist.Normal(torch.ones(3), 0.1), REDUCED)
    assert type(mixed) is dist.Normal and not is_mixed(mixed)
    torch.testing.assert_close(mixed.scale, torch.tensor([0.1, 1.0, 0.1]))
    assert is_mixed(mix(dist.Normal(torch.zeros(3), 1.0), dist.Delta(torch.zeros(3)), REDUCED))


def test_where_all_or_none_is_reduced_nothing_is_mixed() -> None:
    prior, reduced_prior = dist.Normal(torch.zeros(3), 1.0), dist.Laplace(torch.zeros(3), 1.0)
    assert mix(prior, reduced_prior, torch.ones(3).bool()) is reduced_prior
    assert mix(prior, reduced_prior, torch.zeros(3).bool()) is prior


def test_whole_events_are_mixed_where_elements_cannot_be_parted() -> None:
    prior, reduced_prior = dist.Dirichlet(torch.ones(3, 2)), dist.Dirichlet(torch.full((3, 2), 4.0))
    mixed = mix(prior, reduced_prior, REDUCED)
    x = prior.sample()
    expected = torch.where(REDUCED, reduced_prior.log_prob(x), prior.log_prob(x))
    torch.testing.assert_close(mixed.log_prob(x), expected)


def test_blocks_are_cut_where_the_side_changes() -> None:
    prior = dist.Normal(torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).to_event(2)
    zero = dist.Delta(torch.zeros(2, 2)).to_event(2)
    reduced_prior = mix(prior, zero, torch.tensor([[False, True], [True, False]]))
    other = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    blocks = [Block("a", slice(0, 1), torch.Size([1]), None), Block("w", slice(1, 5), torch.Size([2, 2]), None)]
    pieces, p, r = part(blocks, {"a": other, "w": prior}, {"a": other, "w": reduced_prior})
    assert [(piece.name, piece.positions) for piece in pieces] == [
        ("a", slice(0, 1)),
        ("w[0:1]", slice(1, 2)),
        ("w[1:3]", slice(2, 4)),
        ("w[3:4]", slice(4, 5)),
    ]
    torch.testing.assert_close(p["w[1:3]"].stddev, torch.tensor([2.0, 3.0]))
    # Where a piece keeps its prior there is nothing to reduce.
    assert set(p) == {"a", "w[0:1]", "w[1:3]", "w[3:4]"} and set(r) == {"a", "w[1:3]"}
