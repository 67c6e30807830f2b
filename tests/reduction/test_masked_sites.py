# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What handlers around a site say of it counts: elements masked are no part of the model, and a scale is a weight."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal, AutoNormalMessenger

from pyro_bmrs import ReductionError, reduce_model
from pyro_bmrs.arviz_adapter import to_arviz
from pyro_bmrs.evidence import log_evidence_change
from tests.programs import fit

pytestmark = pytest.mark.usefixtures("double")

SEEN = torch.tensor([True, False, True, True, False])
Y = torch.tensor([0.5, 0.0, -1.0, 1.5, 0.0], dtype=torch.float64)


def around(y):
    with pyro.plate("items", 5), poutine.mask(mask=SEEN):
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.7), obs=y)


def inside(y):
    with pyro.plate("items", 5):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([5]).mask(SEEN))
        pyro.sample("y", dist.Normal(z, 0.7).mask(SEEN), obs=y)


def event(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([5]).mask(SEEN).to_event(1))
    pyro.sample("y", dist.Normal(z, 0.7).mask(SEEN).to_event(1), obs=y)


MODELS = [around, inside, event]
REDUCED = {
    "other scale": dist.Normal(0.1, 0.4),
    "other type": dist.Laplace(0.0, 0.3),
    "point": dist.Delta(torch.tensor(0.2)),
}


@pytest.mark.parametrize("reduced_prior", REDUCED.values(), ids=REDUCED)
@pytest.mark.parametrize("guide_type", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormalMessenger])
@pytest.mark.parametrize("model", MODELS)
def test_masked_elements_are_no_part_of_a_reduction(model, guide_type, reduced_prior):
    guide = fit(model, guide_type(model, init_scale=0.4), Y)
    joint = guide_type is AutoMultivariateNormal and not isinstance(reduced_prior, dist.Laplace)
    if guide_type is AutoMultivariateNormal and not joint:
        pytest.skip("a joint normal has no rule for a Laplace")
    reduction = reduce_model(guide, {"z": reduced_prior}, args=(Y,))
    if joint:
        posterior = guide.get_posterior()
        at = SEEN.nonzero().squeeze(-1)
        q = dist.MultivariateNormal(posterior.mean[at], posterior.covariance_matrix[at][:, at])
        r: dist.Distribution = reduced_prior.expand([3]).to_event(1)
        expected = log_evidence_change(q, dist.Normal(0.0, 1.0).expand([3]).to_event(1), r)
    else:
        q = reduction.fitted_posterior["z"]
        loc, scale = q.mean[SEEN], q.variance[SEEN].sqrt()
        expected = log_evidence_change(dist.Normal(loc, scale), dist.Normal(loc * 0, 1.0), reduced_prior).sum()
    torch.testing.assert_close(reduction.delta_evidence, expected)
    elementwise = reduction.elementwise["z"]
    assert torch.equal(elementwise == 0, ~SEEN)


@pytest.mark.parametrize("model", MODELS)
def test_masked_elements_of_draws_are_no_part_of_a_reduction(model):
    draws = Y / 2 + 0.4 * torch.randn(4, 500, 5)
    draws[..., ~SEEN] *= 100  # nothing is known of them
    posterior = to_arviz({"posterior": {"z": draws.numpy()}})
    reduction = reduce_model(posterior, {"z": dist.Normal(0.0, 0.7)}, model=model, args=(Y,), method="importance")
    seen = draws.flatten(0, 1)[:, SEEN]
    ratios = (dist.Normal(0.0, 0.7).log_prob(seen) - dist.Normal(0.0, 1.0).log_prob(seen)).sum(-1)
    assert abs(reduction.delta_evidence - (ratios.logsumexp(0) - np.log(2000))) < 0.01


