# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Draws that other packages made, as they made them, of a regression whose evidence is an integral in one dimension."""

from __future__ import annotations

import math
from functools import cache
from importlib.metadata import version
from pathlib import Path

import arviz
import numpy as np
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
import xarray

from pyro_bmrs import ReductionError, prior_sensitivity, reduce_model, search_models
from tests.posteriors.data.sample_elsewhere import data

FILES = Path(__file__).parent / "data"
# What each language calls the two slopes.
SLOPES = {"numpyro": ["b"], "pymc": ["b"], "bambi": ["age", "dose"], "cmdstan": ["beta"]}


@cache
def log_evidence(scale: float | tuple[float, float]) -> float:
    """With slopes of this scale; the noise's, of which the prior is half-normal, is integrated by quadrature."""
    x, y = data()
    of_means = 25.0 + x * np.square(scale) @ x.T

    def log_density(sigma):
        noise = scipy.stats.halfnorm(scale=0.5).logpdf(sigma)
        return scipy.stats.multivariate_normal(np.zeros(30), of_means + sigma**2 * np.eye(30)).logpdf(y) + noise

    sigmas = np.linspace(0.3, 2.5, 221)
    values = np.array([log_density(sigma) for sigma in sigmas])
    return values.max() + math.log(scipy.integrate.simpson(np.exp(values - values.max()), x=sigmas))


def read(language: str) -> xarray.Dataset:
    return xarray.load_dataset(FILES / f"{language}.nc", engine="scipy")


def tree_of(posterior: xarray.Dataset) -> xarray.DataTree:
    return xarray.DataTree.from_dict({"posterior": posterior})


# What ArviZ holds data in, which was its own before version 1.
data_of = tree_of if version("arviz") >= "1" else lambda posterior: arviz.InferenceData(posterior=posterior)
FORMS = {"data": data_of, "tree": tree_of, "extract": lambda posterior: arviz.extract(data_of(posterior))}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("language", SLOPES)
def test_the_change_in_log_evidence_is_the_exact_one(language, form):
    sites = SLOPES[language]
    reduced, prior = ({name: dist.Normal(0.0, scale) for name in sites} for scale in (0.5, 1.0))
    reduction = reduce_model(FORMS[form](read(language)), reduced, prior=prior)
    exact = log_evidence(0.5) - log_evidence(1.0)
    assert reduction.delta_evidence.item() == pytest.approx(exact, abs=4 * reduction.standard_error.item())
    assert reduction.standard_error < 0.05 and reduction.pareto_k < 0.7
    assert reduction.fitted.num_chains == 2


@pytest.mark.parametrize("language", SLOPES)
def test_what_was_drawn_beside_the_slopes_is_there_under_the_reduced_prior(language):
    posterior, sites = read(language), SLOPES[language]
    stated = {name: dist.Normal(0.0, 1.0) for name in sites}
    reduction = reduce_model(posterior, {name: dist.Normal(0.0, 0.6) for name in sites[:1]}, prior=stated)
    drawn = reduction.to_arviz(200).posterior
    assert set(drawn.data_vars) == set(posterior.data_vars)
    if "ratio" in drawn:
        np.testing.assert_allclose(drawn["ratio"], drawn["b"][..., 0] / drawn["sigma"], rtol=1e-5)
    labels = {"b": ["b[age]", "b[dose]"], "beta": ["beta[age]", "beta[dose]"], "age": ["age"]}
    assert list(reduction.summary().index) == labels[sites[0]]


@pytest.mark.parametrize("language", ["numpyro", "cmdstan"])
def test_sensitivity_to_the_scale_of_the_slopes(language):
    (site,) = SLOPES[language]
    found = prior_sensitivity(
        read(language), site, grid=[0.4, 1.0, 2.0], prior={site: dist.Normal(torch.zeros(2), 1.0)}
    )
    for place, scale in enumerate([0.4, 1.0, 2.0]):
        exact = log_evidence(scale) - log_evidence(1.0)
        error = found.standard_error[place].item()
        assert found.delta_evidence[place].item() == pytest.approx(exact, abs=4 * error + 1e-6)


@pytest.mark.parametrize("language", SLOPES)
def test_models_of_some_of_the_slopes(language):
    sites = SLOPES[language]
    point, prior = dict.fromkeys(sites, dist.Delta(torch.tensor(0.0))), dict.fromkeys(sites, dist.Normal(0.0, 1.0))
    space = search_models(read(language), point, prior=prior)
    exact = np.array([log_evidence(scales) for scales in [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)]])
    exact = np.exp(exact - exact.max()) / np.exp(exact - exact.max()).sum()
    found = torch.cat([space.inclusion_probability[name].reshape(-1) for name in sites])
    # Of the normal of some hundred draws, whose noise scale is no constant.
    np.testing.assert_allclose(found, [exact[0] + exact[2], exact[0] + exact[1]], atol=0.05)
    assert [name.rpartition("[")[2].strip("]") for name in space.groups] == ["age", "dose"]
    with pytest.raises(ReductionError, match="needs the density of the model.*give log_density="):
        space.check(1)
