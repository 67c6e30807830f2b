# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models, guides and short fits that tests of several rooms ask about."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO


def model(y=None):
    pyro.sample("weights", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("bias", dist.Normal(0.0, 1.0))
    pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("coins", 2):
        pyro.sample("coin", dist.Bernoulli(0.5), infer={"enumerate": "parallel"}, obs=y)


def one_site():
    pyro.sample("z", dist.Normal(0.0, 1.0))


Y = torch.ones(2)


STANDARD = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
NARROW = dist.Normal(torch.zeros((), dtype=torch.float64), 0.2)


def fit(model, guide, *args, steps=5, loss=Trace_ELBO):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss())
    for _ in range(steps):
        svi.step(*args)
    return guide


def goes_on(reduction, *args):
    """The reduced guide and model take further SVI steps together."""
    svi = SVI(reduction.model, reduction.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(math.isfinite(svi.step(*args)) for _ in range(3))


def hierarchical(y):
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.2))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def two_sites(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Gamma(2.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a, b), obs=y)
