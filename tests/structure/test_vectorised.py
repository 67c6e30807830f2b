# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""One input, many inputs: at once or one by one, each with random draws of its own."""

from __future__ import annotations

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_bmrs.distributions import TruncatedLogNormal, TruncatedNormal
from pyro_bmrs.structure import vectorised
from pyro_bmrs.structure.vectorised import Vectorised, own_parameters, own_random_numbers, set_seed

DRAWS = torch.zeros(2000)


@pytest.mark.parametrize(
    ("distribution", "truth"),
    [
        (dist.Normal(1.0, 2.0), stats.norm(1, 2)),
        (dist.LogNormal(0.0, 0.5), stats.lognorm(0.5)),
        (dist.Exponential(2.0), stats.expon(0, 0.5)),
        (dist.Gamma(3.0, 2.0), stats.gamma(3, 0, 0.5)),
        (dist.Cauchy(0.0, 1.0), stats.cauchy()),
        (dist.StudentT(4.0), stats.t(4)),
        (dist.Laplace(0.0, 1.0), stats.laplace()),
        (dist.HalfNormal(1.0), stats.halfnorm()),
        (dist.Uniform(-1.0, 1.0), stats.uniform(-1, 2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_input_has_draws_of_its_own_from_the_distribution(distribution, truth):
    pyro.set_rng_seed(0)
    map_all = Vectorised("drawing")
    drawn = map_all(lambda _: pyro.sample("z", distribution), DRAWS)
    assert map_all.at_once
    assert stats.kstest(drawn.double().numpy(), truth.cdf).pvalue > 1e-3


def test_chunks_have_draws_of_their_own(monkeypatch):
    monkeypatch.setattr(vectorised, "MOST_ELEMENTS", 300)
    sizes = []

    def run(given):
        sizes.append(given)
        return {"z": dist.Normal(torch.zeros(3), 1.0).sample() + given}

    map_all = Vectorised("drawing")
    drawn = map_all(run, torch.arange(1000.0))["z"] - torch.arange(1000.0)[:, None]
    assert map_all.at_once and len(sizes) == 11  # one to learn the size, and ten chunks of a hundred
    assert drawn.shape == (1000, 3) and len(drawn.flatten().round(decimals=6).unique()) > 2900


@pytest.mark.parametrize(
    "noise",
    [
        lambda: torch.randn(()) + (1.0 if torch.randn(()).item() > 0 else -1.0),
        lambda: torch.tensor(np.random.normal()),
        lambda: dist.Dirichlet(torch.ones(3)).rsample()[0],
    ],
    ids=["reads a value", "draws from NumPy", "no rule"],
)
def test_what_cannot_be_taken_at_once_is_taken_one_by_one(noise):
    map_all = Vectorised("drawing")
    drawn = map_all(lambda _: (noise(), [noise()]), torch.zeros(100))
    assert not map_all.at_once
    assert len(torch.cat([drawn[0], drawn[1][0]]).unique()) == 200


def filled(x):
    table = torch.zeros(3)
    table[1] = x
    return table


def summed(x):
    total = torch.tensor(0.0)
    for power in range(3):
        total += x**power
    return total


def copied(x):
    table = ONES.clone()
    table[..., 0] *= x
    return table


def guarded(x):
    if not (x.abs() < 100).all() or bool(x.isnan()):
        raise ValueError("out of range")
    return x + x.shape[0] if x.dim() else x * float((x > -50).double())


ONES = torch.ones(2)


@pytest.mark.parametrize("run", [filled, summed, copied, guarded, lambda x: x.data * 2])
def test_what_is_written_in_place_and_what_all_inputs_say_alike_is_taken_at_once(run):
    map_all, inputs = Vectorised("computing"), torch.linspace(-2.0, 2.0, 5)
    found = map_all(run, inputs)
    assert map_all.at_once and torch.equal(found, torch.stack([run(x) for x in inputs]))
    assert torch.equal(ONES, torch.ones(2))


def test_where_inputs_say_different_things_each_goes_its_own_way():
    map_all, inputs = Vectorised("computing"), torch.linspace(-2.0, 2.0, 5)
    found = map_all(lambda x: x.exp() if x > 0 else x - 1, inputs)
    assert not map_all.at_once and torch.equal(found, torch.where(inputs > 0, inputs.exp(), inputs - 1))


@pytest.mark.parametrize(
    "log_prob",
    [
        lambda z: dist.OrderedLogistic(z, torch.stack([z - 1, z + 1])).log_prob(torch.tensor(1)),
        lambda z: TruncatedNormal(z, z.exp(), torch.tensor(-1.0), torch.tensor(1.0)).log_prob(torch.tensor(0.2)),
        lambda z: TruncatedLogNormal(z, z.exp(), torch.tensor(0.1), torch.tensor(1.0)).mean,
    ],
)
def test_densities_are_taken_at_once_and_so_are_their_slopes(log_prob):
    map_all, inputs = Vectorised("computing"), torch.linspace(-2.0, 2.0, 5)
    for function in (log_prob, torch.func.grad(log_prob)):
        found = map_all(function, inputs)
        torch.testing.assert_close(found, torch.stack([function(z) for z in inputs]))
    assert map_all.at_once


def test_an_error_of_the_function_is_seen():
    def run(given):
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        Vectorised("drawing")(run, DRAWS)


def numbers():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_random_numbers_inside_leave_those_outside_alone():
    pyro.set_rng_seed(5)
    expected = numbers(), numbers()
    pyro.set_rng_seed(5)
    first = numbers()
    with own_random_numbers():
        set_seed(2**40 + 1)
        inside = numbers()
        set_seed(1)
        assert numbers() == inside
    assert (first, numbers()) == expected
    # After an error, too.
    pyro.set_rng_seed(5)
    with pytest.raises(KeyError), own_random_numbers():
        set_seed(0)
        raise KeyError
    assert numbers() == expected[0]


def test_parameters_that_come_inside_go_again_and_those_before_stay_the_same_tensors():
    before = pyro.param("before", torch.tensor(1.0))
    with own_parameters():
        pyro.param("inside", torch.tensor(2.0))
        assert pyro.param("before") is not None
    assert set(pyro.get_param_store()) == {"before"}
    assert pyro.param("before") is before
    with pytest.raises(KeyError), own_parameters():
        pyro.param("inside", torch.tensor(2.0))
        raise KeyError
    assert set(pyro.get_param_store()) == {"before"}


def test_a_matrix_without_a_cholesky_factor_stops_no_others():
    vectorised = Vectorised("factoring")
    matrices = torch.stack([2 * torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])])
    factors = vectorised(torch.linalg.cholesky, matrices)
    assert vectorised.at_once
    torch.testing.assert_close(factors[0], 2**0.5 * torch.eye(2))
    assert factors[1].isnan().any()
