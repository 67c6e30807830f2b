# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_bmrs import ReductionWarning, search_models
from tests.search.regression import every_model, regression

POINT = {"weights": dist.Delta(torch.tensor(0.1, dtype=torch.double))}
NORMAL = {"weights": dist.Normal(torch.tensor(0.1, dtype=torch.double), 0.05)}


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("odds", [0.0, 0.7])
def test_averaged_moments_and_probabilities_are_those_of_numpy(scale, odds):
    problem = regression(12, seed=6, num_rows=25)
    loc = torch.tensor(0.1)
    prior = {"weights": dist.Normal(loc, scale) if scale else dist.Delta(loc)}
    space = search_models(problem.guide, prior, prior_log_odds=odds)
    average = space.average()

    states = every_model(12)
    models = [problem.exact(reduced, 0.1, scale) for reduced in states]
    log_weight = np.array([log_evidence for log_evidence, _, _ in models]) + odds * states.sum(-1)
    probability = np.exp(log_weight - np.logaddexp.reduce(log_weight))
    means = np.array([mean for _, mean, _ in models])
    mean = probability @ means
    variance = probability @ (np.array([np.diag(covariance) for *_, covariance in models]) + (means - mean) ** 2)

    top = space.top(4096)
    np.testing.assert_allclose(top.probability, np.sort(probability)[::-1], rtol=1e-8, atol=1e-15)
    np.testing.assert_allclose(space.inclusion_probability["weights"], probability @ ~states, rtol=1e-9, atol=1e-12)
    for site, at in (("bias", 0), ("weights", slice(1, None))):
        np.testing.assert_allclose(average[site].mean, mean[at], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(average[site].variance, variance[at], rtol=1e-8, atol=1e-13)


def test_the_average_is_the_posterior_under_a_prior_that_mixes_full_and_reduced():
    # Summed over all models, the densities are q(x) times the product over the weights of 1 + odds r(x)/p(x).
    problem = regression(8, seed=7)
    odds = 0.4
    space = search_models(problem.guide, NORMAL, prior_log_odds=odds)
    value = torch.randn(20, 8) * 0.3
    full = dist.MultivariateNormal(
        problem.guide.loc[1:].detach(), problem.guide.get_posterior().covariance_matrix[1:, 1:].detach()
    )
    ratio = dist.Normal(0.1, 0.05).log_prob(value) - dist.Normal(0.0, 1.0).log_prob(value)
    mixed = full.log_prob(value) + torch.nn.functional.softplus(odds + ratio).sum(-1)
    total = torch.logsumexp(space.top(256).delta_evidence + odds * space.top(256).reduced.sum(-1), -1)
    torch.testing.assert_close(space.average()["weights"].log_prob(value), mixed - total)


def test_where_a_weight_is_at_the_point_the_average_has_the_mass_of_its_models():
    problem = regression(5, seed=8)
    space = search_models(problem.guide, POINT)
    average = space.average()["weights"]
    top = space.top(32)
    for reduced, probability in zip(top.reduced, top.probability):
        value = torch.where(reduced, 0.1, torch.randn(3, 5))
        if (~reduced).sum() == 1:
            posterior = space.reduction(reduced).posterior["weights"]
            mean, deviation = (moment.detach()[~reduced] for moment in (posterior.mean, posterior.stddev))
            expected = dist.Normal(mean, deviation).log_prob(value[:, ~reduced]).sum(-1)
        elif reduced.all():
            expected = torch.zeros(3)
        else:
            continue
        torch.testing.assert_close(average.log_prob(value), probability.log() + expected)


@pytest.mark.parametrize("prior", [POINT, NORMAL])
@pytest.mark.parametrize("factorised", [False, True])
def test_draws_have_the_moments_and_the_mass_of_the_average(prior, factorised):
    problem = regression(4, seed=9)
    guide = problem.guide
    if factorised:
        guide = AutoNormal(guide.model, init_scale=0.2)
        guide(problem.x, problem.y)
    space = search_models(guide, prior, args=(problem.x, problem.y), groups={"two": {"weights": [0, 1]}})
    average = space.average()["weights"]
    draws = average.sample((40_000,))
    assert average.sample().shape == (4,) and average.sample((2, 3)).shape == (2, 3, 4)
    error = average.stddev / 200
    assert ((draws.mean(0) - average.mean).abs() < 5 * error).all()
    torch.testing.assert_close(draws.var(0), average.variance, rtol=0.1, atol=1e-6)
    if prior is POINT:
        at_point = draws == 0.1
        assert torch.equal(at_point[:, 0], at_point[:, 1])
        reduced = 1 - space.inclusion_probability["weights"]
        assert ((at_point.double().mean(0) - reduced).abs() < 5 / 400).all()
    assert torch.isfinite(average.log_prob(draws)).all()
    # The entropy by draws is below that by draws of any other distribution of the same support (Gibbs).
    other = draws + 0.05 * (draws != 0.1)
    assert average.log_prob(draws).mean() > average.log_prob(other).mean()


def positive_model():
    rate = pyro.sample("rate", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    return rate


def test_sites_of_bounded_support_are_averaged_in_their_own_coordinates():
    from pyro.infer.autoguide import AutoMultivariateNormal

    torch.set_default_dtype(torch.double)
    guide = AutoMultivariateNormal(positive_model, init_scale=0.3)
    guide()
    one = search_models(guide, {"rate": dist.Delta(torch.tensor(1.0))})
    average = one.average()
    draws = average["rate"].sample((2000,))
    assert (draws > 0).all()
    reduced = 1 - one.inclusion_probability["rate"]
    assert (((draws == 1.0).double().mean(0) - reduced).abs() < 0.06).all()
    everything, only = torch.ones(3), one.top(8).reduced.all(-1).nonzero().item()
    torch.testing.assert_close(average["rate"].log_prob(everything), one.top(8).probability[only].log())
    nothing = (~one.top(8).reduced.any(-1)).nonzero().item()
    value = torch.tensor([0.5, 0.7, 1.5])
    marginal = dist.MultivariateNormal(guide.get_posterior().mean[:3], guide.get_posterior().covariance_matrix[:3, :3])
    expected = marginal.log_prob(value.log()) - value.log().sum() + one.top(8).probability[nothing].log()
    torch.testing.assert_close(average["rate"].log_prob(value), expected.detach())
    assert torch.allclose(average["share"].sample((5,)).sum(-1), torch.ones(5))
    with pytest.raises(NotImplementedError, match="take draws"):
        _ = average["rate"].mean


def test_an_average_over_too_few_models_says_so():
    problem = regression(8, seed=10)
    space = search_models(problem.guide, NORMAL)
    with pytest.warns(ReductionWarning, match=r"the 3 models averaged hold .* of the probability of 256"):
        average = space.average(num_models=3)
    assert average["weights"].probability.sum().item() == pytest.approx(1.0)
