# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Spaces of models from draws, against conjugate regressions whose evidence is known for every model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import ReductionError, ReductionWarning, search_models
from tests import conjugate
from tests.search.regression import every_model
from tests.search.spaces import reduced_to

pytestmark = pytest.mark.usefixtures("double")


def draws(count: int) -> dict[str, torch.Tensor]:
    """Of the exact posterior of the conjugate regression."""
    joint = conjugate.exact_posterior(*conjugate.data(), *conjugate.prior(4)).sample((count,))
    return {"first": joint[:, :2], "rest": joint[:, 2:]}


@pytest.mark.parametrize("kind", ["normal", "point"])
def test_models_of_draws_are_as_probable_as_they_are(kind):
    x, y = conjugate.data()
    reduced = dist.Normal(0.1, 0.3) if kind == "normal" else dist.Delta(torch.tensor(0.1))
    space = search_models(draws(4000), {"first": reduced, "rest": reduced}, model=conjugate.model, args=(x, y))
    assert space.strategy == "exhaustive" and "of the normal of the draws' moments" in repr(space)
    states = torch.tensor(every_model(4))
    exact = torch.stack([conjugate.log_evidence(x, y, *reduced_to(kind, state)) for state in states]).softmax(0)
    inclusion = torch.cat([space.inclusion_probability[name] for name in ("first", "rest")])
    torch.testing.assert_close(inclusion, exact @ (~states).double(), atol=0.05, rtol=0)
    assert space.best.guide().keys() >= {"first", "rest"}


def test_the_best_models_of_draws_are_held_against_the_model():
    x, y = conjugate.data()
    point = dist.Delta(torch.tensor(0.0))
    space = search_models(draws(2000), {"rest": point}, model=conjugate.model, args=(x, y), check=1)
    assert space.checks[0].agrees


def scale_model():
    pyro.sample("scale", dist.Normal(torch.zeros(1), 1.0).to_event(1))


def test_draws_far_from_normal_are_told():
    skewed = {"scale": dist.Gamma(1.0, 1.0).sample((4000, 1)) - 1}
    with pytest.warns(ReductionWarning, match="draws of site 'scale' are far from normal .skewness [12]"):
        search_models(skewed, dist.Normal(0.0, 0.1), model=scale_model)


def label_model():
    pyro.sample("label", dist.Bernoulli(0.5))
    pyro.sample("scale", dist.Normal(torch.zeros(1), 1.0).to_event(1))


def test_discrete_draws_are_refused():
    given = {"label": torch.ones(100), "scale": torch.randn(100, 1)}
    with pytest.raises(ReductionError, match=r"discrete sites, \['label'\], whose models no normal stands for"):
        search_models(given, {"scale": dist.Normal(0.0, 0.1)}, model=label_model)


def test_draws_too_few_for_their_coordinates_are_refused():
    by_chain = {"scale": torch.randn(4, 250, 3)}
    with pytest.raises(ReductionError, match="4 draws are too few for the covariance of 750 coordinates.*by chain"):
        search_models(by_chain, dist.Normal(0.0, 0.1), prior={"scale": dist.Normal(0.0, 1.0)})
