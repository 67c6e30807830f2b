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

from pyro_bmrs import ReductionError, search_models
from tests.exact_guides import put_posterior

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


def test_what_cannot_be_refined_is_told(exact_guide):
    guide, *data = exact_guide(AutoNormal)
    with pytest.raises(ReductionError, match="this is 2 groups, 4 models, factorised"):
        search_models(guide, {"first": ZERO}, args=tuple(data)).refine()
    guide, *data = exact_guide(AutoMultivariateNormal)
    with pytest.raises(ReductionError, match="this is 2 groups, .* sample"):
        search_models(guide, {"first": ZERO}, args=tuple(data), strategy="sample", num_steps=4).refine()


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
    ("guide_type", "options", "why"),
    [
        (AutoNormal, {}, "the posterior is not jointly normal"),
        (AutoMultivariateNormal, {"strategy": "sample", "num_steps": 4}, "the models are not all counted through"),
    ],
)
def test_a_space_that_is_not_refined_says_why(exact_guide, guide_type, options, why):
    guide, *data = exact_guide(guide_type)
    with pyro.settings.context(bmrs_automatic_check=True):
        space = search_models(guide, {"first": ZERO}, args=tuple(data), **options)
    assert space.unrefined == why and copy.deepcopy(space).unrefined == why
    assert f"inclusion probabilities may be off: not refined, as {why}" in repr(space)
    with pytest.raises(ReductionError, match=why):
        search_models(guide, {"first": ZERO}, args=tuple(data), refine=True, **options)


def test_a_model_that_is_not_small_is_not_refined_unasked():
    def many():
        effects = pyro.sample("effects", dist.Normal(torch.zeros(21), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(effects.sum(), 1.0), obs=torch.tensor(1.0))

    guide = put_posterior(AutoMultivariateNormal(many), dist.MultivariateNormal(torch.zeros(21), torch.eye(21)))
    groups = {"head": {"effects": [0, 1]}, "tail": {"effects": slice(2, None)}}
    with pyro.settings.context(bmrs_automatic_check=True):
        space = search_models(guide, {"effects": ZERO}, groups=groups)
    assert space.unrefined == "it has 21 coordinates" and space.strategy == "exhaustive"
    assert search_models(guide, {"effects": ZERO}, groups=groups, refine=True).strategy == "refined"


def test_a_model_of_priors_alone_is_not_asked():
    def priors():
        pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    draws = {"weights": torch.tensor([0.0, 2.0]) + 0.1 * torch.randn(400, 2)}
    with pyro.settings.context(bmrs_automatic_check=True):
        space = search_models(draws, {"weights": ZERO}, model=priors)
    assert space.unrefined == "the model has no data" and space.reduced["weights"].tolist() == [True, False]
