# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, attach_noise, noise_sites
from pyro_bmrs.pruning.criteria.evidence.unit_likelihoods import unit_likelihoods
from pyro_bmrs.pruning.criteria.evidence.unit_profile import places


class Branching(nn.Module):
    """A network that vmap cannot run: it reads a value."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = torch.tanh(self.first(x.flatten(1)))
        return self.second(hidden) if hidden.sum().item() > -1e9 else None


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(3, 4, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(4 * 6, 5), nn.ReLU(), nn.Linear(5, 3)),
    )


def attention():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
    return nn.Sequential(
        nn.Linear(3, 6), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Flatten(), nn.Linear(12, 3)
    )


NETWORKS = {"convolutions": (convolutions, (1, 2, 3)), "attention": (attention, (2, 3)), "branching": (Branching, (6,))}


def prepared(kind, dtype=torch.float64, count=9):
    torch.manual_seed(0)
    build, shape = NETWORKS[kind]
    net = attach_noise(build().to(dtype))
    guide = AutoTruncatedLogNormal(Classification(net, num_examples=count))
    guide.noise_locs.data.copy_(-torch.rand(len(guide.noise_locs)))
    means = guide.mean_noise()
    at = {name: places(mean, guide.noise[name].unit_prior) for name, mean in means.items()}
    x, y = torch.randn(count, *shape, dtype=dtype), torch.randint(3, (count,))
    return net, guide, at, {name: noise.kept for name, noise in guide.noise.items()}, x, y


def log_likelihood(net, noise, x, y):
    return -F.cross_entropy(poutine.condition(net, data=noise)(x), y, reduction="none")


@pytest.mark.parametrize("kind", NETWORKS)
def test_each_unit_changed_by_hand(kind):
    net, guide, at, kept, x, y = prepared(kind)
    for name in at:
        kept[name][0] = False
    sums = unit_likelihoods(net, guide.model, [(x[:5], y[:5]), (x[5:], y[5:])], at, kept)
    net.eval()
    means = {name: place.mean for name, place in at.items()}
    base = log_likelihood(net, means, x, y)
    for name, place in at.items():
        for unit in range(1, len(place.mean)):
            differences = []
            for noise in place.noise[unit]:
                changed = means[name].clone()
                changed[unit] = noise
                differences.append(log_likelihood(net, {**means, name: changed}, x, y) - base)
            by_place = torch.stack(differences).detach()
            assert sums[name].count == sums[name].exact.count == 9 and not sums[name].linear.count
            found = sums[name].exact
            torch.testing.assert_close(found.values[unit, :3], by_place.sum(-1), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found.products[unit, :3, :3], by_place @ by_place.T, rtol=1e-9, atol=1e-9)

            def total(step, name=name, unit=unit):
                changed = means[name].clone()
                changed[unit] += step
                return log_likelihood(net, {**means, name: changed}, x, y).sum().item()

            slope = (total(1e-5) - total(-1e-5)) / 2e-5
            assert sums[name].slope[unit].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)
        assert not sums[name].exact.values[0].any()


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network_stays_as_it_is(kind):
    net, guide, at, kept, x, y = prepared(kind)
    net.train()
    list(net.children())[0].eval()
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    with torch.no_grad():
        unit_likelihoods(net, guide.model, [(x, y)], at, kept)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert not [name for module in net.modules() for name in vars(module) if name == "weight"]


def test_how_examples_are_batched_does_not_matter():
    net, guide, at, kept, x, y = prepared("convolutions", count=1100)
    whole = unit_likelihoods(net, guide.model, [(x, y)], at, kept)
    for inputs in (lambda x: (x,), lambda x: {"input": x}):
        parts = ((inputs(part), labels) for part, labels in zip(x.split(300), y.split(300)))
        again = unit_likelihoods(net, guide.model, parts, at, kept)
        for name, total in whole.items():
            assert again[name].count == 1100
            torch.testing.assert_close(again[name].slope, total.slope)
            torch.testing.assert_close(again[name].exact.values, total.exact.values)
            torch.testing.assert_close(again[name].exact.products, total.exact.products)


def test_targets_may_be_labels_among_the_inputs():
    net, guide, at, kept, x, y = prepared("convolutions")
    pairs = unit_likelihoods(net, guide.model, [(x, y)], at, kept)
    mapped = unit_likelihoods(net, guide.model, [{"input": x, "labels": y}], at, kept)
    for name, total in pairs.items():
        torch.testing.assert_close(mapped[name].exact.values, total.exact.values)
    with pytest.raises(ReductionError, match="targets as 'labels'"):
        unit_likelihoods(net, guide.model, [{"input": x}], at, kept)


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_share_of_the_examples_says_what_linear_outputs_miss(share):
    """The others are known by linear outputs, up to an error that is told."""
    net, guide, at, kept, x, y = prepared("convolutions", count=90)
    state = torch.get_rng_state()
    some = unit_likelihoods(net, guide.model, [(x[:40], y[:40]), (x[40:], y[40:])], at, kept, share=share)
    assert torch.equal(torch.get_rng_state(), state)
    whole = unit_likelihoods(net, guide.model, [(x, y)], at, kept)
    for name, total in some.items():
        assert (total.count, total.linear.count) == (90, 90)
        assert total.exact.count == math.ceil(share * 90)
        torch.testing.assert_close(total.slope, whole[name].slope)
        if share > 0.1:
            said = total.covariance_of(90).diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
            error = (total.values_of(90) - whole[name].values_of(90)).abs()
            # A kink that only others meet is not seen.
            assert (error <= 4 * said + 1e-2).all()
    # Behind the last noise the network is linear.
    last = list(some)[-1]
    exact, beside = some[last].exact.values.chunk(2, -1)
    torch.testing.assert_close(exact, beside)
    torch.testing.assert_close(some[last].linear.values, whole[last].exact.values[:, :3])


def test_without_linear_outputs_the_share_stands_for_all():
    net, guide, at, kept, x, y = prepared("attention", count=40)
    sums = unit_likelihoods(net, guide.model, [(x, y)], at, kept, share=0.25)
    for total in sums.values():
        assert (total.count, total.linear.count, total.exact.count) == (40, 0, 10)


def test_mistakes():
    net, guide, at, kept, x, y = prepared("branching")
    with pytest.raises(ReductionError, match="no example"):
        unit_likelihoods(net, guide.model, [], at, kept)
    with pytest.raises(ReductionError, match="more examples than the 9"):
        unit_likelihoods(net, guide.model, [(x, y)] * 2, at, kept)
    net.second.weight.data[0, 0] = torch.nan
    with pytest.raises(ReductionError, match="NaN or infinite where all noise is at its mean"):
        unit_likelihoods(net, guide.model, [(x, y)], at, kept)
    assert list(noise_sites(net)) == ["first"]
