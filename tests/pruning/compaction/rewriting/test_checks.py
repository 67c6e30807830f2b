# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What there can be no compact network of is said before anything is done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import attach_noise, compact_gated, noise_sites
from pyro_bmrs.pruning.compaction.rewriting.checks import check_comparable, check_weights, checked_gates


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"round_to": value}, "round_to") for value in (0, -8, 8.0, True, "fast")),
        *(({"batch_sizes": value}, "batch_sizes") for value in ((0,), (1, 2.0), (True,))),
    ],
)
def test_sizes(options: dict[str, Any], message: str) -> None:
    net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(ReductionError, match=message):
        compact_gated(net, {"0": torch.ones(4)}, noise_sites(net), torch.ones(1, 3), **options)


def test_gates_have_the_precision_of_the_weights() -> None:
    net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double())
    assert checked_gates(net, {"0": torch.ones(4)}, noise_sites(net))["0"].dtype is torch.float64
    with pytest.raises(ReductionError, match="not negative"):
        checked_gates(net, {"0": -torch.ones(4)}, noise_sites(net))


def test_weights_are_numbers() -> None:
    net = nn.Linear(3, 4)
    net.weight.data[0, 0] = torch.nan
    with pytest.raises(ReductionError, match="1 in weight"):
        check_weights(net)


def test_an_output_that_is_random() -> None:
    class Noisy(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + torch.randn(4)

    with pytest.raises(ReductionError, match="random"):
        check_comparable(Noisy(3, 4), torch.ones(2, 3))
