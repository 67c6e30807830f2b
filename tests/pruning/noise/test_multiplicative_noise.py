# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from scipy.integrate import quad
from torch import nn

from pyro_bmrs import ReductionError, ReductionWarning
from pyro_bmrs.distributions import LogUniform
from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, MultiplicativeNoise, attach_noise

LOW = math.exp(-20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_site_has_a_log_uniform_prior_over_the_units(dtype):
    noise = MultiplicativeNoise(5, name="a").to(dtype)
    site = poutine.trace(noise).get_trace(torch.ones(3, 5, dtype=dtype)).nodes["a"]
    assert (site["fn"].batch_shape, site["fn"].event_shape) == ((), (5,))
    prior = noise.unit_prior
    assert isinstance(prior, LogUniform) and prior.low.dtype == dtype
    torch.testing.assert_close(prior.low, torch.full((5,), LOW, dtype=dtype), rtol=1e-15, atol=0)
    torch.testing.assert_close(prior.high, torch.ones(5, dtype=dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 3), {}),
        ((2, 3, 4, 5), {}),
        ((2, 4, 3), {"dim": -1}),
        ((2, 3, 4), {"dim": -2}),
        ((2, 6), {"unit_size": 2}),
        ((2, 6, 4), {"unit_size": 2}),
        ((2, 5, 6), {"dim": -1, "unit_size": 2}),
    ],
)
def test_each_unit_is_multiplied_by_its_own_noise(shape, options):
    noise, value = MultiplicativeNoise(3, name="a", **options), torch.tensor([0.5, 0.25, 1.0])
    x, dim = torch.randn(shape), options.get("dim", 1)
    size = options.get("unit_size", 1)
    expected = (x.movedim(dim, -1).unflatten(-1, (3, size)) * value[:, None]).flatten(-2).movedim(-1, dim)
    assert torch.equal(poutine.condition(noise, {"a": value})(x), expected)
    by_example = torch.stack([value, value.flip(0)])
    out = poutine.condition(noise, {"a": by_example})(x)
    for i, row in enumerate(by_example):
        assert torch.equal(out[i], poutine.condition(noise, {"a": row})(x)[i])


def test_the_whole_input_can_be_one_unit():
    noise = MultiplicativeNoise(1, dim=None, name="a")
    x = torch.randn(2, 3, 4)
    assert torch.equal(poutine.condition(noise, {"a": torch.tensor([0.5])})(x), 0.5 * x)
    both = poutine.condition(noise, {"a": torch.tensor([[0.5], [0.25]])})(x)
    assert torch.equal(both, x * torch.tensor([0.5, 0.25])[:, None, None])


def test_pruned_units_are_zero_and_take_no_part():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.noise = MultiplicativeNoise(4, name="a")

        def forward(self, x):
            out = self.noise(x)
            pyro.factor("fit", -out.square().sum())
            return out

    net = Net()
    guide = AutoTruncatedLogNormal(net)
    net.noise.kept[1:3] = False
    for elbo in (TraceMeanField_ELBO()(net, guide), Trace_ELBO()(net, guide)):
        guide.zero_grad()
        loss = elbo(torch.ones(2, 4))
        loss.backward()
        gradient = guide.noise_parameters.grad
        assert (gradient[:, 1:3] == 0).all()
        assert (gradient[:, [0, 3]] != 0).all()
    assert (net.noise(torch.ones(2, 4))[:, 1:3] == 0).all()


def test_pruned_units_have_no_divergence():
    noise = MultiplicativeNoise(4, name="a")
    guide = AutoTruncatedLogNormal(noise)
    elbo = TraceMeanField_ELBO()(noise, guide)
    whole = elbo(torch.ones(2, 4)).detach()
    noise.kept[2:] = False
    torch.testing.assert_close(elbo(torch.ones(2, 4)).detach(), whole / 2)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_draw_for_each_example_counts_its_divergence_once(elbo):
    """Without a likelihood the loss is the divergence, whatever the number of examples."""
    losses = []
    for num_examples in (1, 50):
        noise = MultiplicativeNoise(3, name="a", per_example=True)
        guide = AutoTruncatedLogNormal(noise)
        guide.noise_log_scales.data.fill_(0.0)
        loss = elbo(num_particles=40 if elbo is Trace_ELBO else 1)(noise, guide)
        losses.append(torch.stack([loss(torch.ones(num_examples, 3)).detach() for _ in range(10)]).mean())
    once = MultiplicativeNoise(3, name="a")
    guide = AutoTruncatedLogNormal(once)
    guide.noise_log_scales.data.fill_(0.0)
    expected = TraceMeanField_ELBO()(once, guide)(torch.ones(1, 3)).detach()
    tolerance = 0.15 if elbo is Trace_ELBO else 1e-5
    torch.testing.assert_close(torch.stack(losses), expected.expand(2), atol=tolerance, rtol=0)


def test_draws_for_each_example_are_of_the_posterior():
    noise = MultiplicativeNoise(2, name="a", per_example=True)
    guide = AutoTruncatedLogNormal(noise)
    guide.noise_locs.data.copy_(torch.tensor([-1.0, 0.5]))
    guide.noise_log_scales.data.fill_(-0.5)
    pyro.set_rng_seed(0)
    draws = guide(torch.ones(100_000, 2))["a"].detach()
    posterior = guide.noise_posterior("a")
    torch.testing.assert_close(draws.mean(0), posterior.mean.detach(), atol=4e-3, rtol=0)
    torch.testing.assert_close(draws.std(0), posterior.stddev.detach(), atol=4e-3, rtol=0)
    assert guide(torch.ones(7, 2))["a"].shape == (7, 2)
    noise.eval()
    assert guide(torch.ones(7, 2))["a"].shape == (2,)


