# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Grids of priors: what varies by default, what a user may state, and what is none."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.reduction.families.grid import read_grid

pytestmark = pytest.mark.usefixtures("double")

VECTOR = dist.Normal(torch.zeros(3, dtype=torch.double), 2.0).to_event(1)


@pytest.mark.parametrize(
    "prior, name, ends",
    [
        (dist.Normal(0.0, 2.0), "scale", (0.2, 20.0)),
        (dist.HalfCauchy(3.0), "scale", (0.3, 30.0)),
        (dist.Exponential(4.0), "rate", (0.4, 40.0)),
        (dist.Normal(1.0, 2.0).expand([2, 3]).to_event(1), "scale", (0.2, 20.0)),
    ],
)
def test_by_default_the_scale_varies_by_a_factor_of_ten(prior, name, ends):
    grid = read_grid("z", prior, None, None)
    assert (grid.label, len(grid.values)) == (name, 100)
    assert grid.values[[0, -1]].tolist() == pytest.approx(ends)
    ratio = grid.values[1:] / grid.values[:-1]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_a_location_varies_within_three_standard_deviations():
    grid = read_grid("z", dist.Normal(1.0, 2.0), "loc", None)
    assert grid.values[[0, -1]].tolist() == pytest.approx([-5.0, 7.0])
    assert grid.fitted_value == 1.0


@pytest.mark.parametrize(
    "prior, family",
    [
        (VECTOR, "scale"),
        (VECTOR, lambda scale: dist.StudentT(3.0, 0.0, scale)),
        (VECTOR, lambda scale: dist.Normal(torch.zeros(3), scale).to_event(1)),
        (dist.Gamma(2.0, torch.tensor([1.0, 1.0])).mask(torch.tensor([True, False])), "concentration"),
        (dist.LogNormal(0.0, 1.0), "loc"),
    ],
)
def test_all_priors_at_once_are_what_each_is_alone(prior, family):
    grid = read_grid("z", prior, family, [0.5, 1.0, 3.0])
    batch, each = grid.batch(), grid.priors()
    assert batch.batch_shape == (3, *prior.batch_shape) and batch.event_shape == prior.event_shape
    value = prior.sample()
    together = batch.log_prob(value.expand((3,) + value.shape))
    torch.testing.assert_close(together, torch.stack([one.log_prob(value) for one in each]))


@pytest.mark.parametrize(
    "family",
    [
        lambda v: dist.Normal(0.0, float(v)),
        lambda v: dist.MultivariateNormal(torch.zeros(3), v * torch.eye(3)),
        lambda v: dist.Normal(0.0, v.max()),  # takes many, and makes one of them
    ],
)
def test_a_family_that_cannot_take_many_numbers_takes_them_one_by_one(family):
    grid = read_grid("z", VECTOR, family, [0.5, 1.0])
    assert grid.batch() is None
    value = torch.tensor([0.1, 0.2, 0.3])
    expected = torch.stack([family(torch.tensor(v)).log_prob(value).sum() for v in (0.5, 1.0)])
    torch.testing.assert_close(torch.stack([one.log_prob(value) for one in grid.priors()]), expected)


def test_numbers_stand_in_order_and_are_called_as_the_function_calls_them():
    grid = read_grid("z", VECTOR, lambda width: dist.Normal(0.0, width), (3, 1, 2))
    assert grid.label == "width" and grid.places == [1.0, 2.0, 3.0]


def test_priors_by_name():
    grid = read_grid("z", VECTOR, {"normal": dist.Normal(0.0, 1.0), "cauchy": dist.Cauchy(0.0, 1.0)}, None)
    assert grid.places == ["normal", "cauchy"] and grid.label == "prior"
    assert [prior.event_shape for prior in grid.priors()] == [(3,), (3,)]


@pytest.mark.parametrize(
    "prior, family, numbers, message",
    [
        (VECTOR, "rate", None, r"no parameter 'rate' that could vary; it has \['loc', 'scale'\]"),
        (dist.Beta(2.0, 3.0), None, None, "has no scale; say what varies"),
        (dist.Dirichlet(torch.ones(3)), "concentration", None, "no parameter 'concentration' that could vary"),
        (dist.Normal(torch.tensor([0.0, 1.0]), 1.0), "loc", None, "the loc of the prior of site 'z' differs"),
        (dist.Cauchy(0.0, 1.0), "loc", None, "no standard deviation to go by"),
        (VECTOR, "scale", [-1.0, 1.0], "a scale of the grid is outside of its constraint"),
        (VECTOR, "scale", [], "at least one"),
        (VECTOR, "scale", [1.0, float("nan")], "finite numbers"),
        (VECTOR, "scale", [1.0, 1.0], "a number twice"),
        (VECTOR, "scale", "wide", "grid is 'wide'; give numbers"),
        (VECTOR, lambda v: dist.Normal(0.0, v), None, "needs the numbers; give them as grid="),
        (VECTOR, {}, None, "priors by name are a grid"),
        (VECTOR, {"normal": dist.Normal(0.0, 1.0)}, [1.0], "leave grid= out"),
        (VECTOR, {"wide": 3.0}, None, "the prior 'wide' of site 'z' is a float"),
        (VECTOR, {"wide": dist.Normal(torch.zeros(2), 1.0)}, None, "'z' has batch shape .*does not broadcast"),
    ],
)
def test_what_is_no_grid_is_refused(prior, family, numbers, message):
    with pytest.raises(ReductionError, match=message):
        read_grid("z", prior, family, numbers)


def test_a_family_that_gives_no_distribution():
    with pytest.raises(ReductionError, match="the family of priors of site 'z' gives a float"):
        read_grid("z", VECTOR, lambda v: 1.0, [1.0]).priors()
