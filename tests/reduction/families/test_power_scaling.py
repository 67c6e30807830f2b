# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Power-scaling sensitivity: beside ArviZ, and where it is known exactly."""

from __future__ import annotations

import math
from importlib.metadata import version

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch

from pyro_bmrs import ReductionError, ReductionWarning, power_scaling
from pyro_bmrs.arviz_adapter import to_arviz
from tests import conjugate

pytestmark = pytest.mark.usefixtures("double")


def psens(data, component):
    """What the ArviZ that is installed says; version 1 has another name for it."""
    return arviz.psens(data, component=component) if version("arviz") < "1" else arviz.psense(data, group=component)


def test_beside_arviz_on_the_same_draws(exact_guide):
    guide, x, y = exact_guide()
    found = power_scaling(guide, args=(x, y), num_samples=1000)
    data = found.to_arviz()
    for component, own in (("prior", found.prior), ("likelihood", found.likelihood)):
        theirs = psens(data, component)
        for site in ("first", "rest"):
            np.testing.assert_allclose(own[site].numpy(), theirs[site].values, atol=0.02)
            assert own[site].max() > 0.002  # it says something


def test_draws_of_arviz_with_their_groups_need_no_model(exact_guide):
    guide, x, y = exact_guide()
    of_model = power_scaling(guide, args=(x, y), num_samples=600)
    data = of_model.to_arviz()
    loc, scale = conjugate.prior(4)
    stated = {"first": dist.Normal(loc[:2], scale[:2]).to_event(1), "rest": dist.Normal(loc[2:], scale[2:])}
    found = power_scaling(data, prior=stated)
    for site in ("first", "rest"):
        torch.testing.assert_close(found.prior[site], of_model.prior[site])
        torch.testing.assert_close(found.likelihood[site], of_model.likelihood[site])


def exact_sensitivity(of_power, delta=0.01):
    """By SciPy, from the normal that the posterior is at each power of the component: mean and standard deviation."""
    total = 0.0
    base = scipy.stats.norm(*of_power(1.0))
    for power in (1 / (1 + delta), 1 + delta):
        other = scipy.stats.norm(*of_power(power))

        def distance(sign, other=other):
            one, two = (base.cdf, other.cdf) if sign > 0 else (base.sf, other.sf)

            def divergence(x):
                p, q = one(x), two(x)
                m = (p + q) / 2
                return sum(w * math.log2(w / m) for w in (p, q) if w > 0)

            # Draws end somewhere: so far as 2,000 of them go.
            ends = base.ppf([1 / 4000, 1 - 1 / 4000])
            above = scipy.integrate.quad(divergence, *ends, epsabs=1e-14)[0]
            below = scipy.integrate.quad(lambda x: one(x) + two(x), *ends)[0]
            return math.sqrt(max(above, 0) / below)

        total += max(distance(1), distance(-1))
    return total / (2 * math.log2(1 + delta))


def test_a_conflict_between_prior_and_data_is_found_as_large_as_it_is():
    y = torch.tensor([4.0, 5.0, 6.0])

    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(mean, 3.0), obs=y)

    def at(prior_power, likelihood_power):
        precision = prior_power + likelihood_power * 3 / 9
        return likelihood_power * float(y.sum()) / 9 / precision, precision**-0.5

    loc, sd = at(1.0, 1.0)
    quantiles = scipy.stats.norm(loc, sd).ppf((np.arange(2000) + 0.5) / 2000)  # draws without luck
    draws = np.random.default_rng(0).permutation(quantiles)[None]
    found = power_scaling(to_arviz({"posterior": {"mean": draws}}), model=model)
    assert found.prior["mean"].item() == pytest.approx(exact_sensitivity(lambda a: at(a, 1.0)), rel=0.03)
    assert found.likelihood["mean"].item() == pytest.approx(exact_sensitivity(lambda a: at(1.0, a)), rel=0.03)
    assert list(found.summary()["diagnosis"]) == ["potential prior-data conflict"]
    assert "mean: potential prior-data conflict" in repr(found)


def test_only_some_priors_are_scaled():
    """Two sites that the data tie to nothing: each is sensitive to its own prior."""

    def model():
        pyro.sample("one", dist.Normal(0.0, 1.0))
        pyro.sample("two", dist.Normal(0.0, 1.0))

    draws = np.random.default_rng(0).standard_normal((2, 1, 2000))
    data = to_arviz({"posterior": {"one": draws[0], "two": draws[1]}})
    found = power_scaling(data, sites=["one"], model=model)
    assert found.prior["one"] > 0.1 and found.prior["two"] < 0.03
    assert found.likelihood is None and set(found.log_prior) == {"one"}
    assert found.summary()["likelihood"].isna().all()
    with pytest.raises(ReductionError, match="no latent site 'three'"):
        power_scaling(data, sites=["three"], model=model)


def test_weights_that_say_nothing_are_told():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    draws = np.random.default_rng(0).standard_cauchy((1, 1000)) * 20
    with pytest.warns(ReductionWarning, match="Sensitivities are not to be trusted"):
        power_scaling(to_arviz({"posterior": {"z": draws}}), model=model)


def test_a_site_that_never_moves_has_no_sensitivity():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    draws = np.stack([np.random.default_rng(0).standard_normal((1, 500)), np.ones((1, 500))], -1)
    assert power_scaling(to_arviz({"posterior": {"z": draws}}), model=model).prior["z"][1] == 0


@pytest.mark.parametrize("delta", [0.0, -0.5, float("nan")])
def test_a_delta_that_is_none(delta):
    with pytest.raises(ReductionError, match="delta is a finite number above 0"):
        power_scaling(to_arviz({"posterior": {"z": np.zeros((1, 10))}}), delta=delta, model=lambda: None)
