# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Densities at many draws at once."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs.posteriors.draws import log_density

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize(
    "make, inside",
    [
        (lambda bound: dist.Uniform(-1.0, bound), lambda x: (x >= -1) & (x <= 1)),
        (lambda bound: dist.HalfNormal(bound), lambda x: x >= 0),
        (lambda bound: dist.Uniform(-bound.expand(3), 1.0).to_event(1), lambda x: (x >= -1) & (x <= 1)),
    ],
)
def test_log_density_is_minus_infinity_outside_the_support_and_has_a_clean_gradient(make, inside):
    bound = torch.tensor(1.0, requires_grad=True)
    distribution = make(bound)
    values = torch.linspace(-3.0, 3.0, 14).reshape((14,) + (1,) * len(distribution.event_shape))
    values = values.expand((14,) + distribution.event_shape)
    density = log_density(distribution, values)
    assert density.shape == values.shape
    assert torch.equal(density == -torch.inf, ~inside(values))
    (gradient,) = torch.autograd.grad(density.logsumexp(0).sum(), bound)
    assert gradient.isfinite()
