# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroSample
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn
from torch.distributions import kl_divergence
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    Classification,
    NoiseELBO,
    Regression,
    attach_noise,
    compact,
    detach_noise,
    parameter_groups,
    prune,
)


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


class Checkpointed(nn.Module):
    """Two hidden layers and a dropout, of which activations are not kept if it is said how."""

    def __init__(self, how=None):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.act1, self.act2, self.dropout, self.how = nn.Tanh(), nn.Tanh(), nn.Dropout(0.5), how

    def hidden(self, x):
        return self.dropout(self.act2(self.second(self.act1(self.first(x)))))

    def forward(self, x):
        # Read part by part, however it is, so that the noise is in the same places.
        assert x.isfinite().all()
        hidden = self.hidden(x) if self.how is None else checkpoint(self.hidden, x, use_reentrant=self.how)
        return self.last(hidden)


def checkpointed_gradients(elbo, how, per_example, pairs):
    """Of the sum of the losses of several batches, all of which wait for one backward pass."""
    torch.manual_seed(0)
    model = Classification(attach_noise(Checkpointed(how), ["first", "second"], per_example=per_example), 32)
    guide = AutoTruncatedLogNormal(model)
    guide.noise_log_scales.data.fill_(0.0)
    module = elbo()(model, guide)
    torch.manual_seed(1)
    sum(module(x, y) for x, y in pairs).backward()
    return [parameter.grad for parameter in module.parameters()], torch.rand(1)


@pytest.mark.parametrize("elbo", [NoiseELBO, TraceMeanField_ELBO, Trace_ELBO])
@pytest.mark.parametrize("per_example", [False, True])
def test_activations_that_are_computed_again_meet_the_same_noise(elbo, per_example):
    pairs = [(torch.randn(6, 4, requires_grad=True), torch.randint(2, (6,))) for _ in range(3)]
    expected, following = checkpointed_gradients(elbo, None, per_example, pairs)
    for how in (False, True):
        found, then = checkpointed_gradients(elbo, how, per_example, pairs)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(then, following)


def test_checkpoints_that_keep_no_state_of_the_generators_are_refused():
    net = Checkpointed(False)
    net.hidden = partial(checkpoint, net.hidden, use_reentrant=False, preserve_rng_state=False)
    net.how = None
    model = Classification(attach_noise(net, ["first", "second"]), 32)
    loss = NoiseELBO()(model, AutoTruncatedLogNormal(model))(torch.randn(6, 4), torch.randint(2, (6,)))
    with pytest.raises(ReductionError, match="preserve_rng_state=True"):
        loss.backward()


@pytest.mark.parametrize("elbo", [NoiseELBO, TraceMeanField_ELBO, Trace_ELBO])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_example", [False, True])
def test_under_autocast_the_divergence_is_in_single_precision(elbo, dtype, per_example):
    """The loss less the log likelihood is what it is without autocast, up to the rounding of that difference."""
    model = Classification(network(per_example=per_example), 2, kl_weight=1.0)
    guide = AutoTruncatedLogNormal(model)
    with torch.no_grad():
        guide.noise_log_scales.copy_(torch.linspace(-4.0, 2.0, len(guide.noise_locs)))
    divergence = sum(kl_divergence(guide.noise_posterior(n), s.unit_prior).sum() for n, s in guide.noise.items()) / 2
    with torch.autocast("cpu", dtype):
        loss = elbo()(model, guide)(torch.zeros(6, 1, 6, 6), torch.zeros(6).long())
    loss.backward()
    assert loss.dtype == torch.float32
    parameters = [*model.parameters(), guide.noise_parameters]
    assert {parameter.grad.dtype for parameter in parameters} == {torch.float32}
    if elbo is not Trace_ELBO:
        # Of three classes, of which nothing is known: near log 3.
        assert 0.3 < loss - divergence < 2.5


