# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The front door to sensitivity: what it takes, what it refuses, and the model beside the posterior."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal

from pyro_bmrs import ReductionError, ReductionWarning, prior_sensitivity
from pyro_bmrs.arviz_adapter import to_arviz

pytestmark = pytest.mark.usefixtures("double")

Y = torch.tensor([0.9, -0.4, 1.3, 0.2, 0.8, 1.1], dtype=torch.double)
SCALES = [0.05, 0.5, 1.5]


def model(y):
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b[0] + 0.9 * b[1], 1.0), obs=y)


def exact(scale):
    """Of scale of the prior, less that of 1: b enters by one sum, whose prior variance is 1.81 times the square."""

    def log_evidence(variance):
        return torch.distributions.MultivariateNormal(torch.zeros(6), torch.eye(6) + 1.81 * variance).log_prob(Y)

    return float(log_evidence(scale**2) - log_evidence(1.0))


def mean_field():
    """The best of its kind, which is far too narrow: the two elements are nearly one."""
    guide = AutoNormal(model)
    guide(Y)
    precision = torch.eye(2) + 6 * torch.tensor([[1.0, 0.9], [0.9, 0.81]])
    loc = torch.linalg.solve(precision, Y.sum() * torch.tensor([1.0, 0.9]))
    with torch.no_grad():
        guide.locs.b.copy_(loc)
        guide.scales.b = precision.diagonal().rsqrt()
    return guide


def test_a_guide_that_is_off_is_told_by_the_model():
    with pyro.settings.context(bmrs_automatic_check=True):
        with pytest.warns(ReductionWarning, match="The model says otherwise.*Go by checked_log_bayes_factor"):
            found = prior_sensitivity(mean_field(), "b", "scale", SCALES, args=(Y,))
    trusted = found.checked.trusted
    assert trusted[1] and trusted[2] and found.checked.pareto_k[0] > found.checked.pareto_k[1]
    for place, scale in enumerate(SCALES):
        if trusted[place]:
            assert found.checked_log_bayes_factor[place].item() == pytest.approx(exact(scale), abs=0.05)
        else:
            assert found.checked_log_bayes_factor[place].isnan()
    assert "the model is up to" in found.decision
    assert "checked_log_bayes_factor" in found.summary()


def test_with_another_prior_the_model_is_asked_about_both():
    null = dist.Normal(0.0, 0.5)
    with pytest.warns(ReductionWarning):
        found = prior_sensitivity(mean_field(), "b", "scale", [1.0, 2.0], against=null, args=(Y,), check=True)
    expected = [exact(scale) - exact(0.5) for scale in (1.0, 2.0)]
    assert found.checked_log_bayes_factor.tolist() == pytest.approx(expected, abs=0.06)


def test_no_check_is_said():
    found = prior_sensitivity(mean_field(), "b", "scale", SCALES, args=(Y,), check=False)
    assert found.checked is None and found.checked_log_bayes_factor is None
    assert found.decision.endswith("(of the posterior, not checked against the model)")


@pytest.fixture
def draws():
    values = 0.5 + 0.3 * np.random.default_rng(0).standard_normal((2, 500))
    return to_arviz({"posterior": {"b": values}})


def test_draws_of_another_language_by_their_prior(draws):
    with pyro.settings.context(bmrs_automatic_check=True):
        found = prior_sensitivity(draws, "b", grid=[0.5, 1.0, 2.0], prior={"b": dist.Normal(0.0, 1.0)})
    assert "no more than priors is known of it" in found.decision
    for place, scale in enumerate([0.5, 1.0, 2.0]):
        # Of the normal that was drawn from, in closed form.
        q, p, r = 1 / 0.09, 1.0, scale**-2
        s = q + r - p
        exponent = 0.5 * ((q * 0.5) ** 2 / s - q * 0.25)
        expected = 0.5 * math.log(q * r / (p * s)) + exponent
        assert found.delta_evidence[place].item() == pytest.approx(
            expected, abs=4 * found.standard_error[place].item() + 1e-9
        )


def test_draws_of_other_data_are_told():
    draws = {"b": torch.tensor([3.0, -3.0]) + 0.2 * torch.randn(500, 2)}
    with pytest.warns(ReductionWarning) as caught:
        found = prior_sensitivity(draws, "b", grid=[0.9, 1.1], model=model, args=(Y,), check=True)
    assert "The set of draws is not the posterior of this model and these data" in str(caught[0].message)
    assert found.shift.site == "b" and found.shift.deviations > 2


def test_a_point_to_compare_with_needs_the_density(draws):
    point = dist.Delta(torch.tensor(0.0))
    with pytest.raises(ReductionError, match="give log_density="):
        prior_sensitivity(draws, "b", against=point, prior={"b": dist.Normal(0.0, 1.0)})


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"site": "c"}, "the guide has no latent site 'c'"),
        ({"element": 2}, "site 'b' has 2 elements, so none at 2"),
        ({"element": "dose"}, "no elements of site 'b' are called 'dose'"),
        ({"check": "sometimes"}, "check must be"),
        ({"threshold": -1.0}, "threshold is a finite number of at least 0"),
        ({"against": dist.Normal(torch.zeros(3), 1.0)}, "'b' has batch shape"),
    ],
)
def test_what_cannot_be_asked(wrong, message):
    asked = {"site": "b", "args": (Y,), "check": False} | wrong
    with pytest.raises(ReductionError, match=message):
        prior_sensitivity(mean_field(), **asked)


def test_a_guide_without_a_density():
    guide = AutoDelta(model)
    guide(Y)
    with pytest.raises(ReductionError, match="'b' is a point"):
        prior_sensitivity(guide, "b", args=(Y,))


def test_random_numbers_of_others_are_left_alone():
    guide = mean_field()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    prior_sensitivity(guide, "b", {"t": dist.StudentT(3.0, 0.0, 1.0)}, args=(Y,), check=True)
    torch.testing.assert_close(torch.rand(3), expected)
