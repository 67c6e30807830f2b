# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import nn

from pyro_bmrs.pruning import WeightNorm, attach_noise, noise_sites
from pyro_bmrs.pruning.criteria.weights import incoming_weights
from tests.pruning.criteria.guided import encoder, guided, mlp


def test_weight_norms_are_those_of_rows_filters_and_head_columns():
    net, guide = mlp()
    guide.noise["0"].kept[2] = False
    scores = WeightNorm().scores(net, guide)
    expected = net[0].weight.detach().norm(dim=1)
    expected[2] = 0
    torch.testing.assert_close(scores["0"], expected)
    conv, guide = guided(
        nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(), nn.ConvTranspose2d(3, 4, 2, groups=1), nn.ReLU(), nn.Conv2d(4, 1, 1)
        )
    )
    scores = WeightNorm().scores(conv, guide)
    torch.testing.assert_close(scores["0"], conv[0].weight.detach().flatten(1).norm(dim=1))
    torch.testing.assert_close(scores["2"], conv[2].weight.detach().transpose(0, 1).flatten(1).norm(dim=1))
    net, guide = encoder()
    weight = net[0].layers[0].self_attn.out_proj.weight.detach()
    heads = torch.stack([weight[:, :4].norm(), weight[:, 4:].norm()])
    torch.testing.assert_close(WeightNorm().scores(net, guide)["0.layers.0.self_attn"], heads)


def test_the_weights_of_a_unit_with_a_gate_are_those_of_both():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(3, 8), nn.Linear(4, 2)

        def forward(self, x):
            gate, value = self.up(x).chunk(2, dim=-1)
            return self.down(torch.sigmoid(gate) * value)

    net = attach_noise(Gated())
    weight = net.up.weight.detach()
    expected = torch.cat([weight[:4], weight[4:]], 1)
    torch.testing.assert_close(incoming_weights(net, noise_sites(net)["up"]), expected, rtol=0, atol=0)
