# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Guides that run networks: amortised ones, as functions and as methods."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

from pyro_bmrs import reduce_model, refit
from pyro_bmrs.evidence import log_evidence_change
from pyro_bmrs.posteriors.guides.networks import Substitution, tensors_of_networks
from tests.programs import fit

pytestmark = pytest.mark.usefixtures("double")

NARROW = dist.Normal(torch.zeros(2).double(), torch.tensor([1.0, 0.3]).double()).to_event(1)


@pytest.mark.parametrize(
    ("network", "x"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)),
        (nn.LSTM(3, 4), torch.randn(5, 2, 3)),
        (nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3).eval()), torch.randn(4, 2, 6)),
        (nn.MultiheadAttention(4, 2), torch.randn(3, 1, 4)),
    ],
    ids=["layers", "lstm", "batch norm", "attention"],
)
def test_a_network_computes_with_what_stands_in_place_of_its_own(network, x):
    network = network.float()
    x = x.float()
    run = (lambda: network(x, x, x)[0]) if isinstance(network, nn.MultiheadAttention) else (lambda: network(x))
    pairs = [(tensor, tensor.detach().clone()) for tensor in (*network.parameters(), *network.buffers())]
    for tensor, other in pairs:
        other.requires_grad_(tensor.requires_grad)
    expected = run()[0].detach().clone()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    with Substitution(pairs):
        found = run()[0]
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    others = {id(tensor): other for tensor, other in pairs}
    assert all(parameter.grad is None for parameter in network.parameters())
    assert any(others[id(parameter)].grad is not None for parameter in network.parameters())


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4))
        self.decoder = nn.Linear(2, 4)
        self.double()

    def model(self, x, subsample_size=None):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), subsample_size=subsample_size) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.3).to_event(1), obs=x[index])

    def guide(self, x, subsample_size=None):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), subsample_size=subsample_size) as index:
            pyro.sample("z", self.posterior(x[index]))

    def posterior(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


def as_method():
    vae = Autoencoder()
    return vae, vae.guide


def as_function():
    vae = Autoencoder()
    return vae, lambda x, subsample_size=None: vae.guide(x, subsample_size)


class Callable:
    def __init__(self, vae) -> None:
        self.vae = vae

    def __call__(self, x, subsample_size=None):
        return self.vae.guide(x, subsample_size)


def as_object():
    vae = Autoencoder()
    return vae, Callable(vae)


@pytest.fixture(params=[as_method, as_function, as_object])
def fitted(request):
    pyro.set_rng_seed(0)
    vae, guide = request.param()
    x = torch.randn(12, 2) @ torch.randn(2, 4)
    return vae, fit(vae.model, guide, x, steps=20), x


def drawn(guide, x):
    pyro.set_rng_seed(1)
    with torch.no_grad():
        return poutine.trace(guide).get_trace(x).nodes["z"]["value"].clone()


def test_more_svi_does_not_change_the_reduction(fitted):
    vae, guide, x = fitted
    reduction = reduce_model(guide, {"z": NARROW}, model=vae.model, args=(x,))
    # Of the reduced guide nothing would be seen, since the reduced posterior stands in the place of the network's.
    unreduced = reduction.fitted.unreduced_guide
    delta, before = reduction.delta_evidence.item(), drawn(unreduced, x)
    network = {name: value.clone() for name, value in vae.encoder.state_dict().items()}
    torch.testing.assert_close(before, drawn(guide, x))
    fit(vae.model, guide, x)
    vae.encoder.load_state_dict({name: value + 1 for name, value in network.items()})
    assert torch.equal(drawn(unreduced, x), before)
    assert reduction.delta_evidence.item() == delta


def test_more_svi_with_its_copy_trains_that_alone(fitted):
    vae, guide, x = fitted
    copy = reduce_model(guide, {"z": NARROW}, model=vae.model, args=(x,)).fitted.unreduced_guide
    network = {name: value.clone() for name, value in vae.encoder.state_dict().items()}
    before = drawn(copy, x)
    svi = SVI(poutine.block(vae.model, hide_types=["param"]), copy, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(3):
        svi.step(x)
    assert (drawn(copy, x) - before).abs().max() > 1e-3
    for name, value in vae.encoder.state_dict().items():
        assert torch.equal(value, network[name]), name


@pytest.mark.filterwarnings("ignore:the refit had not converged", "ignore:the fitted guide had not converged")
def test_it_goes_on(fitted):
    vae, guide, x = fitted
    reduction = reduce_model(guide, {"z": NARROW}, model=vae.model, args=(x,))
    assert Predictive(reduction.model, guide=reduction.guide, num_samples=3)(x)["z"].shape == (3, 12, 2)
    # A method is another object each time that it is asked for.
    asked = vae.guide if reduction.fitted.guide == vae.guide else guide
    check = refit(vae.model, asked, reduction, max_steps=10, window=10, num_particles=10)
    assert check.divergence.keys() == {"z"} and check.delta_elbo + check.fit_gain >= check.initial_delta_elbo - 1e-8


def test_other_data_have_the_posterior_that_the_network_gives_them(fitted):
    vae, guide, _ = fitted
    vae.eval()
    others = torch.randn(5, 4)
    prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    expected = log_evidence_change(vae.posterior(others), prior, NARROW)
    reduction = reduce_model(guide, {"z": NARROW}, model=vae.model, args=(others,))
    torch.testing.assert_close(reduction.delta_evidence, expected.sum())
    # A subsample stands for the whole.
    pyro.set_rng_seed(0)
    part = reduce_model(guide, {"z": NARROW}, model=vae.model, args=(others, 2))
    each = part.elementwise["z"].sum(-1) if part.elementwise["z"].dim() == 2 else part.elementwise["z"]
    assert all(torch.isclose(expected, value).any() for value in each)
    torch.testing.assert_close(part.delta_evidence, each.sum() * 5 / 2)


def test_a_look_at_the_networks_of_a_program_changes_nothing():
    norm = nn.BatchNorm1d(3)
    before = norm.running_mean.clone()
    (first, *_) = tensors_of_networks(lambda x: norm(x), (torch.randn(8, 3).to(before),), {})
    assert first[0] is norm.weight and torch.equal(*first)
    assert torch.equal(norm.running_mean, before)
