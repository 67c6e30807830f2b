# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The noise of all sites together is, site by site, what the distributions of each would be."""

from __future__ import annotations

import copy

import pytest
import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_bmrs.distributions import LogUniform
from pyro_bmrs.pruning import MultiplicativeNoise
from pyro_bmrs.pruning.noise.noise_posterior import LazyDensities, NoisePosterior, NoisePosteriors, NoiseUnits

SIZES = {"a": 3, "b": 1, "c": 4}
RTOL = 1e-9


def units() -> NoiseUnits:
    """Three sites on intervals of their own, one of them with a unit that is gone."""
    noise = {name: MultiplicativeNoise(size, name=name, low=10.0**-size).double() for name, size in SIZES.items()}
    noise["c"].kept[2] = False
    return NoiseUnits(noise)


def parameters() -> Tensor:
    locs, log_scales = torch.linspace(-12.0, 0.5, 8), torch.linspace(2.0, -4.0, 8)
    return torch.stack([locs, log_scales]).double().requires_grad_()


def divergence(posteriors: NoisePosteriors, name: str) -> Tensor:
    """Of the units that are left, from the general rule."""
    noise = posteriors.units.noise[name]
    return (kl_divergence(posteriors.at(name), noise.unit_prior) * noise.kept).sum()


def gradient(value: Tensor, posteriors: NoisePosteriors) -> Tensor:
    return torch.autograd.grad(value, posteriors.parameters, retain_graph=True)[0]


def test_divergences_are_those_of_each_site() -> None:
    posteriors = NoisePosteriors(units(), parameters())
    assert posteriors.divergences.keys() == SIZES.keys()
    for name, together in posteriors.divergences.items():
        alone = divergence(posteriors, name)
        torch.testing.assert_close(together, alone, rtol=RTOL, atol=1e-12)
        gradients = [
            torch.autograd.grad(value, posteriors.parameters, retain_graph=True)[0] for value in (together, alone)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)


def test_the_weighted_divergence_has_the_weight_of_each_site() -> None:
    weights = {"a": 0.5, "b": 0.0, "c": 7.0}
    posteriors = NoisePosteriors(units(), parameters(), weights.__getitem__)
    expected = sum(weight * divergence(posteriors, name) for name, weight in weights.items())
    torch.testing.assert_close(posteriors.weighted_divergence, expected, rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_draws_of_all_sites_are_quantiles_of_one_set_of_uniform_numbers(shape: tuple[int, ...]) -> None:
    posteriors = NoisePosteriors(units(), parameters())
    torch.manual_seed(1)
    drawn = {name: posteriors.draw(name, torch.Size(shape)) for name in SIZES}
    torch.manual_seed(1)
    uniform = torch.rand((*shape, 8), dtype=torch.float64).split(list(SIZES.values()), -1)
    for name, u in zip(SIZES, uniform):
        noise = posteriors.units.noise[name]
        quantile = torch.where(noise.kept, posteriors.at(name).icdf(u), noise.unit_prior.low)
        torch.testing.assert_close(drawn[name], quantile, rtol=1e-8, atol=0)
        torch.testing.assert_close(
            *(gradient(value[..., noise.kept].sum(), posteriors) for value in (drawn[name], quantile)),
            rtol=1e-6,
            atol=1e-12,
        )
        assert posteriors.draws_of(name, drawn[name]) is not None
        again = posteriors.draw(name, torch.Size(shape))
        assert not torch.equal(again, drawn[name]) and posteriors.draws_of(name, drawn[name]) is None


@pytest.mark.parametrize("shape", [(), (5,)])
def test_densities_are_those_of_the_distributions(shape: tuple[int, ...]) -> None:
    """Of what was drawn, for which all sites are computed together, and of any other value."""
    posteriors = NoisePosteriors(units(), parameters())
    for name in SIZES:
        site, noise = NoisePosterior(posteriors, name, shape), posteriors.units.noise[name]
        assert (site.batch_shape, site.event_shape) == (shape, (SIZES[name],))
        drawn = site.rsample()
        for value in (drawn, drawn.detach().clone()):
            expected = (posteriors.at(name).log_prob(value) * noise.kept).sum(-1)
            torch.testing.assert_close(site.log_prob(value), expected, rtol=RTOL, atol=1e-9)
            prior = (noise.unit_prior.log_prob(value) * noise.kept).sum(-1)
            torch.testing.assert_close(site.log_prior(value, noise.prior), prior, rtol=RTOL, atol=1e-9)


def test_the_divergence_from_another_prior_is_that_of_the_distributions() -> None:
    posteriors = NoisePosteriors(units(), parameters())
    site = NoisePosterior(posteriors, "a")
    wide = LogUniform(torch.tensor(1e-9).double(), 2.0).expand((3,))
    expected = kl_divergence(posteriors.at("a"), wide).sum()
    masked = MaskedDistribution(wide, torch.tensor(True)).to_event(1)
    torch.testing.assert_close(kl_divergence(site, masked), expected, rtol=RTOL, atol=0)
    own = posteriors.units.noise["a"].prior
    torch.testing.assert_close(kl_divergence(site, own), divergence(posteriors, "a"), rtol=RTOL, atol=0)


def test_what_is_made_of_masks_and_priors_follows_them() -> None:
    both, weights = units(), (1.0, 2.0, 3.0)
    expected = torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 0.0, 3.0]).double()
    assert torch.equal(both.weights(weights), expected) and not both.is_whole
    both.noise["a"].kept[0] = False
    expected[0] = 0
    assert torch.equal(both.weights(weights), expected)
    assert torch.equal(both.weights((0.0, 2.0, 3.0))[:3], torch.zeros(3).double())
    for noise in both.noise.values():
        noise.float()
    assert both.weights(weights).dtype == both.tables.log_ends.dtype == torch.float32
    for noise in both.noise.values():
        noise.kept.fill_(True)
    assert both.is_whole and (both.weights(weights) > 0).all()


def test_a_copy_is_of_the_copied_modules_alone_where_they_are_copied_with_it() -> None:
    both = units()
    memo: dict[int, object] = {}
    noise = copy.deepcopy(both.noise, memo)
    assert copy.deepcopy(both, memo).noise["a"] is noise["a"]
    assert copy.deepcopy(both).noise["a"] is both.noise["a"]


def test_densities_of_a_site_are_computed_when_they_are_asked_for() -> None:
    asked = []

    class Counting(NoisePosterior):
        def log_prob(self, value: Tensor) -> Tensor:
            asked.append(value)
            return super().log_prob(value)

    posteriors = NoisePosteriors(units(), parameters())
    fn = Counting(posteriors, "a")
    value = fn.rsample()
    site = LazyDensities({"fn": fn, "value": value, "scale": 0.5, "mask": None})
    assert "log_prob" in site and "log_prob_sum" in site and "other" not in site and not asked
    expected = posteriors.at("a").log_prob(value).sum()
    torch.testing.assert_close(site["log_prob_sum"], 0.5 * expected, rtol=RTOL, atol=0)
    torch.testing.assert_close(site["unscaled_log_prob"], expected, rtol=RTOL, atol=0)
    assert len(asked) == 1
    with pytest.raises(KeyError):
        site["other"]
