# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models in a table by their evidence, which has to be of the same data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_bmrs import ReductionError, compare

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


def test_nothing_and_unknown_names_are_refused():
    with pytest.raises(ReductionError, match="nothing to compare"):
        compare({})
    with pytest.raises(ReductionError, match="names \\['b'\\]"):
        compare({"a": fitted(model, Y, 1.0)}, prior_log_odds={"b": 1.0})
