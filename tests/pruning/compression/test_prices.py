# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import Classification, Occam, Regression, attach_noise, noise_sites, occam_prices
from pyro_bmrs.pruning.compression.prices import unit_totals, weight_prices


@pytest.fixture(scope="module")
def regression():
    """A linear regression whose covariates are at right angles: covariates, targets, standard deviation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linalg.qr(torch.randn(40, 4, generator=generator, dtype=torch.float64)).Q * 5
    y = x @ torch.tensor([1.0, -0.4, 0.1, 0.0]).double() + 0.7 * torch.randn(40, generator=generator).double()
    return x, y, 0.7


def log_evidence(x, y, scale, precision):
    covariance = scale**2 * torch.eye(len(x)).double() + x @ x.T / precision
    return float(multivariate_normal(cov=covariance.numpy()).logpdf(y.numpy()))


def test_a_price_is_what_the_evidence_lacks_of_the_likelihood(regression):
    """Exactly, in a linear regression: the log Bayes factor of a weight is what it gains less its price."""
    x, y, scale = regression
    information = x.square().sum(0) / scale**2
    precision = weight_prices((x.T @ y) / 25, information)[1]
    best = (x.T @ y / scale**2) / (information + precision)
    prices = 0.5 * torch.log1p(information / precision) + 0.5 * precision * best.square()
    for j in range(4):
        without = best.clone()
        without[j] = 0
        gain = ((y - x @ without).square().sum() - (y - x @ best).square().sum()) / (2 * scale**2)
        others = [k for k in range(4) if k != j]
        factor = log_evidence(x, y, scale, precision) - log_evidence(x[:, others], y, scale, precision)
        assert float(gain - prices[j]) == pytest.approx(factor, abs=1e-9)


def test_the_precision_maximises_the_evidence(regression):
    """At its own best weights, which go with the precision as the precision with them."""
    x, y, scale = regression
    information = x.square().sum(0) / scale**2
    found = minimize_scalar(
        lambda log: -log_evidence(x, y, scale, math.exp(log)), bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}
    )
    precision = math.exp(found.x)
    best = (x.T @ y / scale**2) / (information + precision)
    assert weight_prices(best, information)[1] == pytest.approx(precision, rel=1e-6)


def test_weights_of_which_nothing_is_known():
    weight = torch.tensor([1.0, 2.0, 3.0])
    prices, precision = weight_prices(weight, torch.tensor([50.0, 0.0, 70.0]))
    alone, same = weight_prices(weight[[0, 2]], torch.tensor([50.0, 70.0]))
    assert prices[1] == 0 and precision == pytest.approx(same)
    assert prices[[0, 2]].tolist() == pytest.approx(alone.tolist())
    assert math.isnan(weight_prices(weight, torch.zeros(3))[1])
    assert weight_prices(torch.zeros(3), torch.ones(3))[1] == math.inf


def test_the_weights_of_a_unit_are_those_that_make_it_and_those_that_read_it():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten()]
    net = attach_noise(nn.Sequential(*convolutions, nn.Linear(4 * 4, 5), nn.Tanh(), nn.Linear(5, 2))).eval()
    ones = {name: torch.ones_like(weight) for name, weight in net.named_parameters()}
    noise = {name: torch.ones(site.noise.num_units) for name, site in noise_sites(net).items()}
    noise_sites(net)["3"].noise.kept[1] = False
    totals = unit_totals(net, noise, torch.randn(8, 2, 6, 6), ones)
    # Filters: nine weights for each of two channels, a bias, two of the norm, and nine for each of three readers left.
    assert totals["0"].tolist() == [2 * 9 + 1 + 2 + 3 * 9] * 3
    assert totals["3"].tolist() == [value * (3 * 9 + 1 + 4 * 5) for value in (1, 0, 1, 1)]
    assert totals["6"].tolist() == [3 * 4 + 1 + 2] * 5


def test_the_information_is_that_of_the_model():
    """Of a mean with known standard deviation, the squared covariate over the variance."""
    torch.manual_seed(0)
    net = attach_noise(nn.Sequential(nn.Linear(1, 1, bias=False), nn.Identity(), nn.Linear(1, 1, bias=False)))
    net[0].weight.data.fill_(2.0), net[2].weight.data.fill_(3.0)
    model = Regression(net, num_examples=500, scale=0.5)
    x = torch.full((256, 1), 2.0)
    price = float(occam_prices(model, [(x, None)]).units["0"])
    exact = sum(
        float(weight_prices(torch.tensor([weight]), torch.tensor([500 * (other * 2.0 / 0.5) ** 2]))[0])
        for weight, other in ((2.0, 3.0), (3.0, 2.0))
    )
    # A mean of 256 squared normals is within a fifth, and its logarithm counts half.
    assert price == pytest.approx(exact, abs=0.2)


@pytest.mark.usefixtures("idle_devices")
def test_prices_leave_all_as_it_was():
    net = attach_noise(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)))
    model = Classification(net, 100)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (occam_prices(model, [(torch.ones(20, 3) * torch.arange(20)[:, None], None)]) for _ in range(2))
    assert torch.equal(first.units["0"], second.units["0"])
    assert torch.equal(torch.get_rng_state(), state) and net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_an_active_unit_pays_its_price():
    net = attach_noise(nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 2)))
    model = Classification(net, 100)
    prices = occam_prices(model, [(torch.randn(50, 3), None)])
    model.kl_weight = occam = Occam(prices, 2.0)
    mean = float(prices.units["0"].mean())
    assert model.noise_weight("0") == pytest.approx(2 * mean / 5)
    occam.temperature = 0.5
    assert model.noise_weight("0") == pytest.approx(0.5 * mean / 5)
    # 16 units are probed, and the others pay as much as those on average.
    assert len(set(prices.units["0"].tolist())) <= 17 and (prices.units["0"] > 0).all()


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_temperatures_that_are_none(temperature):
    net = attach_noise(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)))
    prices = occam_prices(Classification(net, 100), [(torch.ones(5, 3), None)])
    with pytest.raises(ReductionError, match="temperature"):
        Occam(prices, temperature)


def test_mistakes():
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    with pytest.raises(ReductionError, match="no noise"):
        occam_prices(Classification(net, 100), [(torch.ones(5, 3), None)])
    attach_noise(net)
    with pytest.raises(ReductionError, match="none"):
        occam_prices(Classification(net, 100), [])
    net[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ReductionError, match="not finite"):
        occam_prices(Classification(net, 100), [(torch.ones(5, 3), None)])
