# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from scipy.integrate import quad
from scipy.interpolate import CubicSpline
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.distributions import LogUniform
from pyro_bmrs.pruning import BMRS_N, BMRS_U, AutoTruncatedLogNormal, Classification, Regression, attach_noise
from pyro_bmrs.pruning.criteria.evidence.unit_evidence import evaluate_units

N = BMRS_N().reduced_prior
LOW = math.exp(-20)


def guided(model, locs):
    guide = AutoTruncatedLogNormal(model)
    guide.noise_locs.data.copy_(torch.tensor(locs))
    guide.noise_log_scales.data.fill_(-3.0)
    return guide


def classifier(count=200, kl_weight=1.0, strength=1.0):
    """A network whose units are worth between nothing and some fifty nats; the labels depend on all inputs."""
    torch.manual_seed(1)
    net = attach_noise(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))).double()
    with torch.no_grad():
        for layer in (net[0], net[2], net[4]):
            layer.weight.mul_(3 * strength)
    model = Classification(net, num_examples=count, kl_weight=kl_weight)
    guide = guided(model, [-0.05, -0.5, -0.2, -1.0, -4.0, -0.3, -0.1, -0.7, -0.02])
    x = torch.randn(count, 3).double()
    with poutine.condition(data=guide.mean_noise()), torch.no_grad():
        y = torch.distributions.Categorical(logits=net.eval()(x)).sample()
    return net, guide, x, y


def log_likelihood(net, guide, x, y, name, unit, noise):
    means = guide.mean_noise()
    means[name][unit] = noise
    with torch.no_grad(), poutine.condition(data=means):
        return -F.cross_entropy(net(x), y, reduction="sum").item()


def profile(net, guide, x, y, name, unit):
    """The log likelihood as a function of the noise of one unit: a spline through what the network gives."""
    noise = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, 31))
    return CubicSpline(noise, [log_likelihood(net, guide, x, y, name, unit, value) for value in noise])


def log_mean(function, low, high):
    """The log of the mean of the exponential of a function of the noise, evenly over its logarithm, by SciPy."""
    top = max(function(noise) for noise in np.geomspace(low, high, 40))
    marks = np.unique(np.clip(np.log([low, 0.01, *np.linspace(0.06, 1, 8), high]), math.log(low), math.log(high)))
    parts = [
        quad(lambda t: math.exp(function(math.exp(t)) - top), *pair, epsrel=1e-5)[0] for pair in zip(marks, marks[1:])
    ]
    return math.log(sum(parts) / math.log(high / low)) + top


@pytest.mark.parametrize("kl_weight", [1.0, {"0": 0.3, "2": 4.0}])
def test_of_one_unit_it_is_a_ratio_of_two_integrals(kl_weight):
    """SciPy's, of what the network gives; under a KL weight, of the likelihood to the power of one over it."""
    net, guide, x, y = classifier(kl_weight=kl_weight)
    found = evaluate_units(net, guide, N, [(x, y)])
    up_to_256th = evaluate_units(net, guide, BMRS_U(8).reduced_prior, [(x, y)])
    assert found.kl_weights == ({"0": 1.0, "2": 1.0} if kl_weight == 1.0 else kl_weight)
    for name, unit in (("0", 0), ("0", 1), ("0", 4), ("2", 2), ("2", 3)):
        weight = found.kl_weights[name]

        spline = profile(net, guide, x, y, name, unit)

        def tempered(noise, spline=spline, weight=weight):
            return float(spline(noise)) / weight

        mean = log_mean(tempered, LOW, 1.0)
        error = 0.2 + 2 * found.interpolation_error[name][unit].item()
        assert error < 1.5
        assert found.change[name][unit].item() == pytest.approx(tempered(LOW) - mean, abs=error)
        expected = log_mean(tempered, LOW, 2.0**-8) - mean
        assert up_to_256th.change[name][unit].item() == pytest.approx(expected, abs=error)


def test_removal_is_the_unit_multiplied_by_nothing():
    net, guide, x, y = classifier(kl_weight=7.0)
    found = evaluate_units(net, guide, N, [(x, y)])
    for name, removal in found.removal.items():
        for unit, change in enumerate(removal.tolist()):
            with_it = log_likelihood(net, guide, x, y, name, unit, guide.mean_noise()[name][unit])
            without = log_likelihood(net, guide, x, y, name, unit, 0.0)
            assert change == pytest.approx(without - with_it, abs=1e-5)


@pytest.mark.parametrize("strength", [0.3, 3.0])
def test_it_is_never_below_what_the_data_can_say(strength):
    """The gap between the log likelihood without the unit and with the unit at its best, which no average exceeds."""
    net, guide, x, y = classifier(strength=strength)
    found = evaluate_units(net, guide, N, [(x, y)])
    for name, changes in found.change.items():
        for unit, change in enumerate(changes.tolist()):
            values = profile(net, guide, x, y, name, unit)(np.linspace(0, 1, 101))
            error = 0.01 + found.interpolation_error[name][unit].item()
            assert change >= values[0] - max(values) - error
            assert change <= values[0] - min(values) + error


