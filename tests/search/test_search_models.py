# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The front door of searches: every kind of posterior, and what is said of those that cannot be searched."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from pyro_bmrs import ReductionError, reduce_model, search_models
from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from tests.exact_guides import put_posterior
from tests.search.regression import PRIORS, ZERO, fitted, model, regression


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(
    "guide_type, strategy",
    [
        (AutoNormal, "factorised"),
        (AutoDiagonalNormal, "factorised"),
        (AutoMultivariateNormal, "exhaustive"),
        (AutoLowRankMultivariateNormal, "exhaustive"),
        (AutoLaplaceApproximation, "exhaustive"),
    ],
)
@pytest.mark.filterwarnings("ignore:The Laplace approximation was made away")  # none of these guides is fitted
def test_models_of_every_guide_are_as_the_front_door_reduces_them(guide_type, strategy, prior):
    problem = regression(5)
    guide = fitted(guide_type(model), problem)
    space = search_models(guide, {"weights": prior, "bias": dist.Normal(0.3, 0.01)}, args=(problem.x, problem.y))
    assert space.strategy == strategy
    assert space.num_models == 2**6
    top = space.top(64)
    for number in torch.randint(64, (8,)).tolist():
        reduction = space.reduction(top.reduced[number])
        assert reduction.delta_evidence.item() == pytest.approx(top.delta_evidence[number].item(), abs=1e-8)
    alone = reduce_model(guide, {"weights": prior}, args=(problem.x, problem.y)).elementwise["weights"].detach()
    torch.testing.assert_close(space.delta_evidence["weights"], alone, atol=1e-8, rtol=0)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(
    "groups", ["element", "site", {"pair": {"weights": [1, 3]}, "rest": {"weights": 2, "bias": ...}}]
)
def test_an_independent_posterior_is_as_its_joint_normal_searched_exhaustively(prior, groups):
    problem = regression(4)
    guide = fitted(AutoNormal(model), problem)
    loc, scale = (torch.cat([part.bias.reshape(1), part.weights]).detach() for part in (guide.locs, guide.scales))
    stated = {"weights": prior, "bias": dist.Normal(0.3, 0.01)}
    independent = search_models(guide, stated, groups=groups, prior_log_odds=0.3)
    posterior = dist.MultivariateNormal(loc, scale_tril=scale.diag())
    pyro.clear_param_store()
    joint = put_posterior(AutoMultivariateNormal(model), posterior, problem.x, problem.y)
    enumerated = search_models(joint, stated, groups=groups, prior_log_odds=0.3)
    assert (independent.strategy, enumerated.strategy) == ("factorised", "exhaustive")
    count = independent.num_models
    torch.testing.assert_close(independent.top(count).probability, enumerated.top(count).probability)
    for name in stated:
        torch.testing.assert_close(independent.inclusion_probability[name], enumerated.inclusion_probability[name])
        assert torch.equal(independent.reduced[name], enumerated.reduced[name])
        ours, theirs = independent.average()[name], enumerated.average()[name]
        torch.testing.assert_close(ours.mean, theirs.mean)
        torch.testing.assert_close(ours.stddev, theirs.stddev)
        value = ours.sample((10,))
        torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))


def weights_model():
    pyro.sample("weights", dist.Normal(torch.zeros(4), 1.0).to_event(1))


def correlated_guide():
    root = torch.tensor([[0.5, 0, 0, 0], [0.3, 0.2, 0, 0], [0.1, 0.1, 0.4, 0], [0.0, 0.2, 0.1, 0.3]])
    loc = torch.tensor([0.1, 0.8, -0.2, 0.4])
    pyro.sample("weights", dist.MultivariateNormal(loc, scale_tril=root))


@pytest.mark.parametrize("prior", PRIORS)
def test_a_hand_written_joint_normal_is_searched_as_an_autoguide_is(prior):
    torch.set_default_dtype(torch.double)
    space = search_models(correlated_guide, {"weights": prior}, model=weights_model)
    posterior = pyro.poutine.trace(correlated_guide).get_trace().nodes["weights"]["fn"]
    pyro.clear_param_store()
    expected = search_models(put_posterior(AutoMultivariateNormal(weights_model), posterior), {"weights": prior})
    for found, other in zip(space.top(16), expected.top(16)):
        torch.testing.assert_close(found, other)
    assert space.strategy == "exhaustive"
    assert space.best.delta_evidence.item() == pytest.approx(space.top(1).delta_evidence.item(), abs=1e-9)
    assert space.best.method == "exact"


def noise_model():
    with pyro.plate("units", 5):
        return pyro.sample("noise", LogUniform(math.exp(-20.0), 1.0))


