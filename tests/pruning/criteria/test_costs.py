# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import (
    attach_noise,
    in_proportion_to_cost,
    unit_costs,
)


def test_a_network_without_noise_has_no_units_to_cost():
    with pytest.raises(ReductionError, match="no noise"):
        unit_costs(nn.Linear(2, 2))


def test_costs_count_weights_and_multiplications():
    net = attach_noise(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 5), nn.ReLU(), nn.Linear(5, 2))
    )
    assert unit_costs(net) == {"0": 18, "3": 48}
    assert unit_costs(net, torch.randn(4, 2, 6, 6)) == {"0": 18 * 16, "3": 48}
    odds = in_proportion_to_cost(net, torch.randn(1, 2, 6, 6), mean=2.0)
    assert odds["0"] / odds["3"] == pytest.approx(6)
    assert (3 * odds["0"] + 5 * odds["3"]) / 8 == pytest.approx(2.0)
    roots = in_proportion_to_cost(net, torch.randn(1, 2, 6, 6), mean=2.0, power=0.5)
    assert roots["0"] / roots["3"] == pytest.approx(6**0.5)
    assert (3 * roots["0"] + 5 * roots["3"]) / 8 == pytest.approx(2.0)
