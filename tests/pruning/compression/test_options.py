# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import Classification, Regression, attach_noise
from pyro_bmrs.pruning.compression.options import check_odds, likelihood_for


def test_integers_are_labels_and_real_numbers_are_not():
    assert likelihood_for(torch.arange(3)) is Classification
    assert likelihood_for(torch.randn(3).half()) is Regression


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.complex64])
def test_targets_that_may_mean_many_things(dtype):
    with pytest.raises(ReductionError, match="likelihood="):
        likelihood_for(torch.zeros(5, dtype=dtype))


def test_odds_are_of_all_sites():
    net = attach_noise(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)))
    check_odds(net, 1.0)
    check_odds(net, {"0": 1.0, "2": 0.0})
    with pytest.raises(ReductionError, match="noise sites"):
        check_odds(net, {"0": 1.0})
