# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from torch.distributions import Normal

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import AutoTruncatedLogNormal, NoiseELBO, Regression, attach_noise
from tests.pruning.training.guided import NUM_EXAMPLES, all_but_certain, divergences, network


@pytest.mark.parametrize("elbo", [NoiseELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize(
    ("target", "match"),
    [((20,), r"\(20, 1\) and the targets of \(20,\)"), ((1, 1), r"\(1, 1\)"), ((20, 2), r"\(20, 2\)")],
)
def test_targets_that_broadcast_are_refused(elbo, target, match):
    model = Regression(network(outputs=1), NUM_EXAMPLES)
    with pytest.raises(ReductionError, match=match):
        elbo()(model, AutoTruncatedLogNormal(model))(torch.randn(20, 4), torch.randn(target))


def test_all_pixels_count():
    """The log likelihood of an example is the sum over them, by both losses."""
    net = attach_noise(nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 1)))
    model = Regression(net, NUM_EXAMPLES, scale=0.5)
    guide = AutoTruncatedLogNormal(model)
    all_but_certain(guide)
    x, y = torch.randn(5, 1, 6, 6), torch.randn(5, 2, 6, 6)
    expected = -Normal(net.eval()(x), 0.5).log_prob(y).sum() / 5
    expected = expected + sum(kl.sum() for kl in divergences(guide).values()) / NUM_EXAMPLES
    for elbo in (NoiseELBO, TraceMeanField_ELBO):
        torch.testing.assert_close(elbo()(model, guide)(x, y), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf"), "one"])
def test_scales_that_cannot_be(scale):
    with pytest.raises(ReductionError, match="above 0"):
        Regression(network(), 5, scale=scale)
