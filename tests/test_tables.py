# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What tables call the elements of a site, and what they say of them."""

from __future__ import annotations

import math

import arviz
import pyro.distributions as dist
import pytest
import scipy.integrate
import torch

from pyro_bmrs.arviz_adapter import to_arviz
from pyro_bmrs.tables import element_labels, moments


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_labels_are_those_of_arviz(shape):
    draws = torch.randn(2, 50, *shape).numpy()
    table = arviz.summary(to_arviz({"posterior": {"w": draws}}), kind="stats")
    assert element_labels("w", torch.Size(shape)) == list(table.index)


def test_an_empty_site_has_no_labels():
    assert element_labels("w", torch.Size([0, 3])) == []


def test_moments_in_closed_form_are_of_the_shape_of_the_elements():
    gamma = dist.Gamma(torch.tensor([2.0, 3.0]), 4.0).expand([5, 2]).to_event(1)
    mean, sd = moments(gamma, torch.Size([5, 2]))
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.75]).expand(5, 2))
    torch.testing.assert_close(sd, torch.tensor([2**0.5 / 4, 3**0.5 / 4]).expand(5, 2))


def test_moments_without_a_closed_form_are_those_of_draws():
    squashed = dist.TransformedDistribution(dist.Normal(torch.tensor([0.3]), 0.8), [dist.transforms.SigmoidTransform()])
    with pytest.raises(NotImplementedError):
        squashed.mean  # noqa: B018

    def moment(power):
        def integrand(x):
            return (
                (1 + math.exp(-x)) ** -power * math.exp(-0.5 * ((x - 0.3) / 0.8) ** 2) / (0.8 * math.sqrt(2 * math.pi))
            )

        return scipy.integrate.quad(integrand, -8, 8)[0]

    exact = moment(1), math.sqrt(moment(2) - moment(1) ** 2)
    mean, sd = moments(squashed, torch.Size([1]))
    # Five standard errors of 4,000 draws.
    assert mean.item() == pytest.approx(exact[0], abs=5 * exact[1] / math.sqrt(4000))
    assert sd.item() == pytest.approx(exact[1], rel=5 / math.sqrt(2 * 4000))


def test_what_has_no_elements_of_that_shape_has_no_moments():
    for nothing in (None, dist.Dirichlet(torch.ones(3)), dist.Normal(0.0, 1.0)):
        mean, sd = moments(nothing, torch.Size([2]))
        assert mean.shape == sd.shape == (2,) and mean.isnan().all() and sd.isnan().all()
