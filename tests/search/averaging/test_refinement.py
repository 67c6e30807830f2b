# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Evidence by the model's density: exact where the posterior is, and better than what is read off where it is not."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_bmrs import ReductionError, search_models
from tests.exact_guides import put_posterior

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("reduced", [dist.Normal(0.1, 0.3), dist.Delta(torch.tensor(0.1).double())])
def test_of_an_exact_posterior_nothing_changes(exact_guide, reduced):
    guide, *data = exact_guide(AutoMultivariateNormal)
    groups = {"one": {"first": 0}, "two": {"first": 1, "rest": [0]}, "three": {"rest": 1}}
    space = search_models(guide, {"first": reduced, "rest": reduced}, args=tuple(data), groups=groups)
    refined = space.refine()
    assert refined.strategy == "refined" and "by the model's density" in repr(refined)
    for found, expected in zip(refined.top(8), space.top(8)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    for name in ("first", "rest"):
        torch.testing.assert_close(refined.delta_evidence[name], space.delta_evidence[name], rtol=1e-6, atol=1e-7)


COUNTS = torch.tensor([3.0, 0.0, 1.0], dtype=torch.double)


def rates():
    rate = pyro.sample("rate", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("count", dist.Poisson(rate).to_event(1), obs=COUNTS)


def test_a_point_in_other_coordinates_is_nearly_the_ratio_of_evidences():
    """log Poisson(y; 1) less the log of the integral of Poisson(y; rate) over the log-normal, by quadrature."""
    u = torch.linspace(-9, 9, 4001, dtype=torch.double).unsqueeze(-1)
    log_joint = dist.Poisson(u.exp()).log_prob(COUNTS) + dist.Normal(0.0, 1.0).log_prob(u)
    exact = dist.Poisson(1.0).log_prob(COUNTS) - (log_joint.logsumexp(0) + math.log(18 / 4000))
    # A normal guide at the mode of each log rate, with its curvature there.
    mode = torch.zeros(3, dtype=torch.double)
    for _ in range(50):
        mode = mode + (COUNTS - mode.exp() - mode) / (mode.exp() + 1)
    normal = dist.MultivariateNormal(mode, (1 / (mode.exp() + 1)).diag())
    guide = put_posterior(AutoMultivariateNormal(rates), normal)
    space = search_models(guide, {"rate": dist.Delta(torch.ones(3, dtype=torch.double))})
    off, left = ((s.delta_evidence["rate"] - exact).abs() for s in (space, space.refine()))
    assert left.max() < 0.1 and left.sum() < 0.5 * off.sum()


def test_what_cannot_be_refined_is_told(exact_guide):
    point = dist.Delta(torch.tensor(0.0).double())
    guide, *data = exact_guide(AutoNormal)
    with pytest.raises(ReductionError, match="this is 2 groups, 4 models, factorised"):
        search_models(guide, {"first": point}, args=tuple(data)).refine()
    guide, *data = exact_guide(AutoMultivariateNormal)
    with pytest.raises(ReductionError, match="this is 2 groups, .* sample"):
        search_models(guide, {"first": point}, args=tuple(data), strategy="sample", num_steps=4).refine()
