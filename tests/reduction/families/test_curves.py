# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Evidence and moments under many priors, against exact answers."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from pyro_bmrs import ReductionError, ReductionWarning, prior_sensitivity, reduce_model
from pyro_bmrs.arviz_adapter import to_arviz
from tests import conjugate

pytestmark = pytest.mark.usefixtures("double")

SCALES = [0.05, 0.3, 1.0, 4.0, 100.0]


def exact(x, y, columns, **changed):
    """The change in log evidence of the conjugate regression, and its posterior."""
    loc, scale = conjugate.prior(4)
    reduced_loc, reduced_scale = loc.clone(), scale.clone()
    reduced_loc[columns] = changed.get("loc", reduced_loc[columns])
    reduced_scale[columns] = changed.get("scale", reduced_scale[columns])
    change = conjugate.log_evidence(x, y, reduced_loc, reduced_scale) - conjugate.log_evidence(x, y, loc, scale)
    return change, conjugate.exact_posterior(x, y, reduced_loc, reduced_scale)


@pytest.mark.parametrize("parameter, numbers", [("scale", SCALES), ("loc", [-2.0, 0.0, 0.5, 3.0])])
def test_a_joint_normal_is_exact_under_narrower_and_broader_priors(exact_guide, parameter, numbers):
    guide, x, y = exact_guide()
    found = prior_sensitivity(guide, "first", parameter, numbers)
    for place, number in enumerate(numbers):
        change, posterior = exact(x, y, slice(0, 2), **{parameter: number})
        assert found.delta_evidence[place].item() == pytest.approx(change.item(), abs=1e-8)
        torch.testing.assert_close(found.mean[place], posterior.mean[:2], atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(found.sd[place], posterior.stddev[:2], atol=1e-8, rtol=1e-8)
    assert found.method == "exact" and found.standard_error is None


@pytest.mark.parametrize("kind", [AutoMultivariateNormal, AutoDiagonalNormal, AutoNormal])
def test_all_elements_of_a_plate(exact_guide, kind):
    """A guide draws them in one event or side by side; each is exact for the posterior that it is."""
    guide, x, y = exact_guide(kind)
    found = prior_sensitivity(guide, "rest", "scale", SCALES, args=(x, y))
    for place, number in enumerate(SCALES):
        same = reduce_model(guide, {"rest": dist.Normal(0.2, number)}, args=(x, y))
        assert found.delta_evidence[place].item() == pytest.approx(same.delta_evidence.item(), abs=1e-9)
        torch.testing.assert_close(found.mean[place], same.posterior["rest"].mean)
        if kind is AutoMultivariateNormal:
            change, _ = exact(x, y, slice(2, 4), scale=number)
            assert found.delta_evidence[place].item() == pytest.approx(change.item(), abs=1e-8)
    assert found.method == "exact"


@pytest.mark.parametrize("kind", [AutoMultivariateNormal, AutoNormal])
@pytest.mark.parametrize("shape, event_dim", [((2, 3), 0), ((2, 3), 1), ((2, 3), 2), ((1,), 1), ((), 0)])
def test_sites_of_all_shapes_in_other_coordinates(kind, shape, event_dim):
    """Positive, so that guides draw their logarithms."""

    def model():
        with pyro.plate_stack("plates", shape[: len(shape) - event_dim]):
            pyro.sample("z", dist.LogNormal(0.0, 1.0).expand(shape[len(shape) - event_dim :]).to_event(event_dim))

    guide = kind(model, init_scale=0.3)
    guide()
    found = prior_sensitivity(guide, "z", "scale", [0.5, 2.0])
    for place, scale in enumerate([0.5, 2.0]):
        same = reduce_model(guide, {"z": dist.LogNormal(0.0, scale)})
        assert found.delta_evidence[place].item() == pytest.approx(same.delta_evidence.item(), abs=1e-8)
    assert found.method == "exact" and found.mean.shape == (2, *shape)


@pytest.mark.parametrize("element", [1, -1, "rest[1]"])
def test_the_prior_of_one_element_alone(exact_guide, element):
    guide, x, y = exact_guide()
    found = prior_sensitivity(guide, "rest", "scale", SCALES, element=element)
    for place, number in enumerate(SCALES):
        change, posterior = exact(x, y, slice(3, 4), scale=number)
        assert found.delta_evidence[place].item() == pytest.approx(change.item(), abs=1e-8)
        assert found.mean[place].item() == pytest.approx(posterior.mean[3].item(), abs=1e-8)
    assert found.labels == ["rest[1]"]


@pytest.mark.parametrize("rates", [[0.01, 0.5, 2.0, 50.0]])
def test_counts_with_a_gamma_prior(rates):
    counts = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0])

    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(counts)):
            pyro.sample("y", dist.Poisson(rate), obs=counts)

    def guide():
        pyro.sample("rate", dist.Gamma(2.0 + counts.sum(), 1.0 + len(counts)))

    def log_evidence(rate):
        total, count = float(counts.sum()), len(counts)
        return math.lgamma(2 + total) + 2 * math.log(rate) - (2 + total) * math.log(rate + count)

    found = prior_sensitivity(guide, "rate", "rate", rates, model=model)
    for place, rate in enumerate(rates):
        assert found.delta_evidence[place].item() == pytest.approx(log_evidence(rate) - log_evidence(1.0), abs=1e-8)
        mean = (2 + float(counts.sum())) / (rate + len(counts))
        assert found.mean[place].item() == pytest.approx(mean, rel=1e-8)


