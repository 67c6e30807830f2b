# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Training in units of each parameter's own, on random numbers that are the same for whatever is compared."""

from __future__ import annotations

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_bmrs import ReductionError
from pyro_bmrs.refitting.training import Objective, Schedule, Training, mean_and_error
from tests import conjugate

pytestmark = pytest.mark.usefixtures("double")


def objective(guide, *args, model=conjugate.model, **options):
    return Objective(model, guide, Schedule(**options), args, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rates": ()}, "learning_rates must be positive"),
        ({"learning_rates": (0.1, -0.1)}, "learning_rates must be positive"),
        ({"learning_rates": (float("inf"),)}, "learning_rates must be positive"),
        ({"window": 0}, "window must be an integer, at least 1"),
        ({"max_steps": 2.0}, "max_steps must be an integer"),
        ({"num_particles": 1}, "num_particles must be an integer, at least 2"),
        ({"seed": -1}, "seed must be an integer, at least 0"),
        ({"tolerance": -1.0}, "tolerance must be"),
        ({"tolerance": float("nan")}, "tolerance must be"),
        ({"loss": Trace_ELBO}, r"loss must be an ELBO, such as Trace_ELBO\(\), not a"),
    ],
)
def test_settings_that_are_none(options, message):
    with pytest.raises(ReductionError, match=message):
        Schedule(**options)


def test_the_mean_and_its_error():
    values = np.random.default_rng(0).normal(3.0, 2.0, 40)
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(values.mean()) and error == pytest.approx(scipy.stats.sem(values))


@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_the_elbo_of_an_exact_guide_is_the_log_evidence_at_every_draw(exact_guide, loss):
    guide, x, y = exact_guide()
    elbos = objective(guide, x, y, loss=loss).elbos(20)
    np.testing.assert_allclose(elbos, conjugate.log_evidence(x, y, *conjugate.prior(4)).item(), rtol=0, atol=1e-9)


def test_elbos_are_compared_on_the_same_draws(exact_guide):
    guide, x, y = exact_guide(AutoNormal)
    one = objective(guide, x, y, seed=3).elbos(6)
    pyro.set_rng_seed(100)
    np.testing.assert_array_equal(objective(guide, x, y, seed=3).elbos(6), one)
    assert (objective(guide, x, y, seed=5).elbos(6) != one).all()


def test_draws_without_a_density_are_counted():
    def model():
        pyro.sample("z", dist.Uniform(0.0, 1.0, validate_args=False))

    def guide():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pyro.validation_enabled(False), pytest.raises(ReductionError, match=r"NaN or infinite at \d+ of 30 draws"):
        objective(guide, model=model).elbos(30)


def test_parameters_of_the_model_are_not_the_guides(exact_guide):
    def model(x, y):
        pyro.param("offset", torch.tensor(0.0))
        return conjugate.model(x, y)

    x, y = conjugate.data()
    guide = AutoNormal(model)
    guide(x, y)
    found = objective(guide, x, y, model=model).parameters()
    assert {id(value) for value in found} == {id(value) for value in guide.parameters()}


def test_a_location_is_moved_in_units_of_its_standard_deviation():
    scale = 10.0 ** torch.linspace(-4, 2, 600)

    def model():
        with pyro.plate("elements", 600):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        loc = pyro.param("loc", torch.zeros(600))
        unused = pyro.param("unused", torch.zeros(2))
        with pyro.plate("elements", 600):
            pyro.sample("z", dist.Normal(loc, scale))
        return unused

    whole = objective(guide, model=model)
    guide()
    loc, unused = whole.units(whole.parameters())
    # The Fisher information of a normal's location is 1/scale², here from 32 draws of each of 600 elements.
    assert (scale / loc).square().mean().item() == pytest.approx(1, abs=5 * (2 / (32 * 600)) ** 0.5)
    assert (unused == 1).all()


def test_an_exact_guide_stays_and_each_learning_rate_takes_one_window(exact_guide):
    guide, x, y = exact_guide()
    before = [value.detach().clone() for value in guide.parameters()]
    training = Training(objective(guide, x, y, window=3, learning_rates=(0.1, 0.01)))
    steps = []
    while not training.finished:
        steps.append(training.advance())
    assert steps == [3, 3] and training.num_steps == 6 and training.converged
    for value, old in zip(guide.parameters(), before):
        torch.testing.assert_close(value.detach(), old, rtol=0, atol=1e-12)


def test_a_restored_training_goes_on_as_if_never_stopped():
    x, y = conjugate.data()

    def begun():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoMultivariateNormal(conjugate.model)
        guide(x, y)
        return guide, Training(objective(guide, x, y, window=5, seed=2))

    guide, whole = begun()
    whole.advance()
    state = copy.deepcopy(whole.state())
    whole.advance()
    expected = [value.detach().clone() for value in guide.parameters()]
    guide, other = begun()
    other.restore(state)
    pyro.set_rng_seed(77)
    other.advance()
    assert other.num_steps == whole.num_steps == 10
    for value, old in zip(guide.parameters(), expected):
        assert torch.equal(value, old)


def test_no_more_steps_are_taken_than_allowed():
    x, y = conjugate.data()
    guide = AutoNormal(conjugate.model)
    guide(x, y)
    training = Training(objective(guide, x, y, window=4, max_steps=6))
    assert (training.advance(), training.advance(), training.finished) == (4, 2, True)
