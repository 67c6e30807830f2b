# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Modes of densities whose modes are known, and the sign of those that were not found."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from pyro_bmrs.integration.importance.modes import find_modes


class Mixture:
    """Of normal distributions of scale 0.1 at given points, under a prior that is broad."""

    def __init__(self, points: Tensor, breadth: float = 3.0) -> None:
        self.locs, self.breadth = points.double(), breadth

    def at(self, point: Tensor) -> Tensor:
        parts = torch.distributions.Normal(self.locs, 0.1, validate_args=False).log_prob(point).sum(-1)
        return parts.logsumexp(0)

    def __call__(self, points: Tensor) -> Tensor:
        return torch.func.vmap(self.at)(points)

    def gradient(self, points: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(self.at))(points)

    def derivatives(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.vmap(torch.func.grad(self.at))(points), torch.func.vmap(
            torch.func.jacrev(torch.func.grad(self.at))
        )(points)

    def prior_points(self, num_points: int) -> Tensor:
        return self.breadth * torch.randn(num_points, self.locs.shape[1], dtype=torch.float64)


def begin(loc: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(loc, 0.01 * torch.eye(len(loc)))]


def test_modes_that_are_far_from_where_one_begins_are_found():
    locs = torch.tensor([[-3.0, 0.0], [3.0, 1.0], [0.0, 4.0]])
    modes = find_modes(Mixture(locs), begin(locs[0]))
    found = modes.points[modes.points[:, 0].argsort()]
    torch.testing.assert_close(found, locs[[0, 2, 1]].double(), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(modes.covariances, (0.01 * torch.eye(2).double()).expand(3, 2, 2), atol=1e-4, rtol=0.0)
    assert modes.unseen == 0.0


def test_one_mode_is_one_wherever_climbs_begin():
    modes = find_modes(Mixture(torch.ones(1, 4)), begin(torch.zeros(4)))
    assert modes.points.shape == (1, 4)
    assert modes.unseen == 0.0


def test_more_modes_than_climbs_are_a_sign_of_modes_that_were_not_found():
    locs = torch.cartesian_prod(*[torch.arange(-8.0, 9.0)] * 2)
    assert find_modes(Mixture(locs), begin(torch.zeros(2))).unseen > 0.3


def test_modes_that_are_found_and_too_many_to_keep_are_told():
    locs = torch.cartesian_prod(*[torch.tensor([-2.0, 2.0])] * 6)
    assert find_modes(Mixture(locs), begin(locs[0])).unseen > 0.3


def test_a_density_without_a_top_has_none():
    class Slope(Mixture):
        def at(self, point: Tensor) -> Tensor:
            return point.sum() - point.square().sum().sqrt()

    assert not len(find_modes(Slope(torch.zeros(1, 2)), begin(torch.ones(2))).points)


def test_a_search_goes_on_where_modes_are_many():
    """The components of a mixture in any order, of which there are 24."""
    orders = torch.tensor(list(permutations([-6.0, -2.0, 2.0, 6.0])))
    modes = find_modes(Mixture(orders, breadth=5.0), begin(orders[0]))
    assert len(modes.points) == 24
    assert modes.unseen <= 0.1


def test_second_derivatives_that_are_not_numbers_are_done_without():
    class Added(Mixture):
        def at(self, point: Tensor) -> Tensor:
            near, far = torch.distributions.Normal(self.locs, 0.1, validate_args=False).log_prob(point).sum(-1)
            return torch.logaddexp(near, far)

    locs = torch.tensor([[-3.0, 0.0], [3.0, 1.0]])
    assert not Added(locs).derivatives(locs.double())[1].isfinite().all()
    found = find_modes(Added(locs), begin(locs[0])).points
    torch.testing.assert_close(found[found[:, 0].argsort()], locs.double(), atol=1e-3, rtol=0.0)
