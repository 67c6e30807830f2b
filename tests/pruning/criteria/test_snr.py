# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import SNR, prune
from tests.pruning.criteria.guided import fitted


def test_it_is_that_of_a_truncated_normal_s_exponential():
    """By the moments of exp(t) under a normal density on a fine grid of [-20, 0]."""
    net, guide = fitted()
    guide.noise["2"].kept[0] = False
    t = torch.linspace(-20.0, 0.0, 400_001).double().unsqueeze(-1)
    for name, score in SNR().scores(net, guide).items():
        posterior, kept = guide.noise_posterior(name), guide.noise[name].kept
        log_density = -0.5 * ((t - posterior.loc) / posterior.scale).square().detach()
        weights = (log_density - log_density.amax(0)).exp()
        weights[[0, -1]] *= 0.5
        mean = (weights * t.exp()).sum(0) / weights.sum(0)
        square = (weights * (2 * t).exp()).sum(0) / weights.sum(0)
        torch.testing.assert_close(score[kept], (mean / (square - mean**2).sqrt())[kept], rtol=1e-4, atol=0)
        assert (score[~kept] == 0).all()


def test_it_decides_at_its_threshold():
    for threshold in (1.0, 3.0):
        net, guide = fitted()
        snr = SNR(threshold).scores(net, guide)
        result = prune(net, guide, SNR(threshold))
        for name, removed in result.removed.items():
            assert torch.equal(removed, snr[name] <= threshold)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), None])
def test_thresholds_that_are_no_numbers(threshold):
    with pytest.raises(ReductionError, match="finite number"):
        SNR(threshold)
