# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from pyro_bmrs.pruning.criteria.evidence.unit_moments import Moments, UnitLikelihoods


def filled(exact, linear=None, some=None):
    """Of one unit, given values of shape ``(3, examples)``."""
    found = UnitLikelihoods.nothing(1)
    some = torch.arange(exact.shape[-1]) if some is None else torch.tensor(some)
    found.add(exact[:, some].unsqueeze(0), None if linear is None else linear.unsqueeze(0), some, torch.tensor([True]))
    return found


def test_the_moments_of_examples():
    values = torch.randn(2, 4, 7).double()
    found = Moments.nothing(2, 4)
    for part in values.split(3, -1):
        found.add(part, torch.tensor([True, True]))
    assert found.count == 7
    np.testing.assert_allclose(found.mean[1], values[1].mean(-1))
    np.testing.assert_allclose(found.covariance[1], np.cov(values[1]))


def test_units_that_are_gone_have_none():
    found, kept = Moments.nothing(2, 3), torch.tensor([True, False])
    found.add(torch.tensor([1.0, torch.nan])[:, None, None].expand(2, 3, 4), kept)
    assert found.values.tolist() == [[4.0] * 3, [0.0] * 3]


def test_some_examples_over_all_ways_to_draw_them():
    """The mean over all draws is the whole, and the variance over them is, on average, what each says."""
    torch.manual_seed(0)
    whole = torch.randn(3, 7).double() + 2
    draws = [filled(whole, some=some) for some in combinations(range(7), 4)]
    totals = torch.stack([found.values_of(7)[0] for found in draws])
    torch.testing.assert_close(totals.mean(0), whole.sum(-1))
    said = torch.stack([found.covariance_of(7)[0] for found in draws]).mean(0)
    np.testing.assert_allclose(said, np.cov(totals.T, ddof=0))
    assert not filled(whole).covariance_of(7).abs().gt(1e-9).any()


def test_a_linear_part_that_is_known_of_all_examples():
    torch.manual_seed(0)
    linear = torch.randn(3, 7).double()
    exact = linear + 0.1 * torch.randn(3, 7).double()
    draws = [filled(exact, linear, some) for some in combinations(range(7), 4)]
    totals = torch.stack([found.values_of(7)[0] for found in draws])
    torch.testing.assert_close(totals.mean(0), exact.sum(-1))
    said = torch.stack([found.covariance_of(7)[0] for found in draws]).mean(0)
    np.testing.assert_allclose(said, np.cov(totals.T, ddof=0), atol=1e-12)


@pytest.mark.parametrize("agreement", [0.0, 0.7, 0.99])
def test_a_linear_part_counts_as_far_as_it_goes_along(agreement):
    """By draws: errors are what they say, and never much larger than without it."""
    torch.manual_seed(0)
    linear = 3 * torch.randn(3, 400).double()
    exact = agreement * linear + 3 * math.sqrt(1 - agreement**2) * torch.randn(3, 400).double()
    draws = [filled(exact, linear, torch.randperm(400)[:60].tolist()) for _ in range(300)]
    scatter = torch.stack([found.values_of(400)[0] for found in draws]) - exact.sum(-1)
    said = torch.stack([found.covariance_of(400)[0].diagonal() for found in draws]).mean(0).sqrt()
    ratio = scatter.square().mean(0).sqrt() / said
    assert ((ratio > 0.85) & (ratio < 1.2)).all()
    without = torch.stack([filled(exact[:, :60]).covariance_of(400)[0].diagonal()]).sqrt()
    assert (said < 1.25 * min(1, math.sqrt(2 - 2 * agreement)) * without).all()


def test_a_linear_part_that_is_known_of_some():
    """What is not looked at at all varies as what is exact does."""
    torch.manual_seed(0)
    linear = torch.randn(3, 6).double()
    exact = linear + 0.1 * torch.randn(3, 6).double()
    found = filled(exact, linear, [0, 3])
    both = np.cov(exact[:, [0, 3]]), np.cov((exact - linear)[:, [0, 3]])
    expected = 60 * (60 / 6 - 1) * both[0] + 60**2 * (1 / 2 - 1 / 6) * both[1]
    np.testing.assert_allclose(found.covariance_of(60)[0], expected)
    assert (found.num_evaluated, found.exact.count) == (6, 2)


def test_slopes():
    found = UnitLikelihoods.nothing(2)
    for count in (1, 2, 3):
        found.add_slope(torch.tensor([1.0, 2.0]), count)
    torch.testing.assert_close(found.slope_of(60), torch.tensor([30.0, 60.0]).double())


def test_a_unit_that_is_active_in_one_example():
    """What linear outputs miss there is an error that is left."""
    exact = torch.zeros(3, 50).double()
    exact[:, [3, 20]] = -2.0
    found = filled(exact, 1.5 * exact, list(range(10)))
    said = found.covariance_of(50)[0].diagonal().sqrt()
    assert ((found.values_of(50)[0] - exact.sum(-1)).abs() < 2 * said).all() and (said > 0.5).all()