def noise_guide():
    with pyro.plate("units", 5):
        loc = torch.tensor([-19.0, -10.0, -5.0, -1.0, -0.1])
        return pyro.sample("noise", TruncatedLogNormal(loc, 0.5, math.exp(-20.0), 1.0))


def test_multiplicative_noise_switches_unit_by_unit():
    torch.set_default_dtype(torch.double)
    collapsed = TruncatedLogNormal(-20.0, 0.1, math.exp(-20.0), 1.0)
    space = search_models(noise_guide, {"noise": collapsed}, model=noise_model)
    alone = reduce_model(noise_guide, {"noise": collapsed}, model=noise_model).elementwise["noise"]
    torch.testing.assert_close(space.delta_evidence["noise"], alone)
    assert space.reduced["noise"].tolist() == [True, False, False, False, False]
    torch.testing.assert_close(space.best.delta_evidence, alone[0])
    assert space.best.posterior["noise"].sample((100,))[:, 0].max() < 1e-8
    moments = space.average()["noise"]
    assert moments.mean.shape == (5,)


def grouped_model():
    with pyro.plate("rows", 4):
        return pyro.sample("share", dist.Dirichlet(torch.ones(3)))


def grouped_guide():
    with pyro.plate("rows", 4):
        return pyro.sample("share", dist.Dirichlet(torch.tensor([[9.0, 9, 9], [9, 1, 1], [3, 3, 3], [1, 1, 9]])))


def test_where_elements_of_an_event_cannot_be_parted_the_event_switches_as_a_whole():
    torch.set_default_dtype(torch.double)
    prior = {"share": dist.Dirichlet(torch.full((3,), 20.0))}
    space = search_models(grouped_guide, prior, model=grouped_model)
    assert space.groups == ("share[0]", "share[1]", "share[2]", "share[3]")
    torch.testing.assert_close(
        space.delta_evidence["share"], reduce_model(grouped_guide, prior, model=grouped_model).elementwise["share"]
    )
    assert space.reduced["share"].tolist() == [True, False, True, False]
    assert space.average()["share"].sample((7,)).shape == (7, 4, 3)
    assert space.best.posterior["share"].mean.shape == (4, 3)


def test_single_precision_is_searched_in_double_and_averaged_in_single():
    problem = regression(8)
    torch.set_default_dtype(torch.float)
    x, y = problem.x.float(), problem.y.float()
    double = search_models(problem.guide, {"weights": dist.Normal(ZERO, 1e-3)})
    posterior = problem.guide.get_posterior()
    single = dist.MultivariateNormal(posterior.loc.float(), scale_tril=posterior.scale_tril.float())
    pyro.clear_param_store()
    space = search_models(
        put_posterior(AutoMultivariateNormal(model), single, x, y), {"weights": dist.Normal(0.0, 1e-3)}
    )
    assert space.top().delta_evidence.dtype == torch.double
    torch.testing.assert_close(space.top().delta_evidence, double.top().delta_evidence, atol=1e-2, rtol=1e-4)
    assert space.average()["weights"].mean.dtype == torch.float
    assert space.average()["weights"].sample().dtype == torch.float


def test_a_progress_bar_counts_the_models(capsys):
    problem = regression(6)
    prior = {"weights": dist.Delta(ZERO)}
    search_models(problem.guide, prior, progress=True)
    assert "models:" in capsys.readouterr().err
    search_models(problem.guide, prior, strategy="greedy", progress=True)
    assert "flips" in capsys.readouterr().err
    search_models(problem.guide, prior)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"strategy": "random"}, "strategy must be one of 'auto', 'exhaustive', 'sample', 'greedy', not 'random'"),
        (
            {"strategy": "exhaustive", "max_models": 100},
            r"30 groups make 2\^30 = 1,073,741,824 models, more .*100",
        ),
        ({"groups": {"g": {"weights": 30}}}, "group 'g': 30 does not index"),
        ({"groups": {"g": "slope"}}, "group 'g'.*'slope'"),
        ({"groups": {"g": {"weights": [0, 1]}, "h": {"weights": [1, 2]}}}, "'g' and 'h' overlap"),
        ({"groups": {}}, "empty"),
        ({"prior_log_odds": torch.zeros(3)}, r"prior_log_odds has shape \(3,\).*the 30 groups"),
        ({"prior_log_odds": math.inf}, "must be finite"),
    ],
)
def test_what_cannot_be_searched_is_refused(arguments, message):
    problem = regression(30)
    with pytest.raises(ReductionError, match=message):
        search_models(problem.guide, {"weights": dist.Normal(ZERO, 0.01)}, **arguments)