def test_priors_without_a_rule_by_quadrature():
    """A normal posterior under Cauchy priors, against SciPy's quadrature of q r / p."""

    def model():
        pyro.sample("b", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("b", dist.Normal(0.7, 0.3))

    scales = [0.1, 1.0, 20.0]
    found = prior_sensitivity(guide, "b", lambda s: dist.Cauchy(0.0, s), scales, model=model)
    for place, scale in enumerate(scales):

        def weight(b, power, scale=scale):
            q_over_p = math.exp(-(((b - 0.7) / 0.3) ** 2) / 2 + b**2 / 2) / 0.3
            return b**power * q_over_p * scale / (math.pi * (scale**2 + b**2))

        total, first, second = (scipy.integrate.quad(weight, -3, 4, (k,), epsabs=1e-12)[0] for k in range(3))
        assert found.delta_evidence[place].item() == pytest.approx(math.log(total), abs=1e-7)
        assert found.mean[place].item() == pytest.approx(first / total, abs=1e-6)
        assert found.sd[place].item() == pytest.approx(math.sqrt(second / total - (first / total) ** 2), abs=1e-6)
    assert found.method == "quadrature"


@pytest.mark.parametrize("element", [None, 1])
def test_draws_agree_with_the_exact_evidence_or_say_that_they_cannot(element):
    x, y = conjugate.data()
    draws = conjugate.exact_posterior(x, y, *conjugate.prior(4)).sample((2, 1000)).numpy()
    data = to_arviz({"posterior": {"first": draws[..., :2], "rest": draws[..., 2:]}})
    numbers = [1e-3, 0.4, 1.0, 5.0]
    with pytest.warns(ReductionWarning, match="not to be trusted with 1 of the 4 priors, the first at scale 0.001"):
        found = prior_sensitivity(data, "first", "scale", numbers, element=element, model=conjugate.model, args=(x, y))
    columns = slice(0, 2) if element is None else slice(1, 2)
    for place, number in list(enumerate(numbers))[1:]:
        change, posterior = exact(x, y, columns, scale=number)
        error = found.standard_error[place].item()
        assert found.delta_evidence[place].item() == pytest.approx(change.item(), abs=4 * error + 1e-12)
        mean = posterior.mean[:2] if element is None else posterior.mean[1]
        torch.testing.assert_close(found.mean[place], mean, atol=0.03, rtol=0.0)
    assert found.method == "importance" and found.pareto_k[1] < 0.7


def test_a_prior_with_which_the_evidence_diverges_is_named_and_left_out():
    """A posterior twice as broad as its prior: q r / p has no integral for a scale above 1.1547."""

    def model():
        pyro.sample("b", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("b", dist.Normal(0.0, 2.0))

    with pytest.warns(ReductionWarning, match="cannot be had with 1 of the 3 priors, the first at scale 1.2: .*'b'"):
        found = prior_sensitivity(guide, "b", "scale", [0.5, 1.1, 1.2], model=model)
    assert found.delta_evidence.isnan().tolist() == [False, False, True]
    assert found.stretches[-1].sign is None
    for place, scale in enumerate([0.5, 1.1]):
        left = 1 / 4 + 1 / scale**2 - 1
        expected = 0.5 * math.log(1 / 4 / scale**2 / left)
        assert found.delta_evidence[place].item() == pytest.approx(expected, abs=1e-8)
    with pytest.raises(ReductionError, match="'b'"):
        prior_sensitivity(guide, "b", "scale", [2.0, 3.0], model=model)


def test_a_prior_that_depends_on_another_site():
    def model():
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        pyro.sample("z", dist.Normal(torch.zeros(2), tau).to_event(1))

    rng = np.random.default_rng(0)
    tau = np.exp(0.1 * rng.standard_normal((1, 300)))
    z = 0.3 * rng.standard_normal((1, 300, 2))
    data = to_arviz({"posterior": {"tau": tau, "z": z}})
    with pytest.raises(ReductionError, match=r"depends on \['tau'\].*or vary the prior of 'tau'"):
        prior_sensitivity(data, "z", model=model)
    found = prior_sensitivity(data, "z", lambda s: dist.Normal(0.0, s), [0.8, 1.0], model=model)
    for place, scale in enumerate([0.8, 1.0]):
        ratio = scipy.stats.norm(0, scale).logpdf(z) - scipy.stats.norm(0, tau[..., None]).logpdf(z)
        expected = math.log(np.exp(ratio.sum(-1)).mean())
        assert found.delta_evidence[place].item() == pytest.approx(expected, abs=0.02)
