# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Averages over models, for joint normal posteriors and for those that switch group by group."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import ReductionWarning
from pyro_bmrs.search.averaging.model_average import NormalPosterior, SwitchingPosterior
from pyro_bmrs.search.groups import read_groups
from pyro_bmrs.search.probabilities.model_prior import independent
from pyro_bmrs.search.probabilities.models import IndependentModels
from pyro_bmrs.search.strategies.normal_search import search_normal
from tests import conjugate
from tests.search.regression import every_model
from tests.search.spaces import normal_space, reduced_to

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def searched(exact_guide):
    """The space of sixteen models, their posterior, and the exact moments averaged over them."""
    guide, x, y = exact_guide()
    space = normal_space(guide, "normal")
    models, _ = search_normal(space, independent(torch.zeros(4)), "exhaustive", 16, False)
    states = [reduced_to("normal", reduced) for reduced in torch.tensor(every_model(4))]
    probability = torch.stack([conjugate.log_evidence(x, y, *state) for state in states]).softmax(0)
    exact = [conjugate.exact_posterior(x, y, *state) for state in states]
    mean = sum(p * normal.mean for p, normal in zip(probability, exact))
    second = sum(p * (normal.variance + normal.mean**2) for p, normal in zip(probability, exact))
    return space, models, mean, second - mean**2


def test_the_average_over_all_normal_models_is_exact(searched):
    space, models, mean, variance = searched
    sites = NormalPosterior(space, torch.float64).average(models, None).sites()
    assert sites.keys() == {"first", "rest"}
    torch.testing.assert_close(torch.cat([sites["first"].mean, sites["rest"].mean]), mean, rtol=1e-8, atol=1e-10)
    found = torch.cat([sites["first"].variance, sites["rest"].variance])
    torch.testing.assert_close(found, variance, rtol=1e-7, atol=1e-10)


def test_joint_draws_have_the_moments_of_the_average(searched):
    space, models, mean, variance = searched
    draws = NormalPosterior(space, torch.float64).average(models, None).draw(20_000)
    joint = torch.cat([draws["first"], draws["rest"]], -1)
    assert joint.shape == (20_000, 4)
    assert ((joint.mean(0) - mean).abs() < 5 * (variance / 20_000).sqrt()).all()


def test_an_average_over_one_model_is_that_model_and_warns_of_the_rest(searched):
    space, models, *_ = searched
    best = models.top(1)
    with pytest.warns(ReductionWarning, match=rf"1 models averaged hold {float(best.probability):.1%} .*of 16"):
        sites = NormalPosterior(space, torch.float32).average(models, 1).sites()
    exact = conjugate.exact_posterior(*conjugate.data(), *reduced_to("normal", best.reduced[0]))
    assert sites["first"].mean.dtype == torch.float32
    torch.testing.assert_close(sites["first"].mean.double(), exact.mean[:2], rtol=1e-5, atol=1e-6)


def test_elements_of_a_group_switch_together_in_every_draw():
    groups = read_groups({"pair": {"w": [0, 1]}, "single": {"w": 2}}, {"w": (3,)})
    full, point = dist.Normal(torch.full((3,), 5.0), 0.1), dist.Delta(torch.zeros(3))
    models = IndependentModels(torch.tensor([0.4, -1.0]), independent(torch.zeros(2)))
    average = SwitchingPosterior({"w": (full, point)}, groups).average(models, None)
    at_point = average.draw(20_000)["w"] == 0
    assert torch.equal(at_point[:, 0], at_point[:, 1])
    probability = torch.sigmoid(torch.tensor([0.4, -1.0]))
    error = (probability * (1 - probability) / 20_000).sqrt()
    assert ((at_point[:, 1:].double().mean(0) - probability).abs() < 5 * error).all()
    # Without regard to each other, as the groups are independent.
    both = (at_point[:, 1] & at_point[:, 2]).double().mean()
    assert abs(both - probability.prod()) < 5 * (probability.prod() / 20_000).sqrt()
    torch.testing.assert_close(average.sites()["w"].mean, 5 * (1 - probability[[0, 0, 1]]))