@pytest.mark.parametrize(
    "prior, message",
    [
        ({"slope": dist.Normal(0.0, 0.1)}, "no latent site 'slope'"),
        ({"weights": dist.Normal(torch.zeros(4), 0.1)}, "does not broadcast"),
        (
            {"weights": dist.Normal(0.0, torch.tensor([0.1, 1.0, 2.0]))},
            "'weights'.*no narrower than the prior at 2 of 3",
        ),
        ({"weights": dist.Laplace(0.0, 0.1)}, "site 'weights' belongs to a joint normal posterior"),
        ({"weights": dist.MultivariateNormal(torch.zeros(3), torch.eye(3))}, "independent normals"),
    ],
)
def test_reduced_priors_that_do_not_fit_are_refused(prior, message):
    problem = regression(3)
    with pytest.raises(ReductionError, match=message):
        search_models(problem.guide, prior)


def test_a_posterior_of_nan_is_refused():
    problem = regression(3)
    with torch.no_grad():
        problem.guide.loc[1] = math.nan
    with pyro.validation_enabled(False), pytest.raises(ReductionError, match="NaN"):
        search_models(problem.guide, {"weights": dist.Delta(ZERO)})


def hierarchical(x, y=None):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.sample("weights", dist.Normal(x.new_zeros(3), scale).to_event(1))


@pytest.mark.parametrize(
    "program, guide_type, message",
    [
        (hierarchical, AutoMultivariateNormal, r"site 'weights' depends on \['scale'\]"),
        (model, AutoIAFNormal, "'weights' has no known density"),
        (model, AutoDelta, "Delta|density"),
    ],
)
def test_posteriors_without_a_closed_form_are_refused(program, guide_type, message):
    problem = regression(3)
    pyro.clear_param_store()
    guide = guide_type(program)
    guide(problem.x, problem.y)
    with pytest.raises(ReductionError, match=message):
        search_models(guide, {"weights": dist.Normal(0.0, 0.01)})


def test_a_point_outside_the_support_is_refused():
    guide = AutoMultivariateNormal(positive)
    guide()
    with pytest.raises(ReductionError, match="'rate': the point .* outside the prior's support"):
        search_models(guide, {"rate": dist.Delta(torch.tensor([0.0, 1.0, 2.0]))})


def positive():
    pyro.sample("rate", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))


def two_kinds():
    pyro.sample("rate", dist.Gamma(2.0, 1.0))
    pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_sites_of_different_kinds_are_searched_one_after_the_other():
    torch.set_default_dtype(torch.double)
    guide = AutoGuideList(two_kinds)
    guide.append(AutoMultivariateNormal(pyro.poutine.block(two_kinds, hide=["rate"])))

    def rate_guide():
        return {"rate": pyro.sample("rate", dist.Gamma(4.0, 2.0))}

    guide.append(rate_guide)
    guide()
    priors = {"rate": dist.Gamma(20.0, 10.0), "weights": dist.Normal(0.0, 0.1)}
    for name, prior in priors.items():
        assert search_models(guide, {name: prior}).num_models in (2, 4)
    with pytest.raises(ReductionError, match="'rate' is no normal.*one after the other"):
        search_models(guide, priors)


def test_groups_that_always_stay_are_in_no_model_reduced():
    problem = regression(4)
    point = {"weights": dist.Delta(ZERO)}
    whole = search_models(problem.guide, point)
    space = search_models(problem.guide, point, always=["weights[1]", "weights[3]"])
    assert space.groups == ("weights[0]", "weights[2]") and space.num_models == 4
    assert space.inclusion_probability["weights"][[1, 3]].tolist() == [1.0, 1.0]
    top = whole.top(16)
    stay = ~top.reduced[:, [1, 3]].any(-1)
    expected = top.probability[stay] / top.probability[stay].sum()
    torch.testing.assert_close(space.top(4).probability, expected)
    with pytest.raises(ReductionError, match="always: the space has no group 'weights.4.'"):
        search_models(problem.guide, point, always="weights[4]")
    with pytest.raises(ReductionError, match="all groups always stay"):
        search_models(problem.guide, point, groups="site", always="weights")


def test_the_median_model_keeps_what_is_more_likely_in_than_out():
    problem = regression(5)
    space = search_models(problem.guide, {"weights": dist.Delta(ZERO)})
    reduced = space.inclusion_probability["weights"] < 0.5
    exact = problem.delta_evidence(reduced.numpy(), 0.0, 0.0)
    assert space.median.delta_evidence.item() == pytest.approx(exact, abs=1e-8)
