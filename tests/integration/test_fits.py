# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is integrated of a fit is integrated once, and anew where the fit, its data or its model are others."""

from __future__ import annotations

import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal

from pyro_bmrs import reduce_model
from pyro_bmrs.arviz_adapter import to_arviz
from pyro_bmrs.integration.fits import fit_of, full_evidence, guide_tail, mean_shift
from pyro_bmrs.posteriors.reading import read_posterior

Y = torch.tensor([0.5, 1.5, 0.1])


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def exact(y: torch.Tensor) -> float:
    return float(dist.MultivariateNormal(torch.zeros(len(y)), torch.eye(len(y)) + 1.0).log_prob(y))


def begun(kind=AutoNormal, model=model, y=Y):
    guide = kind(model)
    guide(y)
    return guide


def integrals(guide, *questions, **options) -> int:
    """How many different integrals of the full model some questions of a fit have."""
    checks = [reduce_model(guide, {"mean": prior}, **options).check(num_draws=FEW) for prior in questions]
    return len({id(check.full.integral) for check in checks})


FEW = 300  # draws a round
QUESTIONS = [dist.Delta(torch.tensor(0.0)), dist.Normal(0.0, 0.1), dist.Uniform(-1.0, 1.0)]


def test_several_questions_of_a_fit_share_one_integral():
    assert integrals(begun(), *QUESTIONS) == 1


@pytest.mark.filterwarnings("ignore:The Laplace approximation was made away from the mode")
def test_so_do_questions_of_a_laplace_approximation_which_is_made_anew_for_each():
    assert integrals(begun(AutoLaplaceApproximation), *QUESTIONS[1:]) == 1


def test_so_do_questions_of_draws():
    data = to_arviz({"posterior": {"mean": (0.5 + 0.5 * torch.randn(4, 100)).numpy()}})
    assert integrals(data, *QUESTIONS[1:], model=model, args=(Y,)) == 1


def test_more_steps_of_svi_make_it_another_fit():
    guide = begun()
    before = reduce_model(guide, QUESTIONS[1])
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        svi.step(Y)
    after = reduce_model(guide, QUESTIONS[1])
    first, second = before.check(num_draws=FEW).full.integral, after.check(num_draws=FEW).full.integral
    assert first is not second
    # The reduction that was made before is of the fit as it was.
    assert before.check(num_draws=FEW).full.integral is first
    assert reduce_model(guide, QUESTIONS[0]).check(num_draws=FEW).full.integral is second


def test_other_data_are_another_fit():
    guide = begun()
    for y in (Y, Y + 1.0, Y):
        check = reduce_model(guide, QUESTIONS[1], args=(y,)).check(num_draws=FEW)
        assert check.full.value == pytest.approx(exact(y), abs=0.1)


def test_data_that_the_model_does_not_take_as_arguments_are_looked_at_too():
    data = {"y": Y}

    def closed():
        model(data["y"])

    guide = AutoNormal(closed)
    guide()
    first = reduce_model(guide, QUESTIONS[1]).check(num_draws=FEW)
    data["y"] = Y + 1.0
    second = reduce_model(guide, QUESTIONS[1]).check(num_draws=FEW)
    assert first.full.value == pytest.approx(exact(Y), abs=0.1)
    assert second.full.value == pytest.approx(exact(Y + 1.0), abs=0.1)


def test_a_number_of_draws_that_was_asked_for_is_kept_to():
    fitted = read_posterior(begun())
    few = full_evidence(fitted, num_draws=500)
    assert len(few.integral.points) == 500
    assert full_evidence(fitted, num_draws=FEW).integral is not few.integral
    again = full_evidence(fitted, num_draws=500)
    assert again.integral is few.integral
    assert again.draws(3)["mean"].shape == (3,)


def test_a_fit_is_forgotten_with_its_model():
    def own(y):
        model(y)

    guide = begun(model=own)
    full_evidence(read_posterior(guide), num_draws=FEW)
    gone = weakref.ref(own)
    del guide, own
    pyro.clear_param_store()
    gc.collect()
    assert gone() is None


class Model:
    """One whose method is the program: another object each time that it is asked for."""

    def program(self, y):
        model(y)


def test_a_model_that_is_a_method():
    holder = Model()
    guide = begun(model=holder.program)
    assert fit_of(read_posterior(guide, holder.program)) is fit_of(read_posterior(guide, holder.program))


def test_looking_at_a_fit_draws_no_random_numbers_of_the_users():
    fitted = read_posterior(begun())
    pyro.set_rng_seed(3)
    expected = torch.rand(3)
    pyro.set_rng_seed(3)
    fit_of(fitted)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("scale", "good"), [(0.5, True), (0.05, False)])
def test_the_tail_of_a_guides_own_weights_says_whether_it_is_the_posterior(scale, good):
    guide = begun()
    with torch.no_grad():
        guide.locs.mean.copy_(Y.sum() / 4)
        guide.scales.mean = torch.tensor(scale)
    tail = guide_tail(read_posterior(guide))
    assert (tail <= 0.7) is good


def test_there_is_no_tail_where_there_is_no_density():
    data = to_arviz({"posterior": {"mean": (0.5 + 0.5 * torch.randn(4, 100)).numpy()}})
    assert guide_tail(read_posterior(data, model, (Y,))) is None
    assert guide_tail(read_posterior(begun(AutoDelta), args=(Y,))) is None


@pytest.mark.parametrize("moved", [0.0, 2.0])
def test_where_a_posterior_lies_beside_the_models_is_told_in_its_deviations(moved):
    # The exact posterior is normal, of mean 2.1 / 4 and variance 1 / 4.
    draws = to_arviz({"posterior": {"mean": (0.525 + 0.5 * (torch.randn(2, 300) + moved)).numpy()}})
    fitted = read_posterior(draws, model, (Y,))
    shift = mean_shift(fitted, full_evidence(fitted))
    assert shift.site == "mean" and shift.deviations == pytest.approx(moved, abs=0.2)
    assert shift.is_far == (moved > 1)
    assert "the mean of site 'mean' is" in shift.words("the set of draws")
