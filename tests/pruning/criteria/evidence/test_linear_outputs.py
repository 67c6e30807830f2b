# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, Likelihood, Regression, attach_noise
from pyro_bmrs.pruning.criteria.evidence.linear_outputs import linear_outputs, log_likelihood_of_each
from pyro_bmrs.pruning.criteria.evidence.unit_profile import places


class Counts(Likelihood):
    """A likelihood of one's own."""

    def observation(self, output):
        return dist.Poisson(output.exp())


def perceptron(outputs):
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs))


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Flatten(2)),
    )


CASES = {
    "classes": (lambda net: Classification(net, 7), lambda: perceptron(3), (7, 3), lambda: torch.randint(3, (7,))),
    "numbers": (lambda net: Regression(net, 7, scale=0.5), lambda: perceptron(2), (7, 3), lambda: torch.randn(7, 2)),
    "counts": (lambda net: Counts(net, 7), lambda: perceptron(2), (7, 3), lambda: torch.poisson(torch.ones(7, 2))),
    "pixels": (lambda net: Classification(net, 7), convolutions, (7, 1, 5, 5), lambda: torch.randint(3, (7, 4))),
}


def prepared(case):
    torch.manual_seed(0)
    likelihood, build, shape, targets = CASES[case]
    net = attach_noise(build())
    model = likelihood(net).double()
    guide = AutoTruncatedLogNormal(model)
    guide.noise_locs.data.copy_(-torch.rand(len(guide.noise_locs)))
    at = {name: places(mean.double(), guide.noise[name].unit_prior) for name, mean in guide.mean_noise().items()}
    y = targets()
    return net.eval(), model, at, torch.randn(shape).double(), y.double() if y.is_floating_point() else y


def outputs(net, at, x, name=None, unit=None, noise=None):
    means = {site: place.mean.clone() for site, place in at.items()}
    if name is not None:
        means[name][unit] = noise
    with torch.no_grad(), poutine.condition(data=means):
        return net(x)


@pytest.mark.parametrize("case", CASES)
def test_outputs_go_along_their_tangent(case):
    """Differences of the network's outputs close to the mean say where the tangent is."""
    net, model, at, x, y = prepared(case)
    base = log_likelihood_of_each(model, outputs(net, at, x), y)
    found = linear_outputs(net, model, x, y, at)
    for name, place in at.items():
        by_place = found(name, base)
        assert by_place.shape == (len(place.mean), 3, 7) and not by_place.requires_grad
        for unit, mean in enumerate(place.mean.tolist()):
            above, below = (outputs(net, at, x, name, unit, mean + step) for step in (1e-5, -1e-5))
            for column, noise in enumerate(place.noise[unit].tolist()):
                moved = outputs(net, at, x) + (above - below) / 2e-5 * (noise - mean)
                expected = log_likelihood_of_each(model, moved, y) - base
                torch.testing.assert_close(by_place[unit, column], expected, rtol=1e-5, atol=1e-6)


def test_the_log_likelihood_of_each_example():
    net, model, at, x, y = prepared("pixels")
    output = outputs(net, at, x)
    expected = -F.cross_entropy(output, y, reduction="none").sum(-1)
    torch.testing.assert_close(log_likelihood_of_each(model, output, y), expected)


def test_networks_that_it_is_not_for():
    torch.manual_seed(0)
    for net, shape in (
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 33)), (2, 3)),
        (
            nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(12, 2)),
            (2, 3, 4),
        ),
    ):
        model = Classification(attach_noise(net), 2)
        guide = AutoTruncatedLogNormal(model)
        at = {name: places(mean, guide.noise[name].unit_prior) for name, mean in guide.mean_noise().items()}
        assert linear_outputs(net.eval(), model, torch.randn(shape), torch.tensor([0, 1]), at) is None
