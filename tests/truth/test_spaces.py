# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Inclusion probabilities from one fit, against every model fitted by itself."""

from __future__ import annotations

import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_bmrs import search_models
from tests.exact_guides import put_posterior
from tests.truth.spaces import FOLDER, regressions

TRUTH = json.loads((FOLDER / "spaces.json").read_text())
REGRESSIONS = regressions()
POINT = {"weights": dist.Delta(torch.tensor(0.0, dtype=torch.double))}


def logistic(x, y):
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=(x * weights).sum(-1)), obs=y)


def poisson(x, y):
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson((x * weights).sum(-1).exp()), obs=y)


@pytest.mark.parametrize("name", TRUTH)
def test_inclusion_probabilities_of_one_fit_are_those_of_all_models_fitted(double, name):
    regression = REGRESSIONS[name]
    _, mode, precision = regression.laplace(np.ones(regression.x.shape[1], dtype=bool))
    normal = dist.MultivariateNormal(torch.tensor(mode), precision_matrix=torch.tensor(precision))
    model = poisson if regression.kind == "poisson" else logistic
    guide = put_posterior(AutoMultivariateNormal(model), normal, torch.tensor(regression.x), torch.tensor(regression.y))
    read_off = search_models(guide, POINT, always="weights[0]", refine=False)
    assert read_off.num_models == 2 ** len(TRUTH[name])
    # Read off the fit alone, a few of the logistic ones are off by more than a twentieth.
    np.testing.assert_allclose(read_off.inclusion_probability["weights"][1:], TRUTH[name], atol=0.1)
    with pyro.settings.context(bmrs_automatic_check=True):
        space = search_models(guide, POINT, always="weights[0]")
    np.testing.assert_allclose(space.inclusion_probability["weights"][1:], TRUTH[name], atol=0.02)
    assert space.source == "model"


# Of the mean field, whose elements are taken for independent, these are off by a third and more.
@pytest.mark.parametrize("name", ["simulated 4", "simulated 8", "diabetes"])
def test_a_mean_field_is_mended_by_the_model(double, name):
    regression = REGRESSIONS[name]
    _, mode, precision = regression.laplace(np.ones(regression.x.shape[1], dtype=bool))
    normal = dist.MultivariateNormal(torch.tensor(mode), precision_matrix=torch.tensor(precision))
    guide = put_posterior(AutoNormal(logistic), normal, torch.tensor(regression.x), torch.tensor(regression.y))
    read_off = search_models(guide, POINT, always="weights[0]", refine=False)
    assert np.abs(read_off.inclusion_probability["weights"][1:].numpy() - TRUTH[name]).max() > 0.3
    with pyro.settings.context(bmrs_automatic_check=True):
        space = search_models(guide, POINT, always="weights[0]")
    np.testing.assert_allclose(space.inclusion_probability["weights"][1:], TRUTH[name], atol=0.05)
    assert space.source == "model"


@pytest.mark.parametrize("name", ["simulated 4", "nes"])
def test_models_drawn_are_weighted_by_the_model(double, name):
    regression = REGRESSIONS[name]
    _, mode, precision = regression.laplace(np.ones(regression.x.shape[1], dtype=bool))
    normal = dist.MultivariateNormal(torch.tensor(mode), precision_matrix=torch.tensor(precision))
    guide = put_posterior(AutoMultivariateNormal(logistic), normal, *map(torch.tensor, regression[1:]))
    space = search_models(guide, POINT, always="weights[0]", strategy="sample", num_steps=200, refine=True)
    np.testing.assert_allclose(space.inclusion_probability["weights"][1:], TRUTH[name], atol=0.05)
