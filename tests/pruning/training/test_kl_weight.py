# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, WarmUp, attach_noise
from tests.pruning.training.guided import NUM_EXAMPLES, all_but_certain, divergences, network


def weighted(model, guide, x, y):
    """The loss less the mean negative log likelihood."""
    elbo = TraceMeanField_ELBO()(model, guide)
    loss = elbo(x, y)
    logits = poutine.condition(model.net, data=guide.mean_noise())(x)
    return (loss - F.cross_entropy(logits, y)).detach()


def test_kl_weights():
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    for weight, expected in (
        (1.0, lambda kl: sum(part.sum() for part in kl.values()) / NUM_EXAMPLES),
        (160.0, lambda kl: 160 * sum(part.sum() for part in kl.values()) / NUM_EXAMPLES),
        (0.0, lambda kl: torch.zeros(())),
        ("layer_mean", lambda kl: torch.stack([part.mean() for part in kl.values()]).mean()),
        ({"0": 3.0, "2": 0.5}, lambda kl: (3 * kl["0"].sum() + 0.5 * kl["2"].sum()) / NUM_EXAMPLES),
    ):
        model = Classification(network(), NUM_EXAMPLES, kl_weight=weight)
        guide = AutoTruncatedLogNormal(model)
        all_but_certain(guide)
        torch.testing.assert_close(
            weighted(model, guide, x, y), expected(divergences(guide)).detach(), rtol=1e-4, atol=1e-4
        )


def test_the_layer_mean_is_the_temperature_of_the_paper():
    """48,000 examples and six layers of fifty units."""
    layers = [module for _ in range(6) for module in (nn.Linear(50, 50), nn.Tanh())]
    model = Classification(attach_noise(nn.Sequential(*layers, nn.Linear(50, 10))), 48_000, kl_weight="layer_mean")
    assert model.noise_weight("0") == pytest.approx(160)


def test_a_warm_up_rises_with_the_training_steps():
    model = Classification(network(), NUM_EXAMPLES, kl_weight=WarmUp(4, weight=2.0))
    guide = AutoTruncatedLogNormal(model)
    elbo = TraceMeanField_ELBO()(model, guide)
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    weights = []
    for _ in range(6):
        weights.append(model.noise_weight("0"))
        elbo(x, y)
    assert weights == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    model.eval()
    again = Classification(network(), NUM_EXAMPLES, kl_weight=WarmUp(4, weight=2.0))
    again.load_state_dict(model.state_dict())
    assert again.noise_weight("0") == 2.0


@pytest.mark.parametrize("weight", ["layer_mean", {"0": 3.0, "2": 0.5}])
def test_any_weight_can_warm_up(weight):
    """The last step's is the weight itself."""
    whole = Classification(network(), NUM_EXAMPLES, kl_weight=weight)
    rising = Classification(network(), NUM_EXAMPLES, kl_weight=WarmUp(4, weight))
    for site in ("0", "2"):
        assert rising.noise_weight(site) == pytest.approx(whole.noise_weight(site) / 4)
    rising.load_state_dict(rising.state_dict() | {"_extra_state": torch.tensor(7)})
    assert [rising.noise_weight(site) for site in ("0", "2")] == [whole.noise_weight(site) for site in ("0", "2")]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_and_counts_are_finite(number):
    net = network()
    for weight in (number, {"0": number, "2": 1.0}, WarmUp(4, number)):
        with pytest.raises(ReductionError, match="finite and not negative"):
            Classification(net, NUM_EXAMPLES, kl_weight=weight)
    for make in (lambda: WarmUp(number), lambda: Classification(net, number)):
        with pytest.raises(ReductionError, match="is a finite number of at least 1"):
            make()
    model = Classification(net, NUM_EXAMPLES, kl_weight=lambda step: number)
    with pytest.raises(ReductionError, match="what kl_weight returns for step 0 is a finite number"):
        TraceMeanField_ELBO()(model, AutoTruncatedLogNormal(model))(torch.randn(5, 4), torch.zeros(5).long())
