# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.testing import assert_allclose

from pyro_bmrs.pruning.noise.steps.law import LogUniforms, find_law
from tests.pruning.noise.steps.many_units import DOUBLE, ends, parameters


def test_intervals_are_seen_from_the_end_that_is_nearer():
    loc, log_scale = (part.detach() for part in parameters())
    law = find_law(np, torch.stack([loc, log_scale]).numpy(), LogUniforms.of(ends(loc).exp(), DOUBLE))
    unit = math.sqrt(2.0) * log_scale.exp().numpy()
    assert_allclose(np.abs(law.unit), unit, rtol=1e-15)
    # From the start to the end of each, from the nearer end to the other one.
    places = law.loc + law.unit * law.ends
    is_upper = loc.numpy() > -10.0
    assert (law.is_lower != is_upper).all()
    for place, end in zip(places, np.where(is_upper, [[0.0], [-20.0]], [[-20.0], [0.0]])):
        assert_allclose(place, end, rtol=1e-13, atol=1e-11)
    assert_allclose(law.length, 20.0 / unit, rtol=1e-14)
    assert (np.abs(law.ends[0]) <= np.abs(law.ends[1])).all()


def test_exponentials_of_what_is_inside_are_not_outside():
    low = torch.logspace(-30.0, 1.0, 1000, dtype=DOUBLE)
    for dtype in (torch.float32, DOUBLE):
        bounds = torch.stack([low, 3 * low]).to(dtype)
        inside = torch.from_numpy(LogUniforms.of(bounds, dtype).inside).exp().to(dtype)
        assert (inside[0] >= bounds[0]).all() and (inside[1] <= bounds[1]).all()
        torch.testing.assert_close(inside, bounds, rtol=1e-12, atol=0.0)


def test_some_of_the_units():
    loc, _ = parameters(torch.float32)
    priors, some = LogUniforms.of(torch.rand(2, len(loc)).sort(0).values, torch.float32), torch.tensor([4, 2])
    part = priors.at(some)
    for name in ("log_ends", "inside", "widths", "log_widths"):
        assert (getattr(part, name) == getattr(priors, name)[..., some.numpy()]).all()
    assert part.nodes is priors.nodes
