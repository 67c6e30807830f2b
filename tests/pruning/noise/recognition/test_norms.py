# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Units that a norm comes to have no noise by themselves, and those of a sum with a norm have it behind the sum."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyro_bmrs.pruning import attach_noise, compact_gated, compaction_report, noise_sites
from tests.pruning.noise.places import places


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 6), nn.Sequential(nn.Dropout(), nn.GroupNorm(2, 6))])
def test_units_that_a_norm_is_over_have_noise_where_they_are_named(norm):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), norm, nn.Conv2d(6, 2, 3))
    assert places(copy.deepcopy(net)) == {"0": ("2", "input", 4, 1)}
    assert list(noise_sites(attach_noise(net, "2"))) == ["2"]


class Reparametrised(nn.Module):
    """As in RepVGG: two convolutions and a norm of the input, each with its own batch norm, are added."""

    def __init__(self, width):
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.narrow = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.identity, self.act = nn.BatchNorm2d(width), nn.ReLU()
        nn.init.normal_(self.identity.bias)

    def forward(self, images):
        out = self.narrow(images) + self.wide(images)
        out += self.identity(images)
        return self.act(out)


def test_units_of_a_sum_with_a_norm_of_the_input_are_behind_the_sum():
    net = nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU(), Reparametrised(6), Reparametrised(6), nn.Conv2d(6, 2, 3)).eval()
    images = torch.randn(2, 1, 5, 5)
    sites = noise_sites(attach_noise(net))
    # Of the layers that are added the first has the noise of all.
    assert {name: site.place for name, site in sites.items()} == {
        "0": "1",
        "2.narrow.0": "2.act",
        "3.narrow.0": "3.act",
    }
    gates = {name: torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0]) for name in sites}
    small = compact_gated(net, gates, sites, images)
    assert set(compaction_report(small).units["fate"]) == {"kept", "removed"}
