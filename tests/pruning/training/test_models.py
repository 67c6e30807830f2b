# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import Predictive, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import Normal, kl_divergence

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, Regression, WarmUp, attach_noise, parameter_groups

NUM_EXAMPLES = 500


def network(outputs=3):
    torch.manual_seed(0)
    return attach_noise(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, outputs)))


def divergences(guide):
    return {name: kl_divergence(guide.noise_posterior(name), noise.unit_prior) for name, noise in guide.noise.items()}


def all_but_certain(guide):
    """A posterior so narrow that each draw is its mean."""
    guide.noise_locs.data.fill_(-0.5)
    guide.noise_log_scales.data.fill_(-12.0)


@pytest.mark.parametrize("num_rows", [1, 20])
def test_the_loss_is_a_mean_per_example(num_rows):
    net = network()
    model = Classification(net, NUM_EXAMPLES)
    guide = AutoTruncatedLogNormal(model)
    all_but_certain(guide)
    x, y = torch.randn(num_rows, 4), torch.randint(3, (num_rows,))
    logits = poutine.condition(net, data=guide.mean_noise())(x)
    expected = F.cross_entropy(logits, y) + sum(kl.sum() for kl in divergences(guide).values()) / NUM_EXAMPLES
    torch.testing.assert_close(TraceMeanField_ELBO()(model, guide)(x, y), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_regression_is_normal(shape):
    net = network(outputs=shape[0] if shape else 1)
    if not shape:
        net.append(nn.Flatten(0))
    model = Regression(net, NUM_EXAMPLES, scale=0.5)
    guide = AutoTruncatedLogNormal(model)
    all_but_certain(guide)
    x, y = torch.randn(20, 4), torch.randn(20, *shape)
    mean = poutine.condition(net, data=guide.mean_noise())(x)
    expected = -Normal(mean, 0.5).log_prob(y).sum() / 20
    expected = expected + sum(kl.sum() for kl in divergences(guide).values()) / NUM_EXAMPLES
    torch.testing.assert_close(TraceMeanField_ELBO()(model, guide)(x, y), expected, rtol=1e-4, atol=1e-4)


def test_the_scale_of_a_regression_is_learned():
    model = Regression(network(outputs=1), NUM_EXAMPLES)
    elbo = TraceMeanField_ELBO()(model, AutoTruncatedLogNormal(model))
    elbo(torch.randn(20, 4), torch.randn(20, 1)).backward()
    assert model.log_scale.grad != 0


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
    whole, rising = (Classification(network(), NUM_EXAMPLES, kl_weight=w) for w in (weight, WarmUp(4, weight)))
    for site in ("0", "2"):
        assert rising.noise_weight(site) == pytest.approx(whole.noise_weight(site) / 4)
    rising.load_state_dict(rising.state_dict() | {"_extra_state": torch.tensor(7)})
    assert [rising.noise_weight(site) for site in ("0", "2")] == [whole.noise_weight(site) for site in ("0", "2")]


def test_predictive_draws_observations():
    model = Classification(network(), NUM_EXAMPLES)
    guide = AutoTruncatedLogNormal(model)
    draws = Predictive(model, guide=guide, num_samples=5)(torch.randn(7, 4))
    assert draws["y"].shape == (5, 7) and draws["0"].squeeze().shape == (5, 6)


def test_the_noise_has_a_learning_rate_of_its_own():
    model = Classification(network(), NUM_EXAMPLES)
    guide = AutoTruncatedLogNormal(model)
    elbo = TraceMeanField_ELBO()(model, guide)
    weights, noise = parameter_groups(elbo, lr=1e-3)
    assert noise["lr"] == pytest.approx(1e-2) and weights["lr"] == 1e-3
    assert [id(parameter) for parameter in noise["params"]] == [id(guide.noise_parameters)]
    assert {id(parameter) for parameter in weights["params"]} == {id(parameter) for parameter in model.parameters()}
    assert parameter_groups(elbo, lr=1e-3, noise_lr=0.5)[1]["lr"] == 0.5


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Classification(network(), 0), "num_examples"),
        (lambda: Classification(network(), 5, kl_weight=-1.0), "kl_weight"),
        (lambda: Classification(network(), 5, kl_weight="mean"), "'layer_mean'"),
        (lambda: Classification(network(), 5, kl_weight=WarmUp(3, -1.0)), "kl_weight"),
        (lambda: Classification(network(), 5, kl_weight=WarmUp(3, WarmUp(3))), "kl_weight"),
        (lambda: Classification(network(), 5, kl_weight={"0": 1.0}), "noise sites are"),
        (lambda: Classification(network(), 5, kl_weight={"0": 1.0, "2": -1.0}), "kl_weight"),
        (lambda: Classification(nn.Linear(2, 2), 5, kl_weight="layer_mean"), "none"),
        (lambda: Regression(network(), 5, scale=0.0), "scale"),
        (lambda: WarmUp(0), "at least one step"),
    ],
)
def test_mistakes(make, match):
    with pytest.raises(ReductionError, match=match):
        make()


def test_parameter_groups_need_noise():
    model = Classification(nn.Linear(2, 2), 5)
    for guide in (AutoTruncatedLogNormal(model), AutoNormal(model)):
        with pytest.raises(ReductionError, match="no noise"):
            parameter_groups(TraceMeanField_ELBO()(model, guide), lr=1e-3)
