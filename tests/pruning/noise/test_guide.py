# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoHierarchicalNormalMessenger
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.distributions import kl_divergence

from pyro_bmrs import ReductionError, reduce_model
from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.evidence import log_evidence_change
from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    Classification,
    MultiplicativeNoise,
    attach_noise,
    parameter_groups,
)

LOW = math.exp(-20)


def mlp():
    torch.manual_seed(0)
    return attach_noise(
        nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)),
    )


def data(num_examples=100):
    x = torch.randn(num_examples, 3)
    return x, (x[:, 0] > 0).long()


def test_noise_begins_near_one():
    guide = AutoTruncatedLogNormal(mlp())
    for name, units in (("0", 6), ("2", 5)):
        posterior = guide.noise_posterior(name)
        assert isinstance(posterior, TruncatedLogNormal) and posterior.batch_shape == (units,)
        torch.testing.assert_close(posterior.loc, torch.zeros(units))
        torch.testing.assert_close(posterior.scale, torch.full((units,), math.exp(-5)))
    assert not guide.is_fitted


def test_the_loss_is_the_divergence_and_the_expected_loss():
    """Exact under TraceMeanField_ELBO, and its expectation under Trace_ELBO."""
    noise = MultiplicativeNoise(4, name="a").double()
    guide = AutoTruncatedLogNormal(noise)
    guide.noise_locs.data.copy_(torch.tensor([-15.0, -2.0, 0.0, 0.3]))
    guide.noise_log_scales.data.copy_(torch.tensor([1.0, 0.0, -2.0, -1.0]))
    x = torch.ones(1, 4).double()
    exact = kl_divergence(guide.noise_posterior("a"), noise.unit_prior).sum()
    mean_field = TraceMeanField_ELBO()(noise, guide)(x)
    torch.testing.assert_close(mean_field, exact, rtol=1e-12, atol=0)
    for one, other in zip(
        torch.autograd.grad(mean_field, list(guide.parameters())), torch.autograd.grad(exact, list(guide.parameters()))
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    pyro.set_rng_seed(0)
    sampled = torch.stack([Trace_ELBO()(noise, guide)(x).detach() for _ in range(500)])
    assert abs(sampled.mean() - exact.detach()) < 4 * sampled.std() / math.sqrt(len(sampled))


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO])
@pytest.mark.parametrize("per_example", [False, True])
def test_no_nan_in_single_precision_at_a_learning_rate_of_a_tenth(elbo, per_example):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 2))
    model = Classification(attach_noise(net, per_example=per_example), num_examples=100, kl_weight=5.0)
    guide = AutoTruncatedLogNormal(model)
    module = elbo()(model, guide)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    x, y = data()
    for _ in range(200):
        loss = module(x, y)
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def fitted():
    net = mlp()
    model = Classification(net, num_examples=100)
    guide = AutoTruncatedLogNormal(model)
    elbo = TraceMeanField_ELBO()(model, guide)
    optimizer = torch.optim.Adam(parameter_groups(elbo, lr=1e-2))
    x, y = data()
    for _ in range(50):
        loss = elbo(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net, guide, (x, y)


@pytest.mark.parametrize(
    "reduced", [LogUniform(LOW, 2.0**-8), TruncatedLogNormal(-20.0, 1e-3, LOW, 1.0)], ids=["U", "N"]
)
def test_reduce_model_reads_the_guide(reduced):
    net, guide, args = fitted()
    reduction = reduce_model(guide, {"0": reduced}, args=args)
    expected = log_evidence_change(
        guide.noise_posterior("0"), LogUniform(torch.tensor(LOW), 1.0).expand([6]), reduced.expand([6])
    )
    torch.testing.assert_close(reduction.elementwise["0"], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(reduction.delta_evidence, expected.sum(), rtol=1e-6, atol=1e-5)
    assert reduction.method == "exact"
    guide.noise["0"].kept[2] = False
    masked = reduce_model(guide, {"0": reduced}, args=args).elementwise["0"]
    assert masked[2] == 0
    torch.testing.assert_close(masked[3:], expected[3:], rtol=1e-6, atol=1e-6)


def test_the_reduced_guide_can_be_fitted_on():
    net, guide, (x, y) = fitted()
    reduction = reduce_model(guide, {"0": LogUniform(LOW, 2.0**-8)}, args=(x, y))
    svi = SVI(reduction.model, reduction.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    before = guide.noise_locs.detach().clone()
    assert math.isfinite(svi.step(x, y)) and math.isfinite(svi.step(x, y))
    assert torch.equal(guide.noise_locs, before)


def test_svi_trains_weights_and_noise():
    net = mlp()
    model = Classification(net, num_examples=100)
    guide = AutoTruncatedLogNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO())
    before = net[0].weight.detach().clone(), guide.noise_log_scales.detach().clone()
    svi.step(*data())
    assert not torch.equal(net[0].weight, before[0]) and not torch.equal(guide.noise_log_scales, before[1])
    assert guide.is_fitted


class BayesianNet(PyroModule):
    """Noise beside a Bayesian layer and a log-uniform site of its own."""

    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](3, 4)
        self.layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
        self.noise = MultiplicativeNoise(4)

    def forward(self, x):
        scale = pyro.sample("scale", LogUniform(1e-3, 10.0))
        return self.noise(self.layer(x)) * scale


def test_other_sites_are_left_to_the_parent():
    net = BayesianNet()
    guide = AutoTruncatedLogNormal(net)
    elbo = TraceMeanField_ELBO()(net, guide)
    elbo(torch.ones(2, 3)).backward()
    names = {name for name, _ in guide.named_parameters()}
    assert names == {
        "noise_parameters",
        "locs.layer.weight_unconstrained",
        "scales.layer.weight_unconstrained",
        "locs.scale_unconstrained",
        "scales.scale_unconstrained",
    }
    assert isinstance(guide.get_traces()[1].nodes["scale"]["fn"], TruncatedLogNormal)
    assert all(parameter.grad is not None for parameter in guide.parameters())
    median = guide.median(torch.ones(2, 3))
    torch.testing.assert_close(median["noise"], guide.noise_posterior("noise").icdf(torch.full((4,), 0.5)))
    assert median["layer.weight"].shape == (4, 3)


def test_another_parent():
    class Guide(AutoTruncatedLogNormal, AutoHierarchicalNormalMessenger):
        pass

    guide = Guide(BayesianNet())
    guide(torch.ones(2, 3))
    assert "weights.layer.weight_unconstrained" in dict(guide.named_parameters())


def test_copies_share_no_parameters():
    net, guide, args = fitted()
    twin = copy.deepcopy(guide)
    with torch.no_grad():
        twin.noise_locs.fill_(-3.0)
    assert (guide.noise_locs != -3.0).all()
    pair = copy.deepcopy(nn.ModuleList([net, guide]))
    pair[0][1].get_submodule("units_noise_on_output").kept[0] = False
    assert guide.noise["0"].kept.all()


def test_a_copy_of_model_and_guide_stays_together():
    net = mlp()
    model = Classification(net, num_examples=100)
    elbo = copy.deepcopy(TraceMeanField_ELBO()(model, AutoTruncatedLogNormal(model)))
    assert elbo.guide.noise["0"] in set(elbo.model.modules())


def test_state_dicts_restore_the_guide():
    net, guide, args = fitted()
    other = AutoTruncatedLogNormal(mlp())
    other.load_state_dict(guide.state_dict())
    torch.testing.assert_close(other.noise_posterior("2").mean, guide.noise_posterior("2").mean)


def test_mistakes():
    twice = nn.Sequential(MultiplicativeNoise(3), MultiplicativeNoise(3))
    with pytest.raises(ReductionError, match="'noise'"):
        AutoTruncatedLogNormal(twice)
    with pytest.raises(ReductionError, match="no noise site '1'"):
        AutoTruncatedLogNormal(mlp()).noise_posterior("1")
