# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import transforms

from pyro_bmrs.evidence.quadrature.survey import survey
from pyro_bmrs.evidence.support import Interval

pytestmark = pytest.mark.usefixtures("double")
WHOLE = Interval()


def test_the_centre_is_where_the_narrower_of_posterior_and_reduced_prior_is() -> None:
    q = dist.Normal(torch.tensor([5.0, 0.0]), torch.tensor([0.1, 2.0]))
    p, r = dist.Normal(0.0, 100.0), dist.Normal(1.0, 0.5)
    found = survey(q, p, r, WHOLE)
    torch.testing.assert_close(found.centre, torch.tensor([5.0, 1.0]))
    # From the 20% to the 80% quantile, or nearly.
    assert found.width[0] < 1.0 and found.width[1] < 3.0
    assert found.width.shape == (2,)


def test_marks_are_at_quantiles_and_locations_of_all_three() -> None:
    q, p, r = dist.Normal(3.0, 0.1), dist.Laplace(-2.0, 1.0), dist.Cauchy(7.0, 0.5)
    marks = survey(q, p, r, WHOLE).marks
    for distribution, location in ((q, 3.0), (p, -2.0), (r, 7.0)):
        quantiles = distribution.icdf(torch.tensor([1e-6, 0.01, 0.5, 0.99]))
        for mark in (*quantiles.tolist(), location):
            assert (marks - mark).abs().min() < 1e-6 * max(1.0, abs(mark))


def test_marks_are_in_unconstrained_coordinates() -> None:
    gamma = dist.LogNormal(2.0, 0.1)
    found = survey(gamma, dist.LogNormal(0.0, 1.0), gamma, Interval(0.0))
    assert found.centre.item() == pytest.approx(2.0, abs=1e-9)


def test_each_component_of_a_mixture_is_looked_at() -> None:
    parts = dist.Normal(torch.tensor([-50.0, 50.0]), 0.01)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([1.0, 1e-6])), parts)
    marks = survey(mixture, dist.Normal(0.0, 100.0), dist.Normal(0.0, 10.0), WHOLE).marks
    for location in (-50.0, 50.0):
        assert (marks - location).abs().min() < 1e-6


def test_what_is_transformed_is_seen_through_the_transform() -> None:
    shifted = dist.TransformedDistribution(dist.Laplace(0.0, 1.0), [transforms.AffineTransform(30.0, 2.0)])
    marks = survey(shifted, dist.Normal(0.0, 100.0), dist.Normal(0.0, 10.0), WHOLE).marks
    assert (marks - (30.0 + 2.0 * math.log(0.4))).abs().min() < 1e-9  # its 20% quantile


@pytest.mark.usefixtures("idle_devices")
def test_draws_stand_in_for_quantiles_and_leave_the_generator_as_it_was() -> None:
    without = dist.StudentT(torch.tensor(3.0), 4.0, 0.1)
    state = torch.get_rng_state()
    first = survey(without, dist.Normal(0.0, 10.0), dist.Normal(0.0, 10.0), WHOLE)
    assert torch.equal(state, torch.get_rng_state())
    second = survey(without, dist.Normal(0.0, 10.0), dist.Normal(0.0, 10.0), WHOLE)
    assert torch.equal(first.marks, second.marks)
    assert first.centre.item() == pytest.approx(4.0, abs=0.1)
