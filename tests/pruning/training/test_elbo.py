# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, NoiseELBO, Regression, attach_noise


def network(num_outputs=3, **options):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5), nn.Tanh())
    return attach_noise(net.append(nn.Dropout(0.5)).append(nn.Linear(5, num_outputs)), **options)


def losses_and_gradients(elbo, model, *data):
    """Of two steps, so that the second begins where the first ended."""
    model = copy.deepcopy(model)
    guide = AutoTruncatedLogNormal(model)
    with torch.no_grad():
        guide.noise_locs.add_(torch.linspace(-9.0, 0.5, len(guide.noise_locs)))
        guide.noise_log_scales.add_(torch.linspace(0.0, 6.0, len(guide.noise_locs)))
    module = elbo(model, guide)
    torch.manual_seed(0)
    found = []
    for _ in range(2):
        module.zero_grad()
        loss = module(*data)
        loss.backward()
        found += [loss.detach(), *(parameter.grad for parameter in module.parameters() if parameter.grad is not None)]
    return found, int(model.get_extra_state())


def assert_equal(model, *data):
    (short, steps), (traced, traced_steps) = (
        losses_and_gradients(elbo(), model, *data) for elbo in (NoiseELBO, TraceMeanField_ELBO)
    )
    assert steps == traced_steps
    assert len(short) == len(traced) > 4
    torch.testing.assert_close(short, traced, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("kl_weight", [1.0, 7.0, "layer_mean", lambda step: 1.0 + step])
def test_it_is_the_mean_field_elbo(per_example, kl_weight):
    model = Classification(network(per_example=per_example), 50, kl_weight=kl_weight)
    assert_equal(model, torch.randn(6, 1, 6, 6), torch.randint(3, (6,)))


def test_pruned_units_have_no_part():
    net = network()
    net[1].units_noise_on_output.kept[1:3] = False
    net[4].units_noise_on_output.kept[0] = False
    assert_equal(Classification(net, 50), torch.randn(6, 1, 6, 6), torch.randint(3, (6,)))


def test_regression():
    assert_equal(Regression(network(2, per_example=True), 50), torch.randn(6, 1, 6, 6), torch.randn(6, 2))


def test_in_evaluation_no_step_is_counted():
    model = Classification(network(), 50).eval()
    assert_equal(model, torch.randn(6, 1, 6, 6), torch.randint(3, (6,)))
    assert model.get_extra_state() == 0


class _Bayesian(PyroModule):
    """A network with a latent weight beside the noise."""

    def __init__(self):
        super().__init__()
        self.inner = PyroModule[nn.Sequential](nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
        attach_noise(self.inner)
        self.gain = PyroSample(dist.LogNormal(0.0, 0.1))

    def forward(self, x):
        return self.gain * self.inner(x)


def test_other_latent_variables_have_their_part():
    model = Classification(_Bayesian(), 50)
    data = torch.randn(6, 4), torch.randint(2, (6,))
    losses = []
    for elbo in (NoiseELBO(), TraceMeanField_ELBO()):
        guide = AutoTruncatedLogNormal(model)
        module = elbo(model, guide)
        torch.manual_seed(0)
        module(*data)
        torch.manual_seed(1)
        losses.append(module(*data))
        assert {name for name, _ in guide.locs.named_parameters()} == {"gain_unconstrained"}
    torch.testing.assert_close(*losses)


def test_the_log_likelihood_of_classes_is_the_distribution_s():
    output, y = torch.randn(6, 3), torch.randint(3, (6,))
    model = Classification(network(), 50)
    mean = model.observation(output).log_prob(y).mean()
    torch.testing.assert_close(model.negative_log_likelihood(output, y), -mean)


class _Tempered(Classification):
    """Half as sure as its network."""

    def observation(self, output):
        return dist.Categorical(logits=output / 2)


def test_a_derived_class_has_its_own_likelihood():
    assert_equal(_Tempered(network(), 50), torch.randn(6, 1, 6, 6), torch.randint(3, (6,)))


def test_svi_trains_with_it():
    model = Classification(network(), 50)
    guide = AutoTruncatedLogNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), NoiseELBO())
    svi.step(torch.randn(6, 1, 6, 6), torch.randint(3, (6,)))
    assert guide.is_fitted


def test_handlers_outside_are_obeyed():
    model = Classification(network(), 50)
    elbo = NoiseELBO()(model, AutoTruncatedLogNormal(model))
    data = torch.randn(6, 1, 6, 6), torch.randint(3, (6,))
    torch.manual_seed(0)
    plain = elbo(*data)
    torch.manual_seed(0)
    with poutine.scale(scale=2.0):
        torch.testing.assert_close(elbo(*data), 2 * plain)


def test_a_network_that_fails_is_left_as_it_was():
    model = Classification(network(), 50)
    elbo = NoiseELBO()(model, AutoTruncatedLogNormal(model))
    with pytest.raises(RuntimeError):
        elbo(torch.randn(6, 1, 9, 9), torch.randint(3, (6,)))
    assert set(poutine.trace(model.net).get_trace(torch.randn(6, 1, 6, 6)).stochastic_nodes) == {"0", "3"}


class _Shifted(Classification):
    """Does something before it runs its network."""

    def forward(self, x, y=None):
        return super().forward(x + 1, y)


class _Other(AutoTruncatedLogNormal):
    """Has posteriors of its own."""

    def get_posterior(self, name, prior):
        return super().get_posterior(name, prior)


@pytest.mark.parametrize(
    ("make", "guide", "options", "call"),
    [
        (_Shifted, AutoTruncatedLogNormal, {}, lambda elbo, x, y: elbo(x, y)),
        (Classification, _Other, {}, lambda elbo, x, y: elbo(x, y)),
        (Classification, AutoTruncatedLogNormal, {"num_particles": 2}, lambda elbo, x, y: elbo(x, y)),
        (Classification, AutoTruncatedLogNormal, {}, lambda elbo, x, y: elbo(x, y=y)),
        (Classification, AutoTruncatedLogNormal, {}, lambda elbo, x, y: elbo(x, None)),
        (Classification, AutoTruncatedLogNormal, {}, lambda elbo, x, y: elbo(x)),
    ],
    ids=["model", "guide", "particles", "keywords", "no-targets", "no-argument"],
)
def test_the_short_cut_is_for_what_it_knows_alone(make, guide, options, call, monkeypatch):
    def refuse(*args):
        raise AssertionError("the short cut")

    monkeypatch.setattr(NoiseELBO, "_short_loss", refuse)
    net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    x, y = torch.randn(6, 3), torch.randint(2, (6,))
    plain = Classification(net, 50)
    with pytest.raises(AssertionError, match="the short cut"):
        NoiseELBO()(plain, AutoTruncatedLogNormal(plain))(x, y)
    model = make(net, 50)
    assert call(NoiseELBO(**options)(model, guide(model)), x, y).isfinite()
