# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Draws that know no Pyro model: their priors are stated, and their density, where it is known."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch.distributions import constraints

from pyro_bmrs import ReductionError, optimize_reduced_prior, reduce_model
from pyro_bmrs.arviz_adapter import to_arviz
from tests import conjugate

pytestmark = pytest.mark.usefixtures("double")

NORMAL = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
Y = torch.tensor([0.9, -0.4, 1.3, 0.2, 0.8, 1.1], dtype=torch.float64)
# The posterior of a normal mean with unit noise.
VARIANCE = 1 / (len(Y) + 1)
LOC = float(Y.sum()) * VARIANCE


def log_density(site):
    return NORMAL.log_prob(site["b"]) + dist.Normal(site["b"], 1.0).log_prob(Y).sum()


def log_evidence(scale: float) -> float:
    """Of data under the mean's prior Normal(0, scale)."""
    covariance = np.eye(len(Y)) + scale**2
    return float(scipy.stats.multivariate_normal(np.zeros(len(Y)), covariance).logpdf(Y))


@pytest.fixture
def data():
    """Draws of the mean, by chain, with something computed of them beside."""
    draws = LOC + math.sqrt(VARIANCE) * np.random.default_rng(0).standard_normal((2, 1000))
    return to_arviz({"posterior": {"b": draws, "predicted": np.stack([draws, draws**2], -1)}})


@pytest.mark.parametrize("prior", [{"b": NORMAL}, lambda: pyro.sample("b", NORMAL)])
def test_the_prior_is_all_that_draws_need(data, prior):
    with pyro.settings.context(bmrs_automatic_check=True):
        reduction = reduce_model(data, {"b": dist.Normal(0.0, 0.5)}, prior=prior)
    exact = log_evidence(0.5) - log_evidence(1.0)
    assert reduction.method == "importance"
    assert reduction.delta_evidence.item() == pytest.approx(exact, abs=4 * reduction.standard_error.item())
    assert "not checked against the model: no more than priors is known of it" in repr(reduction)


def test_all_elements_of_a_site_take_a_scalar_prior():
    x, y = conjugate.data()
    draws = conjugate.exact_posterior(x, y, *conjugate.prior(4)).sample((1, 2000)).numpy()
    stated = {"first": dist.Normal(0.0, 1.0), "rest": dist.Normal(torch.tensor([0.2, 0.2]), 2.0)}
    data = to_arviz({"posterior": {"first": draws[..., :2], "rest": draws[..., None, 2:]}})
    reduced = {"first": dist.Normal(0.3, 0.6), "rest": dist.Normal(0.0, 0.5).expand([2]).to_event(1)}
    reduction = reduce_model(data, reduced, prior=stated)
    same = reduce_model(data, reduced, model=conjugate.model, args=(x, y))
    torch.testing.assert_close(reduction.delta_evidence, same.delta_evidence)
    torch.testing.assert_close(reduction.elementwise["rest"].reshape(-1), same.elementwise["rest"])


def test_a_prior_that_depends_on_another_variable():
    rng = np.random.default_rng(0)
    tau = np.exp(0.1 * rng.standard_normal((1, 300)))
    theta = tau[..., None] * rng.standard_normal((1, 300, 3))
    data = to_arviz({"posterior": {"tau": tau, "theta": theta}})

    def program(factor=1.0):
        tau = pyro.sample("tau", dist.LogNormal(torch.tensor(0.0, dtype=torch.float64), 0.1))
        pyro.sample("theta", dist.Normal(0.0, factor * tau).expand([3]).to_event(1))

    reduction = reduce_model(data, lambda: program(0.9), prior=program)
    # The draws are of the prior, so that the mean of r/p is 1.
    assert abs(reduction.delta_evidence.item()) < 4 * reduction.standard_error.item()
    half = scipy.stats.norm(0, 0.9 * tau[..., None]).logpdf(theta) - scipy.stats.norm(0, tau[..., None]).logpdf(theta)
    mean = np.log(np.exp(half.sum(-1)).mean())
    assert reduction.delta_evidence.item() == pytest.approx(mean, abs=0.02)


def test_a_point_needs_the_density_and_takes_it(data):
    point = {"b": dist.Delta(torch.tensor(0.0))}
    with pytest.raises(ReductionError, match=r"'b'.*needs the density of the model.*give log_density="):
        reduce_model(data, point, prior={"b": NORMAL})
    reduction = reduce_model(data, point, prior={"b": NORMAL}, log_density=log_density)
    exact = log_evidence(0.0) - log_evidence(1.0)
    assert reduction.delta_evidence.item() == pytest.approx(exact, abs=4 * reduction.standard_error.item())


@pytest.mark.parametrize("ask", [lambda r: r.check(), lambda r: r.check(elementwise=True)])
def test_a_check_needs_the_density(data, ask):
    with pytest.raises(ReductionError, match="give log_density="):
        ask(reduce_model(data, {"b": dist.Normal(0.0, 0.5)}, prior={"b": NORMAL}))


