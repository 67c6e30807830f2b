# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Sums over discrete sites, under vmap, are those of the likelihood written out."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from pyro_bmrs.integration.log_joint import LogJoint

Y = torch.tensor([0.3, 2.2, 1.9, -0.4])


def test_a_mixture_with_a_local_assignment():
    def model(y):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        locs = pyro.sample("locs", dist.Normal(torch.arange(3.0), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            side = pyro.sample("side", dist.Categorical(weights))
            pyro.sample("y", dist.Normal(locs[side], 0.5), obs=y)

    log_joint = LogJoint(model, (Y,))
    points = torch.randn(6, log_joint.dim)
    values = log_joint.values(points)
    inside = dist.Normal(values["locs"][:, None], 0.5).log_prob(Y[:, None]) + values["weights"].log()[:, None]
    likelihood = inside.logsumexp(-1).sum(-1)
    prior = dist.Normal(torch.arange(3.0), 1.0).log_prob(values["locs"]).sum(-1)
    simplex = torch.distributions.biject_to(dist.constraints.simplex)
    jacobian = simplex.log_abs_det_jacobian(points[:, :2], values["weights"])
    expected = likelihood + prior + dist.Dirichlet(torch.ones(3)).log_prob(values["weights"]) + jacobian
    torch.testing.assert_close(log_joint(points), expected, rtol=1e-5, atol=1e-4)


def test_two_sites_of_which_one_depends_on_the_other():
    transition = torch.tensor([[0.9, 0.1], [0.3, 0.7]])

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        first = pyro.sample("first", dist.Categorical(torch.tensor([0.4, 0.6])))
        second = pyro.sample("second", dist.Categorical(transition[first]))
        pyro.sample("y", dist.Normal(loc + first + 10.0 * second, 1.0), obs=torch.tensor(1.0))

    log_joint = LogJoint(model)
    points = torch.tensor([[0.0], [0.7]])
    total = torch.zeros(2)
    for first in (0, 1):
        for second in (0, 1):
            weight = torch.tensor([0.4, 0.6])[first] * transition[first, second]
            total += weight * dist.Normal(points[:, 0] + first + 10.0 * second, 1.0).log_prob(torch.tensor(1.0)).exp()
    expected = total.log() + dist.Normal(0.0, 1.0).log_prob(points[:, 0])
    torch.testing.assert_close(log_joint(points), expected, rtol=1e-5, atol=1e-5)