@pytest.mark.parametrize("elbo", [NoiseELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_network_in_half_precision_trains_scores_and_is_pruned(elbo, when):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 2))
    model = Classification(attach_noise(net.bfloat16() if when == "before" else net), 50)
    module = elbo()(model, AutoTruncatedLogNormal(model)).bfloat16()
    guide = module.guide
    assert guide.noise_parameters.dtype == torch.float32 and net[0].weight.dtype == torch.bfloat16
    optimizer = torch.optim.Adam(parameter_groups(module, lr=1e-3))
    x, y = torch.randn(6, 1, 6, 6).bfloat16(), torch.randint(2, (6,))
    # Units that the data do not need: they begin where noise is all but 0.
    guide.noise_parameters.data[:, :2] = torch.tensor([[-15.0], [1.0]])
    for _ in range(3):
        loss = module(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert prune(net, guide).removed["0"].tolist() == [True, True, False, False]
    predicted = net.eval()(x)
    assert predicted.dtype == torch.bfloat16
    torch.testing.assert_close(compact(net, guide, x)(x), predicted, rtol=0.1, atol=0.05)


def test_validation_without_a_tape_comes_before_training():
    model = Classification(network(), 50)
    module = Trace_ELBO()(model, AutoTruncatedLogNormal(model))
    x, y = torch.randn(6, 1, 6, 6), torch.randint(3, (6,))
    with torch.inference_mode():
        assert module(x, y).isfinite() and model.eval()(x).isfinite().all()
    model.train()
    module(x, y).backward()


def multiplied(x, layer):
    return nn.functional.linear(x, layer.weight)


class PassesBy(nn.Module):
    """An attention that has the weight of its projection used elsewhere, where its own code does not show it."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        return multiplied(self.qkv(x)[..., :8], self.proj)


@pytest.mark.parametrize("elbo", [NoiseELBO, TraceMeanField_ELBO, Trace_ELBO])
def test_noise_that_a_network_passes_by(elbo):
    net = attach_noise(nn.Sequential(PassesBy(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)))
    model = Classification(net, 50)
    guide = AutoTruncatedLogNormal(model)
    assert guide.noise.keys() == {"0", "1"}
    data = torch.randn(6, 8), torch.randint(2, (6,))
    with pytest.raises(ReductionError, match=r"noise of \['0'\] never acted: .* name the other layers"):
        elbo()(model, guide)(*data)
    detach_noise(net)
    model = Classification(attach_noise(net, ["1"]), 50)
    assert elbo()(model, AutoTruncatedLogNormal(model))(*data).isfinite()


class Skips(nn.Module):
    """Leaves a layer out at times, as layers are dropped at random."""

    def __init__(self):
        super().__init__()
        self.first, self.act1, self.second, self.act2 = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()
        self.last, self.skips = nn.Linear(4, 2), False

    def forward(self, x):
        x = self.act1(self.first(x))
        return self.last(x if self.skips else self.act2(self.second(x)))


def test_noise_that_acts_in_some_steps_only():
    net = attach_noise(Skips())
    model = Classification(net, 50)
    module = NoiseELBO()(model, AutoTruncatedLogNormal(model))
    net.eval()(torch.randn(1, 4))
    net.train().skips = True
    assert module(torch.randn(6, 4), torch.randint(2, (6,))).isfinite()


def test_an_interrupted_loss_leaves_nothing_behind():
    """Wherever it comes in: after each call of the network's parts in turn."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    convolutions = [nn.Conv1d(1, 8, 2), nn.ReLU(), nn.Conv1d(8, 8, 2), nn.Tanh()]
    net = attach_noise(nn.Sequential(*convolutions, layer, nn.Linear(8, 3)))
    model = Classification(net, 50, class_dim=-1)
    module = NoiseELBO()(model, AutoTruncatedLogNormal(model))
    data = torch.randn(4, 1, 10), torch.randint(3, (4, 8))
    before = {name: value.clone() for name, value in net.state_dict().items()}

    class Interrupts(TorchFunctionMode):
        def __init__(self, after):
            super().__init__()
            self.left = after

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return function(*args, **(kwargs or {}))

    for after in range(0, 60, 3):
        with pytest.raises(KeyboardInterrupt), Interrupts(after):
            module(*data)
        assert not any("weight" in vars(part) for part in net.modules())
        assert not any("given" in vars(noise) for noise in module.guide.noise.values())
        assert not _PYRO_STACK
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert module(*data).isfinite()


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_a_compiled_loss_is_the_same():
    torch.manual_seed(0)
    model = Classification(attach_noise(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))), 50)
    module = NoiseELBO()(model, AutoTruncatedLogNormal(model))
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    found = []
    for loss in (module, torch.compile(module, backend="eager")):
        module.zero_grad()
        torch.manual_seed(1)
        total = loss(x, y) + loss(x, y)
        total.backward()
        found.append([total.detach(), *(parameter.grad.clone() for parameter in module.parameters())])
    torch.testing.assert_close(*found)
