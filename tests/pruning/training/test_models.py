# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.distributions import Normal
from pyro.infer import Predictive, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    Classification,
    Likelihood,
    NoiseELBO,
    Regression,
    WarmUp,
    parameter_groups,
)
from tests.pruning.training.guided import NUM_EXAMPLES, all_but_certain, divergences, network


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
        (lambda: WarmUp(0), "of at least 1, not 0"),
    ],
)
def test_mistakes(make, match):
    with pytest.raises(ReductionError, match=match):
        make()


@pytest.mark.parametrize("rates", [{"lr": float("nan")}, {"lr": 0.1, "noise_lr": float("inf")}, {"lr": -1.0}])
def test_learning_rates_are_numbers(rates):
    model = Classification(network(), 5)
    with pytest.raises(ReductionError, match="a learning rate is a finite number"):
        parameter_groups(TraceMeanField_ELBO()(model, AutoTruncatedLogNormal(model)), **rates)


@pytest.mark.parametrize("elbo", [NoiseELBO, TraceMeanField_ELBO])
def test_a_batch_without_examples(elbo):
    model = Classification(network(), 5)
    with pytest.raises(ReductionError, match="no example in the batch"):
        elbo()(model, AutoTruncatedLogNormal(model))(torch.randn(0, 4), torch.zeros(0).long())


def test_what_is_observed_has_the_examples_first():
    class Transposed(Likelihood):
        def observation(self, output):
            return Normal(output.T, 1.0)

    model = Transposed(network(), 5)
    with pytest.raises(ReductionError, match=r"4 here, and this Normal has the batch shape \(3, 4\)"):
        model.negative_log_likelihood(torch.randn(4, 3), torch.randn(3, 4))


def test_parameter_groups_need_noise():
    model = Classification(nn.Linear(2, 2), 5)
    for guide in (AutoTruncatedLogNormal(model), AutoNormal(model)):
        with pytest.raises(ReductionError, match="no noise"):
            parameter_groups(TraceMeanField_ELBO()(model, guide), lr=1e-3)