def test_a_line_through_normal_observations():
    """
    y = w θ x + e: the log likelihood is a parabola in the noise, and interpolation has no error.

    With a = Σ x² and b = Σ x y it is -a θ² / 2 + b θ for unit weights and variance; the integral is SciPy's.
    """
    torch.manual_seed(0)
    x = torch.randn(50, 1).double()
    for truth in (0.0, 0.1, 0.7):
        y = truth * x + torch.randn(50, 1).double()
        net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
        attach_noise(net, modules=["0"])
        for layer in (net[0], net[1]):
            nn.init.ones_(layer.weight)
        model = Regression(net, 50, scale=1.0).double()
        guide = guided(model, [math.log(0.6)])
        found = evaluate_units(net, guide, N, [(x, y)])
        a, b = (x * x).sum().item(), (x * y).sum().item()
        evidence = log_mean(lambda noise, a=a, b=b: -0.5 * a * noise**2 + b * noise, LOW, 1.0)
        assert found.change["0"].item() == pytest.approx(-evidence, abs=1e-3)
        assert found.interpolation_error["0"].item() < 1e-6


def test_some_of_the_examples_stand_for_all():
    """Over draws of the examples the errors are as large as they say, and the values are right on average."""
    net, guide, x, y = classifier(count=400)
    whole = evaluate_units(net, guide, N, [(x, y)])
    assert not any(error.any() for error in whole.standard_error.values())
    assert (whole.num_examples, whole.num_evaluated) == (400, 400)
    scores = []
    for _ in range(12):
        some = torch.randperm(400)[:100]
        found = evaluate_units(net, guide, N, [(x[some], y[some])])
        assert found.num_evaluated == 100
        differences = torch.cat([found.removal[name] - whole.removal[name] for name in whole.removal])
        errors = torch.cat(list(found.standard_error.values()))
        large = torch.cat(list(whole.change.values())) < -10
        scores.append((differences / errors)[large])
    scores = torch.stack(scores)
    assert scores.shape[1] >= 3
    assert scores.mean(0).abs().max() < 0.8
    assert 0.7 < scores.square().mean().sqrt() < 1.4


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_few_examples_that_are_run_exactly(strength):
    """Linear outputs do for the others: errors are told, and small beside those of few examples alone."""
    net, guide, x, y = classifier(count=1500, strength=strength)
    whole = evaluate_units(net, guide, N, [(x, y)], num_exact=None)
    assert (whole.num_evaluated, whole.num_exact) == (1500, 1500)
    found = evaluate_units(net, guide, N, [(x, y)], num_exact=100)
    assert (found.num_evaluated, found.num_exact) == (1500, 100)
    alone = evaluate_units(net, guide, N, [(x[:100], y[:100])], num_exact=None)
    for name, error in found.standard_error.items():
        assert ((found.change[name] - whole.change[name]).abs() <= 4 * error + 0.05).all()
        assert error.mean() < 0.8 * alone.standard_error[name].mean()
    assert "1500 of 1500 examples, 100 of them exactly" in repr(found)


def test_single_precision():
    net, guide, x, y = classifier()
    double = evaluate_units(net, guide, N, [(x, y)])
    net.float()
    guide.noise_parameters.data = guide.noise_parameters.data.float()
    single = evaluate_units(net, guide, N, [(x.float(), y)])
    for name, change in single.change.items():
        assert change.dtype == torch.float32
        torch.testing.assert_close(change.double(), double.change[name], rtol=1e-3, atol=1e-3)


def test_units_that_are_gone():
    net, guide, x, y = classifier()
    guide.noise["0"].kept[2] = False
    found = evaluate_units(net, guide, N, [(x, y)])
    assert found.change["0"][2] == found.removal["0"][2] == found.error["0"][2] == 0
    table = found.table
    assert len(table) == 9 and table.loc[("2", 1), "change"] == pytest.approx(found.change["2"][1].item())
    assert "9 units, evaluated on 200 of 200 examples" in repr(found)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_the_same_where_nothing_is_differentiated(mode):
    net, guide, x, y = classifier()
    found = evaluate_units(net, guide, N, [(x, y)], num_exact=50)
    with mode():
        again = evaluate_units(net, guide, N, [(x.clone(), y)], num_exact=50)
    for name, change in found.change.items():
        torch.testing.assert_close(again.change[name], change)


def test_mistakes():
    net, guide, x, y = classifier()
    other = AutoTruncatedLogNormal(net)
    other.noise_parameters.data.copy_(guide.noise_parameters.data)
    with pytest.raises(ReductionError, match="num_exact.*not 0"):
        evaluate_units(net, guide, N, [(x, y)], num_exact=0)
    with pytest.raises(ReductionError, match="likelihood="):
        evaluate_units(net, other, N, [(x, y)])
    given = evaluate_units(net, other, N, [(x, y)], likelihood=guide.model)
    torch.testing.assert_close(given.change, evaluate_units(net, guide, N, [(x, y)]).change)
    guide.model.kl_weight = 0.0
    with pytest.raises(ReductionError, match="KL weight at noise site '0' is 0"):
        evaluate_units(net, guide, N, [(x, y)])
    guide.model.kl_weight = 1.0
    with pytest.raises(ReductionError):
        evaluate_units(net, guide, lambda prior: LogUniform(prior.low / 2, prior.high), [(x, y)])
    guide.noise_parameters.data[0].zero_()
    guide.noise_parameters.data[1].fill_(-5.0)
    with pytest.raises(ReductionError, match="not fitted"):
        evaluate_units(net, guide, N, [(x, y)])