def test_a_check_takes_the_density(data):
    with pyro.settings.context(bmrs_automatic_check=True):
        reduction = reduce_model(data, {"b": dist.Normal(0.0, 0.5)}, prior={"b": NORMAL}, log_density=log_density)
    assert reduction.checked.agrees
    exact = log_evidence(0.5) - log_evidence(1.0)
    assert reduction.checked.delta_evidence == pytest.approx(exact, abs=4 * reduction.checked.standard_error)


def test_of_what_is_not_reduced_the_support_will_do():
    """The scale of the noise has an improper prior, 1/sigma; the point's evidence is that of two t integrals."""
    scale = 2.0

    def joint(site):
        prior = dist.Normal(0.0, scale * site["sigma"]).log_prob(site["b"])
        return prior - site["sigma"].log() + dist.Normal(site["b"], site["sigma"]).log_prob(Y).sum()

    def of(variance):
        """log of the integral over sigma, where the mean's prior has this variance in units of the noise's."""
        shape = np.eye(len(Y)) + variance
        y, n = Y.numpy(), len(Y)
        quadratic = y @ np.linalg.solve(shape, y)
        return math.lgamma(n / 2) - n / 2 * math.log(quadratic) - np.linalg.slogdet(shape)[1] / 2

    rng = np.random.default_rng(0)
    precision = len(Y) + 1 / scale**2
    loc = float(Y.sum()) / precision
    rest = float((Y**2).sum()) - precision * loc**2
    sigma = np.sqrt(rest / rng.chisquare(len(Y), (1, 1500)))
    data = to_arviz(
        {"posterior": {"sigma": sigma, "b": loc + sigma / math.sqrt(precision) * rng.standard_normal((1, 1500))}}
    )

    def priors():
        sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
        pyro.sample("b", dist.Normal(0.0, scale * sigma))

    point = {"b": dist.Delta(torch.tensor(0.0, dtype=torch.float64))}
    reduction = reduce_model(data, point, prior=priors, log_density=joint)
    assert reduction.delta_evidence.item() == pytest.approx(
        of(0) - of(scale**2), abs=5 * reduction.standard_error.item()
    )


def test_a_support_stands_for_a_prior_that_is_not_reduced(data):
    prior = {"b": NORMAL, "predicted": constraints.real_vector}
    reduction = reduce_model(data, {"b": dist.Normal(0.0, 0.5)}, prior=prior)
    assert (
        reduction.delta_evidence == reduce_model(data, {"b": dist.Normal(0.0, 0.5)}, prior={"b": NORMAL}).delta_evidence
    )
    with pytest.raises(ReductionError, match="'predicted' is improper"):
        reduce_model(data, {"predicted": dist.Normal(0.0, 0.5)}, prior=prior)


def test_empirical_bayes_from_draws_and_a_prior(data):
    best = optimize_reduced_prior(
        data,
        lambda s: {"b": dist.Normal(0.0, s)},
        {"s": 0.8},
        constraints={"s": constraints.positive},
        prior={"b": NORMAL},
    )
    total, count = float(Y.sum()), len(Y)
    exact = math.sqrt(total**2 / count**2 - 1 / count)  # where the marginal variance of the mean is its square
    assert best.hyperparameters["s"].item() == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"prior": {"c": NORMAL}}, "prior: the set of draws has no latent site 'c'"),
        ({"prior": {"b": 1.0}}, "the prior of site 'b' is a float"),
        ({"prior": {}}, "prior is {}; give a mapping"),
        ({"prior": NORMAL}, "prior is Normal.*give a mapping"),
        ({"prior": {"b": dist.Normal(torch.zeros(3), 1.0)}}, r"'b' has shape \(3,\), and each of its draws \(\)"),
        ({"prior": {"b": NORMAL}, "model": lambda: None}, "model= and prior= are both given"),
        ({"log_density": log_density}, "log_density= goes with prior="),
        ({"prior": {"b": NORMAL}, "log_density": 3.0}, "log_density is a float"),
        ({"prior": {"b": NORMAL}, "log_density": lambda site: 0.0}, "log_density gives a float"),
        ({"prior": {"b": NORMAL}, "log_density": lambda site: torch.zeros(2)}, r"log_density gives shape \(2,\)"),
    ],
)
def test_what_states_no_model(data, wrong, message):
    with pytest.raises(ReductionError, match=message):
        reduce_model(data, {"b": dist.Normal(0.0, 0.5)}, **wrong)


def test_what_knows_its_model_takes_no_prior(exact_guide):
    guide, _, _ = exact_guide()
    with pytest.raises(
        ReductionError, match="prior= is for draws that know no model, which AutoMultivariateNormal does"
    ):
        reduce_model(guide, {"first": NORMAL}, prior={"first": NORMAL})
