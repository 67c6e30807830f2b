# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Coordinates of a site in which its prior is the same whatever its location and scale are."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs.integration.coordinates import is_standardisable, site_transform

PRIORS = [
    dist.Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])),
    dist.Normal(torch.tensor([1.0, -2.0]), 0.1).to_event(1),
    dist.StudentT(4.0, torch.tensor([1.0, 5.0]), 2.0),
    dist.Cauchy(torch.tensor(3.0), 2.0).expand([2]),
    dist.Laplace(torch.zeros(2), torch.tensor([0.1, 10.0])),
    dist.LogNormal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])),
    dist.HalfNormal(torch.tensor([0.1, 3.0])),
    dist.HalfCauchy(torch.tensor([0.1, 3.0])).to_event(1),
    dist.MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
]


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
def test_standardised_coordinates_have_one_density_whatever_the_location_and_the_scale(prior):
    """Log prior and Jacobian together: for a normal, the standard normal's; no parameter is left in it."""
    assert is_standardisable(prior)
    transform = site_transform(prior, standardised=True)
    points = torch.randn(2)
    values = transform(points)
    density = prior.log_prob(values).sum() + transform.log_abs_det_jacobian(points, values).sum()
    shape = type(prior.base_dist if prior.event_shape and hasattr(prior, "base_dist") else prior)
    standard = {
        dist.StudentT: dist.StudentT(4.0),
        dist.Cauchy: dist.Cauchy(0.0, 1.0),
        dist.Laplace: dist.Laplace(0.0, 1.0),
    }
    if shape in (dist.HalfNormal, dist.HalfCauchy):
        base = shape(1.0)
        expected = (base.log_prob(points.exp()) + points).sum()
    else:
        core = next((own for kind, own in standard.items() if kind is shape), dist.Normal(0.0, 1.0))
        core = dist.Cauchy(0.0, 1.0) if "Cauchy" in repr(prior) else core
        expected = core.log_prob(points).sum()
    torch.testing.assert_close(density, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(transform.inv(values), points, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prior", [dist.Gamma(2.0, 1.0), dist.Beta(1.0, 1.0), dist.Dirichlet(torch.ones(3))])
def test_other_priors_keep_the_coordinates_of_their_support(prior):
    assert not is_standardisable(prior)
    assert site_transform(prior, standardised=True) == site_transform(prior)


def test_a_mixture_with_a_point_has_the_coordinates_of_the_prior():
    point = dist.Delta(torch.zeros(2))
    mixture = dist.MaskedMixture(torch.tensor([True, False]), dist.Gamma(torch.ones(2), 1.0), point).to_event(1)
    assert site_transform(mixture).codomain is dist.constraints.positive or site_transform(mixture)(torch.zeros(1)) == 1
