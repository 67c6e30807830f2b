# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The mixture of Student-t distributions that proposals are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from pyro_bmrs.integration.importance.proposals import DEGREES_OF_FREEDOM, StudentMixture

COVARIANCE = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
LOC = torch.tensor([1.0, -3.0], dtype=torch.float64)


def test_its_density_is_that_of_scipy():
    points = 3 * torch.randn(50, 2, dtype=torch.float64) + LOC
    parts = [scipy.stats.multivariate_t(LOC, COVARIANCE, df).pdf(points) for df in DEGREES_OF_FREEDOM]
    actual = StudentMixture(LOC.unsqueeze(0), COVARIANCE.unsqueeze(0)).log_prob(points)
    assert np.log(np.mean(parts, 0)) == pytest.approx(actual.numpy(), rel=1e-12)


def test_components_and_tails_have_their_shares():
    points, shares = 3 * torch.randn(50, 2, dtype=torch.float64), np.array([[0.1, 0.2, 0.3], [0.4, 0.0, 0.0]])
    locs, covariances = torch.stack([LOC, -LOC]), torch.stack([COVARIANCE, torch.eye(2, dtype=torch.float64)])
    parts = [
        share * scipy.stats.multivariate_t(loc, covariance, df).pdf(points)
        for loc, covariance, row in zip(locs, covariances, shares)
        for df, share in zip(DEGREES_OF_FREEDOM, row)
    ]
    actual = StudentMixture(locs, covariances, torch.from_numpy(shares)).log_prob(points)
    assert np.log(np.sum(parts, 0)) == pytest.approx(actual.numpy(), rel=1e-12)


def test_it_draws_from_its_density():
    """The mean of 1/q over draws from q, within a box, is the box's area."""
    locs, covariances = torch.stack([LOC, LOC + 2.0]), torch.stack([COVARIANCE, 0.3 * COVARIANCE])
    mixture = StudentMixture(locs, covariances, torch.tensor([[0.1, 0.1, 0.4], [0.2, 0.1, 0.1]]).double())
    draws = mixture.sample(300_000)
    inside = ((draws - LOC).abs() < 1.0).all(-1)
    area = torch.where(inside, (-mixture.log_prob(draws)).exp(), 0.0)
    assert float(area.mean()) == pytest.approx(4.0, abs=5 * float(area.std()) / 300_000**0.5)
