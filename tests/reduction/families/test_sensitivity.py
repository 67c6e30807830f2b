# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The decision that hangs on a prior: in numbers, in words, in a table and in a figure."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from matplotlib import pyplot
from pyro.infer.autoguide import AutoNormal

from pyro_bmrs import prior_sensitivity
from pyro_bmrs.plotting import plot_sensitivity

pytestmark = pytest.mark.usefixtures("double")

LOC, SD = 0.6, 0.25
NULL = dist.Delta(torch.tensor(0.0, dtype=torch.double))


def model():
    pyro.sample("slope", dist.Normal(0.0, 1.0))


def vector_model():
    pyro.sample("slopes", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def fitted(program=model, loc=LOC, sd=SD):
    guide = AutoNormal(program, init_scale=sd)
    guide()
    with torch.no_grad():
        for parameter in guide.locs.parameters():
            parameter.fill_(loc)
    return guide


def likelihood():
    """The normal likelihood with which the guide is the posterior: its precision and its location."""
    precision = SD**-2 - 1
    return precision, LOC * SD**-2 / precision


def log_bayes_factor(scale):
    """Of a prior Normal(0, scale) over the point 0, given that likelihood."""
    precision, at = likelihood()
    marginal = torch.distributions.Normal(0.0, (scale**2 + 1 / precision) ** 0.5).log_prob(torch.tensor(at))
    return float(marginal - torch.distributions.Normal(0.0, precision**-0.5).log_prob(torch.tensor(at)))


@pytest.fixture
def found():
    return prior_sensitivity(fitted(), "slope", against=NULL)


def test_the_log_bayes_factor_is_the_exact_one(found):
    expected = [log_bayes_factor(scale) for scale in found.grid.values.tolist()]
    assert found.log_bayes_factor.tolist() == pytest.approx(expected, abs=1e-8)
    assert found.best == found.places[max(range(100), key=expected.__getitem__)]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_where_the_decision_turns_is_found_to_the_last_digits(threshold):
    found = prior_sensitivity(fitted(), "slope", against=NULL, threshold=threshold)
    crossings = [part.high for part in found.stretches[:-1]]
    falling = scipy.optimize.brentq(lambda s: log_bayes_factor(s) - threshold, 1.0, 20.0, xtol=1e-14)
    assert min(abs(place / falling - 1) for place in crossings) < 1e-9
    for place in crossings:
        assert min(abs(log_bayes_factor(place) - level) for level in (threshold, -threshold)) < 1e-8


def test_the_sentence_says_for_which_priors_the_decision_holds(found):
    high = found.stretches[0].high
    assert found.decision == (
        f"the decision for the prior holds from 0.1 to {high:.3g} for the scale of the prior of slope; the data favour "
        f"the point 0 from {high:.3g} to 10 (of the posterior, not checked against the model)"
    )
    assert found.decision in repr(found) and "slope" in found._repr_html_()


def test_the_other_prior_is_called_as_it_was_given_for_one_element_too():
    narrow = dist.Normal(0.0, 0.01)
    for against, called in ((NULL, "the point 0"), (narrow, "Normal(loc: 0, scale: 0.01)")):
        found = prior_sensitivity(fitted(vector_model, loc=0.1), "slopes", against=against, element=1)
        assert f"the data favour {called}" in found.decision or f"the decision for {called}" in found.decision


def test_a_decision_that_nothing_on_the_grid_changes():
    found = prior_sensitivity(fitted(loc=3.0), "slope", against=NULL)
    assert found.decision.startswith("the data favour the prior over the whole grid, from 0.1 to 10 for the scale")


def test_without_another_prior_the_best_is_named_and_what_is_near_it():
    found = prior_sensitivity(fitted(), "slope")
    (near,) = [part for part in found.stretches if part.sign == 1]
    best = max(log_bayes_factor(scale) for scale in found.places)
    for end in (near.low, near.high):
        edge = end in (found.places[0], found.places[-1])
        assert edge or log_bayes_factor(end) == pytest.approx(best - 1.0, abs=1e-7)
    assert f"most probable with {found.best:.3g} for the scale of the prior of slope" in found.decision


def test_families_are_told_by_name():
    priors = {"narrow": dist.Normal(0.0, 1.0), "wide": dist.Normal(0.0, 50.0), "cauchy": dist.Cauchy(0.0, 1.0)}
    found = prior_sensitivity(fitted(), "slope", priors, against=NULL)
    assert found.decision.startswith(
        "the data favour the prior of slope if it is narrow, cauchy; the point 0 if it is wide"
    )
    assert list(found.summary().index) == list(priors) and found.stretches == ()
    assert found.log_bayes_factor[1].item() == pytest.approx(log_bayes_factor(50.0), abs=1e-8)
    assert prior_sensitivity(fitted(), "slope", priors).decision.startswith("of the priors of slope the data favour")


def test_a_table_has_the_moments_of_each_element():
    found = prior_sensitivity(fitted(vector_model), "slopes", "scale", [0.5, 2.0], labels={"slopes": ["age", "dose"]})
    table = found.summary()
    assert list(table.columns[:2]) == ["log_bayes_factor", "delta_evidence"] and table.index.name == "scale"
    weight = 0.5**2 / (0.5**2 + 1 / likelihood()[0])
    assert table.loc[0.5, "mean slopes[dose]"] == pytest.approx(weight * likelihood()[1], abs=1e-8)
    one = prior_sensitivity(
        fitted(vector_model), "slopes", "scale", [0.5], element="dose", labels={"slopes": ["age", "dose"]}
    )
    assert list(one.summary().columns[-2:]) == ["mean", "sd"] and one.labels == ["slopes[dose]"]


def test_it_goes_through_copies_and_pickles(found):
    for twin in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert twin.decision == found.decision
        assert twin.summary().equals(found.summary())


@pytest.mark.parametrize("family", [None, {"normal": dist.Normal(0.0, 1.0), "cauchy": dist.Cauchy(0.0, 1.0)}])
def test_a_figure_on_axes_of_ones_own(family):
    found = prior_sensitivity(fitted(), "slope", family)
    _, axes = pyplot.subplots(1, 2)
    evidence, posterior = plot_sensitivity(found, tuple(axes))
    assert evidence is axes[0] and posterior is axes[1]
    assert evidence.lines[0].get_ydata() == pytest.approx(found.log_bayes_factor.tolist())
    assert posterior.lines[0].get_ydata() == pytest.approx(found.mean.tolist())
    assert evidence.get_xscale() == ("log" if family is None else "linear")
    assert found.plot()[0].get_ylabel() == "log Bayes factor (nats)"
    pyplot.close("all")