def test_gradients_of_draws_for_each_example_have_less_variance():
    variances = []
    for per_example in (False, True):
        noise = MultiplicativeNoise(2, name="a", per_example=per_example)
        guide = AutoTruncatedLogNormal(noise)
        guide.noise_log_scales.data.fill_(0.0)
        pyro.set_rng_seed(0)
        gradients = []
        for _ in range(200):
            guide.zero_grad()
            with poutine.trace():
                value = guide(torch.ones(32, 2))["a"]
            (value.mean(0) if per_example else value).square().sum().backward()
            gradients.append(guide.noise_parameters.grad[0].clone())
        variances.append(torch.stack(gradients).var(0))
    assert (variances[1] < 0.2 * variances[0]).all()


def test_site_names_are_the_module_s_in_a_pyro_module():
    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.first, self.second = MultiplicativeNoise(2), MultiplicativeNoise(2)

        def forward(self, x):
            return self.second(self.first(x))

    trace = poutine.trace(Net()).get_trace(torch.ones(1, 2))
    assert set(trace.stochastic_nodes) == {"first", "second"}


def test_copies_and_state_dicts_carry_what_is_kept():
    noise = MultiplicativeNoise(3, name="a")
    AutoTruncatedLogNormal(noise)
    noise(torch.ones(1, 3))
    twin = copy.deepcopy(noise)
    twin.kept[0] = False
    assert noise.kept.all()
    assert (twin(torch.ones(1, 3))[0, 0] == 0) and not torch.equal(twin.prior.base_dist._mask, noise.kept)
    noise.load_state_dict(twin.state_dict())
    assert (noise(torch.ones(1, 3))[0, 0] == 0) and list(noise.state_dict()) == ["kept"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_units": 0}, "at least one unit"),
        ({"num_units": 2, "dim": None}, "dim is None"),
        ({"num_units": 2, "unit_size": 0}, "at least one element"),
        ({"num_units": 2, "low": 0.0}, "low"),
        ({"num_units": 2, "low": 1.0}, "low"),
        ({"num_units": 2, "dim": 0, "per_example": True}, "dimension 0"),
    ],
)
def test_noise_that_cannot_be(options, match):
    with pytest.raises(ReductionError, match=match):
        MultiplicativeNoise(**options)


@pytest.mark.parametrize("shape", [(2, 4), (3,), (2, 4, 3)])
def test_an_input_that_does_not_fit(shape):
    noise = poutine.condition(MultiplicativeNoise(3, name="a"), {"a": torch.ones(3)})
    with pytest.raises(ReductionError, match="'a' is for 3 units"):
        noise(torch.ones(shape))


def learned(net):
    """A guide whose noise has moved."""
    guide = AutoTruncatedLogNormal(net)
    with torch.no_grad():
        guide.noise_locs.copy_(torch.linspace(-3.0, 0.3, len(guide.noise_locs)))
        guide.noise_log_scales.fill_(-1.0)
    return guide


def plain_mean(loc, scale):
    """Of a log-normal on the prior's interval, by SciPy's quadrature."""

    def integral(power):
        return quad(lambda x: math.exp(power * x - 0.5 * ((x - loc) / scale) ** 2), -20, 0, points=[min(loc, 0.0)])[0]

    return integral(1) / integral(0)


def test_a_network_by_itself_predicts_with_the_posterior_mean():
    net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))).double()
    guide = learned(net)
    net[1].units_noise_on_output.kept[1] = False
    x = torch.randn(5, 3).double()
    means = [plain_mean(loc, math.exp(-1.0)) for loc in guide.noise_locs.tolist()]
    gates = torch.tensor(means).double() * torch.tensor([1, 0, 1, 1])
    expected = (torch.tanh(net[0](x)) * gates) @ net[2].weight.T + net[2].bias
    for predict in (net.eval(), copy.deepcopy(net), Classification(net, 10).eval(), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(predict(x), expected, rtol=1e-6, atol=1e-8)
    with torch.no_grad():
        guide.noise_locs.sub_(2.0)
    assert not torch.allclose(net(x), expected)
    torch.testing.assert_close(net(x), poutine.condition(net, guide.mean_noise())(x), rtol=1e-12, atol=0)


def test_a_copy_of_network_and_guide_is_fitted_by_itself():
    net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    pair = copy.deepcopy(nn.ModuleList([net, learned(net)])).eval()
    x, before = torch.randn(5, 3), net.eval()(torch.ones(1, 3))
    with torch.no_grad():
        pair[1].noise_locs.fill_(-9.0)
    torch.testing.assert_close(pair[0](x), poutine.condition(pair[0], pair[1].mean_noise())(x))
    assert torch.equal(net(torch.ones(1, 3)), before)


def test_in_training_a_network_by_itself_draws_from_the_posterior():
    noise = MultiplicativeNoise(2, name="a", per_example=True)
    posterior = learned(noise).noise_posterior("a")
    pyro.set_rng_seed(0)
    draws = noise(torch.ones(100_000, 2))
    torch.testing.assert_close(draws.mean(0), posterior.mean.detach(), atol=4e-3, rtol=0)
    torch.testing.assert_close(draws.std(0), posterior.stddev.detach(), atol=4e-3, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_noise_that_no_guide_knows_is_drawn_from_its_prior_with_a_word(training):
    noise = MultiplicativeNoise(2, name="a").train(training)
    with pytest.warns(ReductionWarning, match="'a', and it is drawn from its prior"):
        noise(torch.ones(1, 2))


def test_noise_is_no_parameter_of_the_network():
    net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    names = [name for name, _ in net.named_parameters()]
    learned(net)
    assert [name for name, _ in net.named_parameters()] == names
