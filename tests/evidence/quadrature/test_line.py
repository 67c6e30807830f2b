# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch

from pyro_bmrs.evidence.quadrature.line import Line
from pyro_bmrs.evidence.support import Interval

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
