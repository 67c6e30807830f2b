# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models in a table by their evidence, which has to be of the same data."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from pyro_bmrs import ReductionError, compare
from pyro_bmrs.integration.comparisons.comparison import mean_softmax

Y = torch.tensor([0.5, 1.5, 1.1])


def model(y, scale):
    mean = pyro.sample("mean", dist.Normal(0.0, scale))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def other_names(y, scale):
    centre = pyro.sample("centre", dist.Normal(0.0, scale))
    with pyro.plate("rows", len(y)):
        pyro.sample("observed", dist.Normal(centre, 1.0), obs=y)


def fitted(program, y, scale):
    guide = AutoNormal(program)
    guide(y, torch.tensor(scale))
    return guide


def exact(scale: float) -> float:
    return float(dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + scale**2).log_prob(Y))


def test_differences_and_probabilities_are_those_of_the_exact_evidence():
    table = compare(
        {"narrow": fitted(model, Y, 0.1), "wide": fitted(model, Y, 1.0), "named": fitted(other_names, Y, 3.0)}
    )
    evidence = torch.tensor([exact(scale) for scale in (0.1, 1.0, 3.0)])
    assert list(table.index) == ["wide", "narrow", "named"] or table["rank"].is_monotonic_increasing
    for name, value, probability in zip(["narrow", "wide", "named"], evidence, evidence.softmax(0)):
        assert table.loc[name, "log_evidence"] == pytest.approx(float(value), abs=0.03)
        assert table.loc[name, "difference"] == pytest.approx(float(value - evidence.max()), abs=0.05)
        assert table.loc[name, "probability"] == pytest.approx(float(probability), abs=0.02)


def test_prior_odds_move_probabilities_and_nothing_else():
    guides = {"narrow": fitted(model, Y, 0.1), "wide": fitted(model, Y, 1.0)}
    table = compare(guides, prior_log_odds={"narrow": 5.0})
    odds = float(torch.tensor(table.loc["narrow", "probability"] / table.loc["wide", "probability"]).log())
    assert odds == pytest.approx(5.0 + exact(0.1) - exact(1.0), abs=0.06)
    assert table.loc["wide", "rank"] == 0


def test_other_data_are_refused():
    with pytest.raises(ReductionError, match="'one' and 'other' have different data"):
        compare({"one": fitted(model, Y, 1.0), "other": fitted(model, Y + 0.1, 1.0)})


def closure(y):
    """The same data, but that they are in the program and the mean is called something else."""

    def program(scale):
        centre = pyro.sample("centre", dist.Normal(0.0, scale))
        for place, value in enumerate(y):
            pyro.sample(f"y_{place}", dist.Normal(centre, 1.0), obs=value)

    return program


def masked(y, scale, mask):
    mean = pyro.sample("mean", dist.Normal(0.0, scale))
    pyro.deterministic("twice", 2 * mean)
    with pyro.plate("data", len(y)), poutine.mask(mask=mask):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def unobserved(scale):
    mean = pyro.sample("mean", dist.Normal(0.0, scale))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(mean, 1.0))


def weighted(y, scale, weight):
    with poutine.scale(scale=weight):
        model(y, scale)


def in_a_factor(y, scale):
    mean = pyro.sample("mean", dist.Normal(0.0, scale))
    pyro.factor("likelihood", dist.Normal(mean, 1.0).log_prob(y).sum())


def begun(program, *args, **kwargs):
    guide = AutoNormal(program)
    guide(*args, **kwargs)
    return guide


ONE = torch.tensor(1.0)
# Ways to state the data of Y, and of others that differ in one number, in what counts, in number, or in order.
SAME = {
    "by keyword": lambda: begun(model, scale=ONE, y=Y),
    "in double precision": lambda: begun(model, torch.tensor([0.5, 1.5, 1.1], dtype=torch.float64), ONE),
    "in the program": lambda: begun(closure(Y), ONE),
    "in the program, in another order": lambda: begun(closure(Y.flip(0)), ONE),
    "conditioned on": lambda: begun(poutine.condition(unobserved, {"y": Y}), ONE),
    "beside what does not count": lambda: begun(masked, torch.cat([Y, torch.tensor([7.0])]), ONE, torch.arange(4) < 3),
}
OTHER = {
    "another number": lambda: begun(model, scale=ONE, y=Y + torch.tensor([0.0, 0.0, 1e-3])),
    "another number in the program": lambda: begun(closure(Y + 1e-3), ONE),
    "one less": lambda: begun(model, Y[:2], ONE),
    "one that does not count": lambda: begun(masked, Y, ONE, torch.arange(3) < 2),
    "a weight": lambda: begun(weighted, Y, ONE, 0.5),
    "another order": lambda: begun(model, Y.flip(0), ONE),
    "a factor": lambda: begun(in_a_factor, Y, ONE),
}


@pytest.mark.parametrize("spelling", SAME)
def test_the_same_data_however_they_are_stated(spelling):
    table = compare({"one": fitted(model, Y, 1.0), "other": SAME[spelling]()})
    assert table.loc["other", "log_evidence"] == pytest.approx(exact(1.0), abs=0.03)


@pytest.mark.parametrize("spelling", OTHER)
def test_other_data_are_refused_however_they_are_stated(spelling):
    with pytest.raises(ReductionError, match="'one' and 'other' have different data"):
        compare({"one": fitted(model, Y, 1.0), "other": OTHER[spelling]()})


def test_models_with_factors_are_of_the_same_arguments():
    one, same = begun(in_a_factor, Y, ONE), begun(in_a_factor, Y.clone(), ONE)
    assert compare({"one": one, "same": same})["difference"].abs().max() < 0.03
    with pytest.raises(ReductionError, match="different arguments"):
        compare({"one": one, "other": begun(in_a_factor, Y + 1, ONE)})


def test_weights_are_probabilities_that_know_of_errors():
    scores, errors = torch.tensor([0.0, -1.0]).double(), torch.tensor([0.0, 2.0]).double()
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    truth = float((weights / (1 + np.exp(-1 + 2 * nodes))).sum() / weights.sum())
    assert float(mean_softmax(scores, errors)[0]) == pytest.approx(truth, abs=0.01)
    table = compare({"narrow": fitted(model, Y, 0.1), "wide": fitted(model, Y, 1.0)})
    assert table["weight"].sum() == pytest.approx(1.0)
    assert (table["weight"] - table["probability"]).abs().max() < 1e-3


def test_nothing_and_unknown_names_are_refused():
    with pytest.raises(ReductionError, match="nothing to compare"):
        compare({})
    with pytest.raises(ReductionError, match="names \\['b'\\]"):
        compare({"a": fitted(model, Y, 1.0)}, prior_log_odds={"b": 1.0})