def test_masked_values_need_not_be_in_the_support():
    def model():
        with pyro.plate("items", 5), poutine.mask(mask=SEEN):
            pyro.sample("z", dist.Exponential(1.0))

    draws = torch.where(SEEN, dist.Gamma(20.0, 20.0).sample((4, 500, 5)), -1.0)
    posterior = to_arviz({"posterior": {"z": draws.numpy()}})
    reduction = reduce_model(posterior, {"z": dist.Exponential(1.2)}, model=model, method="importance")
    # By hand: the moment generating function of a Gamma.
    exact = 3 * (np.log(1.2) + 20 * np.log(20.0 / 20.2))
    assert abs(reduction.delta_evidence - exact) < 4 * reduction.standard_error + 1e-3


def test_a_reduced_guide_and_model_are_masked_as_they_were():
    variance = 1 / (1 + 1 / 0.49)

    def guide(y):
        with pyro.plate("items", 5), poutine.mask(mask=SEEN):
            pyro.sample("z", dist.Normal(variance * y / 0.49, variance**0.5))

    reduction = reduce_model(guide, {"z": dist.Normal(0.0, 0.5)}, model=around, args=(Y,))
    exact = dist.Normal(0.0, (0.25 + 0.49) ** 0.5).log_prob(Y) - dist.Normal(0.0, 1.49**0.5).log_prob(Y)
    torch.testing.assert_close(reduction.delta_evidence, exact[SEEN].sum())
    # The guide is the posterior of the reduced model: what it draws does not change the evidence that it says.
    evidence = dist.Normal(0.0, (0.25 + 0.49) ** 0.5).log_prob(Y)[SEEN].sum()
    drawn = poutine.trace(reduction.guide).get_trace(Y)
    ran = poutine.trace(poutine.replay(reduction.model, drawn)).get_trace(Y)
    torch.testing.assert_close(ran.log_prob_sum() - drawn.log_prob_sum(), evidence)


@pytest.mark.parametrize("off", [False, torch.zeros(5, dtype=torch.bool)])
@pytest.mark.parametrize("draws", [False, True])
def test_a_prior_that_is_switched_off_is_refused(off, draws):
    def model():
        with pyro.plate("items", 5), poutine.mask(mask=off):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = AutoNormal(model)
    guide()
    source = to_arviz({"posterior": {"z": np.random.default_rng(0).normal(size=(4, 100, 5))}}) if draws else guide
    with pytest.raises(ReductionError, match="'z' is switched off"):
        reduce_model(source, {"z": dist.Normal(0.0, 0.5)}, model=model, method="importance" if draws else "auto")


def weighted(y):
    with poutine.scale(scale=0.5):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 0.7), obs=y)


@pytest.mark.parametrize("draws", [False, True])
def test_a_scale_is_the_power_of_the_prior(draws):
    y, grid = torch.tensor(0.9), torch.linspace(-8.0, 8.0, 20_001)
    likelihood = dist.Normal(grid, 0.7).log_prob(y)
    ends = [(likelihood + 0.5 * dist.Normal(0.0, scale).log_prob(grid)).logsumexp(0) for scale in (0.5, 1.0)]
    variance = 1 / (0.5 + 1 / 0.49)
    posterior = dist.Normal(variance * y / 0.49, variance**0.5)

    def guide(y):
        pyro.sample("z", posterior)

    source = to_arviz({"posterior": {"z": posterior.sample((4, 1000)).numpy()}}) if draws else guide
    reduction = reduce_model(source, {"z": dist.Normal(0.0, 0.5)}, model=weighted, args=(y,), num_samples=4000)
    assert reduction.method == "importance"
    assert abs(reduction.delta_evidence - (ends[0] - ends[1])) < 4 * reduction.standard_error


def test_a_mask_that_depends_on_a_site_is_refused():
    def model():
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with poutine.mask(mask=k > 0):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("z", dist.Normal(0.0, 0.5))

    with pytest.raises(ReductionError, match=r"mask or scale\) depends on the values of \['k'\]"):
        reduce_model(guide, {"z": dist.Normal(0.0, 0.5)}, model=model)
