# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Evidence by the model's density: exact where the posterior is, and better than what is read off where it is not."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_bmrs import ReductionError, ReductionWarning, search_models
from pyro_bmrs.search.refinement import refine
from tests.exact_guides import put_posterior
from tests.search.regression import exact_guide as exact_guide_of
from tests.search.regression import model, regression

pytestmark = pytest.mark.usefixtures("double")

ZERO = dist.Delta(torch.tensor(0.0, dtype=torch.double))


@pytest.mark.parametrize("reduced", [dist.Normal(0.1, 0.3), dist.Delta(torch.tensor(0.1).double())])
def test_of_an_exact_posterior_nothing_changes(exact_guide, reduced):
    guide, *data = exact_guide(AutoMultivariateNormal)
    groups = {"one": {"first": 0}, "two": {"first": 1, "rest": [0]}, "three": {"rest": 1}}
    space = search_models(guide, {"first": reduced, "rest": reduced}, args=tuple(data), groups=groups)
    refined = space.refine()
    assert refined.strategy == "refined" and "by the model's density" in repr(refined)
    for found, expected in zip(refined.top(8), space.top(8)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    for name in ("first", "rest"):
        torch.testing.assert_close(refined.delta_evidence[name], space.delta_evidence[name], rtol=1e-6, atol=1e-7)


COUNTS = torch.tensor([3.0, 0.0, 1.0], dtype=torch.double)


def rates():
    rate = pyro.sample("rate", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("count", dist.Poisson(rate).to_event(1), obs=COUNTS)


def test_a_point_in_other_coordinates_is_nearly_the_ratio_of_evidences():
    """log Poisson(y; 1) less the log of the integral of Poisson(y; rate) over the log-normal, by quadrature."""
    u = torch.linspace(-9, 9, 4001, dtype=torch.double).unsqueeze(-1)
    log_joint = dist.Poisson(u.exp()).log_prob(COUNTS) + dist.Normal(0.0, 1.0).log_prob(u)
    exact = dist.Poisson(1.0).log_prob(COUNTS) - (log_joint.logsumexp(0) + math.log(18 / 4000))
    # A normal guide at the mode of each log rate, with its curvature there.
    mode = torch.zeros(3, dtype=torch.double)
    for _ in range(50):
        mode = mode + (COUNTS - mode.exp() - mode) / (mode.exp() + 1)
    normal = dist.MultivariateNormal(mode, (1 / (mode.exp() + 1)).diag())
    guide = put_posterior(AutoMultivariateNormal(rates), normal)
    space = search_models(guide, {"rate": dist.Delta(torch.ones(3, dtype=torch.double))})
    off, left = ((s.delta_evidence["rate"] - exact).abs() for s in (space, space.refine()))
    assert left.max() < 0.1 and left.sum() < 0.5 * off.sum()


def test_of_any_guide_inclusion_probabilities_are_those_of_the_model():
    """The best mean field is far narrower than the posterior, whose elements are correlated."""
    problem = regression(4, seed=2, num_rows=30)
    data, priors, posterior = (problem.x, problem.y), {"weights": ZERO}, problem.guide.get_posterior()
    exact = search_models(problem.guide, priors).inclusion_probability["weights"]
    pyro.clear_param_store()
    mean_field = put_posterior(AutoNormal(model), posterior, *data)
    read_off = search_models(mean_field, priors, args=data)
    assert float((read_off.inclusion_probability["weights"] - exact).abs().max()) > 0.6
    assert read_off.strategy == "factorised" and set(read_off.summary()["source"]) == {"posterior"}
    beside = dist.MultivariateNormal(posterior.loc + 0.7 * posterior.stddev, scale_tril=0.5 * posterior.scale_tril)
    pyro.clear_param_store()
    moved = put_posterior(AutoMultivariateNormal(model), beside, *data)
    for space in (read_off.refine(), automatic(mean_field, priors, data), automatic(moved, priors, data)):
        assert space.strategy == "refined" and space.agreement.is_close
        torch.testing.assert_close(space.inclusion_probability["weights"], exact, atol=0.02, rtol=0)
        assert set(space.summary()["source"]) == {"model"} == {space.to_arviz(5)["models"].attrs["source"]}


def automatic(guide, priors, data, **options):
    with pyro.settings.context(bmrs_automatic_check=True):
        return search_models(guide, priors, args=tuple(data), **options)


@pytest.mark.parametrize("how", ["drawn", "many"])
def test_models_that_are_drawn_are_weighted_by_the_density(how, monkeypatch):
    """A guide that is not the posterior: what its walks come to is not what the model has."""
    problem = regression(6, seed=3, num_rows=30)
    data, priors, posterior = (problem.x, problem.y), {"weights": ZERO}, problem.guide.get_posterior()
    exact = search_models(problem.guide, priors)
    pyro.clear_param_store()
    beside = dist.MultivariateNormal(posterior.loc, scale_tril=1.2 * posterior.scale_tril)
    guide = put_posterior(AutoMultivariateNormal(model), beside, *data)
    monkeypatch.setattr(refine, "_MOST_MODELS", 8)
    monkeypatch.setattr(refine, "_NUM_STEPS", 100)
    read_off = search_models(guide, priors, strategy="sample" if how == "drawn" else "auto", num_steps=200)
    space = read_off.refine()
    assert space.strategy == "refined" and space.source == "model" and space.num_models < 64
    found, before, true = (s.inclusion_probability["weights"] for s in (space, read_off, exact))
    error = space.inclusion_error["weights"]
    assert float(error.max()) < 0.02 and ((found - true).abs() < 4 * error + 0.02).all()
    assert float((before - true).abs().max()) > 0.05
    top, best = space.top(2), exact.top(2)
    assert torch.equal(top.reduced, best.reduced)
    torch.testing.assert_close(top.probability, best.probability, rtol=0.1, atol=0)
    assert "inclusion_error" in space.summary()


def test_what_cannot_be_refined_is_told(exact_guide):
    guide, *data = exact_guide(AutoMultivariateNormal)
    space = search_models(guide, {"first": ZERO, "rest": ZERO}, args=tuple(data), strategy="greedy")
    # All of the four groups are open.
    assert space.refine().strategy == "refined"
    guide, *data = exact_guide(AutoNormal)
    narrow = search_models(guide, {"first": dist.Laplace(0.0, 0.1)}, args=tuple(data))
    with pytest.raises(
        ReductionError, match="no joint normal of all sites, and of the normal that.*independent normals"
    ):
        narrow.refine()


def test_what_is_cheap_is_refined_by_itself(exact_guide):
    guide, *data = exact_guide(AutoMultivariateNormal)
    priors = {"first": ZERO, "rest": ZERO}
    by_hand = search_models(guide, priors, args=tuple(data)).refine()
    assert search_models(guide, priors, args=tuple(data)).strategy == "exhaustive"  # switched off by the setting
    assert search_models(guide, priors, args=tuple(data), refine=True).strategy == "refined"
    with pyro.settings.context(bmrs_automatic_check=True):
        space = search_models(guide, priors, args=tuple(data), check=2)
        left = search_models(guide, priors, args=tuple(data), refine=False)
    assert (space.strategy, space.unrefined) == ("refined", None) and copy.deepcopy(space).strategy == "refined"
    assert left.strategy == "exhaustive" and "not refined" not in repr(left)
    for found, expected in zip(space.top(16), by_hand.top(16)):
        torch.testing.assert_close(found, expected)
    # What a check holds against the model is what the table says.
    assert [check.read_off for check in space.checks] == space.table(2)["delta_evidence"].tolist()
    with pytest.raises(ReductionError, match="refine must be 'auto', True or False, not 'always'"):
        search_models(guide, priors, args=tuple(data), refine="always")


@pytest.mark.parametrize(
    ("reduced", "why"),
    [
        (
            dist.Laplace(0.0, 0.1),
            "the posterior is no joint normal of all sites, and of the normal that the model's integral has, priors",
        ),
        (ZERO, "the posterior is no joint normal of all sites, and it has 21 coordinates"),
    ],
)
def test_a_space_that_is_not_refined_says_why(reduced, why):
    size = 21 if "21" in why else 2
    guide = AutoNormal(lambda: many(size))
    guide()
    with pyro.settings.context(bmrs_automatic_check=True):
        space = search_models(guide, {"effects": reduced})
    assert space.unrefined.startswith(why) and copy.deepcopy(space).unrefined == space.unrefined
    assert f"inclusion probabilities may be off: not refined, as {why}" in repr(space)
    assert set(space.summary()["source"]) == {space.to_arviz(5)["models"].attrs["source"]} == {"posterior"}
    assert "read off the posterior" in space.plot().axes[1].get_xlabel()


def many(size):
    effects = pyro.sample("effects", dist.Normal(torch.zeros(size), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(effects.sum(), 1.0), obs=torch.tensor(1.0))


def test_a_guide_that_is_not_the_posterior_of_a_model_too_large_to_integrate_unasked_is_in_doubt():
    narrow = dist.MultivariateNormal(torch.zeros(21), 0.5 * torch.eye(21))
    guide = put_posterior(AutoMultivariateNormal(lambda: many(21)), narrow)
    groups = {"head": {"effects": [0, 1]}, "tail": {"effects": slice(2, None)}}
    with pytest.warns(
        ReductionWarning, match="Inclusion probabilities are not to be trusted: integrals of some models"
    ):
        space = automatic(guide, {"effects": ZERO}, (), groups=groups)
    assert space.source == "model, in doubt" and "in doubt: integrals of some models move" in repr(space)
    assert "in doubt" in space.plot().axes[1].get_xlabel()
    asked = search_models(guide, {"effects": ZERO}, groups=groups, refine=True)
    assert asked.source == "model"
    # The sum of the effects has the prior N(0, 21), less the variance of those that are fixed, and the noise 1.
    log_evidence = dist.Normal(0.0, torch.tensor([22.0, 20.0, 3.0, 1.0]).sqrt()).log_prob(torch.tensor(1.0))
    exact = log_evidence.softmax(0)
    head, tail = float(exact[0] + exact[2]), float(exact[0] + exact[1])
    assert asked.inclusion_probability["effects"][[0, 20]].tolist() == pytest.approx([head, tail], abs=0.01)


def test_draws_of_other_data_are_told():
    problem = regression(4, seed=2, num_rows=30)
    drawn = problem.guide.get_posterior().sample((1000,))
    draws, others = {"bias": drawn[:, 0], "weights": drawn[:, 1:]}, (problem.x, problem.y + 2 * problem.x[:, 0])
    with (
        pyro.settings.context(bmrs_automatic_check=True),
        pytest.warns(ReductionWarning, match="those of the model given, and the normal of the draws' moments is not"),
    ):
        space = search_models(draws, {"weights": ZERO}, model=model, args=others)
    exact = search_models(exact_guide_of(*others), {"weights": ZERO})
    found, true = (s.inclusion_probability["weights"] for s in (space, exact))
    torch.testing.assert_close(found, true, atol=0.02, rtol=0)


def test_a_model_of_priors_alone_is_not_asked():
    def priors():
        pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    draws = {"weights": torch.tensor([0.0, 2.0]) + 0.1 * torch.randn(400, 2)}
    with pyro.settings.context(bmrs_automatic_check=True):
        space = search_models(draws, {"weights": ZERO}, model=priors)
    assert space.unrefined == "the model has no data" and space.reduced["weights"].tolist() == [True, False]
