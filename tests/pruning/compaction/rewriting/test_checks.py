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


def test_an_auxiliary_head_says_what_it_would_not_run_on() -> None:
    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.last = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)
            self.aux = nn.Sequential(nn.Conv2d(4, 5, 5), nn.ReLU(), nn.Conv2d(5, 2, 1))

        def forward(self, images: torch.Tensor) -> Any:
            seen = self.act(self.first(images))
            output = self.last(seen).mean((2, 3))
            return (output, self.aux(seen).mean((2, 3))) if self.training else output

    net = attach_noise(WithHead())
    sites = noise_sites(net)
    gates = {name: torch.arange(site.noise.num_units) % 2.0 for name, site in sites.items()}
    with pytest.raises(ReductionError, match=r"in training it does not run on them \(RuntimeError: .*[Kk]ernel size"):
        compact_gated(net, gates, sites, torch.ones(2, 1, 5, 5))
    small = compact_gated(net, gates, sites, torch.ones(2, 1, 8, 8))
    assert small.aux[0].in_channels == 2 and small.train()(torch.ones(2, 1, 8, 8))[1].shape == (2, 2)
