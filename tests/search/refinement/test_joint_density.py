# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The model's density in the coordinates of a normal, and the normal that the model's own integral has."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_bmrs import ReductionError, search_models
from pyro_bmrs.posteriors.reading import read_guide
from pyro_bmrs.reduction.priors import match_prior
from pyro_bmrs.search.groups import read_groups
from pyro_bmrs.search.refinement.joint_density import normal_of_integral
from tests import conjugate

pytestmark = pytest.mark.usefixtures("double")


def test_the_normal_of_the_integral_is_the_posterior_whatever_the_guide(exact_guide):
    guide, x, y = exact_guide(AutoNormal)
    with torch.no_grad():
        guide.locs.first.add_(0.3)
    fitted = read_guide(guide, args=(x, y))
    priors = {name: fitted.prior(name) for name in ("first", "rest")}
    reduced = {name: match_prior(name, dist.Delta(torch.tensor(0.1)), prior) for name, prior in priors.items()}
    groups = read_groups("element", {name: torch.Size([2]) for name in priors})
    space, num_evaluations, shift = normal_of_integral(fitted, priors, reduced, groups)
    exact = conjugate.exact_posterior(x, y, *conjugate.prior(4))
    torch.testing.assert_close(space.loc, exact.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(space.rows @ space.rows.mT, exact.covariance_matrix, atol=1e-3, rtol=0.05)
    assert num_evaluations > 1000
    deviations = 0.3 / float(exact.stddev[:2].min())
    assert shift.site == "first" and shift.deviations == pytest.approx(deviations, rel=0.2) and shift.is_far


def other_supports():
    width = pyro.sample("width", dist.LogNormal(0.0, 0.1))
    pyro.sample("within", dist.Uniform(0.0, width))
    pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.1))


def test_coordinates_that_are_not_those_of_the_model_are_told():
    guide = AutoMultivariateNormal(other_supports)
    guide()
    space = search_models(guide, {"weights": dist.Delta(torch.tensor(0.0))})
    with pytest.raises(ReductionError, match="different coordinates.*the support of a site depends on another"):
        space.refine()
