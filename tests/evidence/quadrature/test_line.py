# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import transforms

from pyro_bmrs.distributions import LogUniform, TruncatedNormal
from pyro_bmrs.evidence.quadrature.line import Interval, Line, support_interval


@pytest.mark.parametrize(
    ("distribution", "low", "high"),
    [
        (dist.Normal(0.0, 1.0), -math.inf, math.inf),
        (dist.Gamma(2.0, 1.0), 0.0, math.inf),
        (dist.HalfCauchy(1.0), 0.0, math.inf),
        (dist.Beta(2.0, 1.0), 0.0, 1.0),
        (dist.Uniform(-1.0, 2.0), -1.0, 2.0),
        (dist.Pareto(2.0, 1.0), 2.0, math.inf),
        (dist.VonMises(0.0, 1.0), -math.pi, math.pi),
        (LogUniform(0.5, 2.0), 0.5, 2.0),
        (TruncatedNormal(0.0, 1.0, -math.inf, 2.0), -math.inf, 2.0),
        (dist.LogNormal(0.0, 1.0), 0.0, math.inf),
        (dist.TransformedDistribution(dist.HalfCauchy(1.0), [transforms.AffineTransform(1.0, -2.0)]), -math.inf, 1.0),
        (dist.TransformedDistribution(dist.Beta(1.0, 2.0), [transforms.AffineTransform(1.0, 2.0)]), 1.0, 3.0),
        (dist.TransformedDistribution(dist.Uniform(0.0, 2.0), [transforms.ExpTransform()]), 1.0, math.exp(2.0)),
        (
            dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Gamma(torch.ones(2), 1.0)),
            0.0,
            math.inf,
        ),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, torch.distributions.Distribution) else str(x),
)
def test_supports(distribution, low: float, high: float) -> None:
    interval = support_interval(distribution)
    assert (float(interval.low), float(interval.high)) == pytest.approx((low, high), rel=1e-6)


@pytest.mark.parametrize(
    "distribution", [dist.Poisson(1.0), dist.Dirichlet(torch.ones(3)), dist.Normal(torch.zeros(2), 1.0).to_event(1)]
)
def test_what_is_no_interval_of_scalars_has_none(distribution) -> None:
    assert support_interval(distribution) is None


INTERVALS = [
    Interval(),
    Interval(0.0),
    Interval(2.5),
    Interval(-math.inf, -1.0),
    Interval(0.0, 1.0),
    Interval(-3.0, 1e-3),
    Interval(torch.tensor([-math.inf, 0.0, -1.0]), torch.tensor([math.inf, math.inf, 2.0])),
]


@pytest.mark.parametrize("interval", INTERVALS)
def test_the_coordinate_runs_strictly_inside_the_interval_and_back(interval: Interval) -> None:
    centre, width = torch.zeros(3, dtype=torch.float64), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    line = Line(interval, centre, width)
    low, high = line.ends()
    t = low + torch.linspace(0, 1, 201, dtype=torch.float64).unsqueeze(-1) * (high - low)
    x, log_slope = line.at(t)
    assert ((x > interval.low) & (x < interval.high)).all()
    assert torch.isfinite(x).all()
    assert torch.isfinite(log_slope).all()
    assert (x.diff(dim=0) >= 0).all()
    inner = 0.5 * torch.linspace(-1, 1, 21, dtype=torch.float64).unsqueeze(-1).expand(21, 3).clone()
    x, log_slope = line.at(inner.requires_grad_())
    torch.testing.assert_close(line.find(x), inner, rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(x.sum(), inner)
    torch.testing.assert_close(slope.log(), log_slope, rtol=1e-9, atol=1e-9)


def test_intersections_and_what_is_outside() -> None:
    both = Interval(0.0).intersection(Interval(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 3.0])))
    assert both.low.tolist() == [0.0, 2.0]
    assert both.high.tolist() == [1.0, 3.0]
    assert Interval(torch.tensor([-1.0, 2.0])).outside(Interval(0.0)).tolist() == [True, False]
    assert not Interval().outside(Interval()).any()
    assert Interval(0.0).outside(Interval(0.0, 9.0)).all()
