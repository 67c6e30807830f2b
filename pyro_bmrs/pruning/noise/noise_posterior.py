# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The posteriors of all the noise in a network, drawn and compared with their priors in one go.

In a network of six layers of fifty units, what a training step costs is the number of operations, not their size. The
noise of all layers is therefore one vector while a step lasts; each site sees its part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from pyro.distributions import Independent, MaskedDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence
from torch.distributions.kl import register_kl
from torch.types import _size

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.pruning.noise.multiplicative_noise import MultiplicativeNoise
from pyro_bmrs.pruning.noise.steps.law import LogUniforms
from pyro_bmrs.pruning.noise.steps.noise_step import NoiseStep, noise_step
from pyro_bmrs.pruning.noise.steps.precision import full_precision
from pyro_bmrs.pruning.noise.steps.remembered import Remembered


class NoiseUnits:
    """
    All the units of a network that have noise, one site after the other.

    :param noise: the noise modules, by site name; those of a model, which a copy of the guide shares with its model.
    """

    def __init__(self, noise: Mapping[str, MultiplicativeNoise]) -> None:
        self.noise = dict(noise)
        self.sizes = [module.num_units for module in self.noise.values()]
        self.slices = [slice(start, end) for start, end in pairwise([0, *accumulate(self.sizes)])]
        self._tables: Remembered[Tables] = Remembered()
        self._left: Remembered[UnitsLeft | None] = Remembered()
        self._weights: Remembered[Tensor] = Remembered()

    def __deepcopy__(self, memo: dict[int, Any]) -> NoiseUnits:
        return NoiseUnits({name: memo.get(id(module), module) for name, module in self.noise.items()})

    @property
    def is_whole(self) -> bool:
        """Whether all units of all sites are kept."""
        return all(module.is_whole for module in self.noise.values())

    def weights(self, sites: tuple[float, ...]) -> Tensor:
        """The weights of all sites by unit, 0 where a unit is not kept."""
        return self._weights.of(self._buffers(), partial(self._make_weights, sites), sites)

    def _make_weights(self, sites: tuple[float, ...]) -> Tensor:
        members, kept = self.tables.members, torch.cat([module.kept for module in self.noise.values()])
        with full_precision(kept.device):
            return kept * (members @ members.new_tensor(sites))

    def split(self, units: Tensor) -> dict[str, Tensor]:
        """Values of all units by site."""
        return dict(zip(self.noise, units.split(self.sizes, dim=-1)))

    @property
    def tables(self) -> Tables:
        """What the priors say of all units."""
        return self._tables.of(self._buffers(), self._make_tables)

    def _make_tables(self) -> Tables:
        priors = [module.unit_prior for module in self.noise.values()]
        ends, log_ends = _ends(priors), _ends([prior.base_dist for prior in priors])
        site = torch.repeat_interleave(torch.tensor(self.sizes)).to(ends.device)
        members = (site.unsqueeze(-1) == torch.arange(len(self.sizes), device=ends.device)).to(ends.dtype)
        return Tables(LogUniforms.of(ends, ends.dtype), log_ends, members)

    @property
    def left(self) -> UnitsLeft | None:
        """The units that are kept, where some are and others are not."""
        return self._left.of(self._buffers(), self._make_left)

    def _make_left(self) -> UnitsLeft | None:
        of_sites = [module.kept.nonzero().squeeze(-1) for module in self.noise.values()]
        ends = [0, *accumulate(map(len, of_sites))]
        if ends[-1] in (0, sum(self.sizes)):
            return None
        units = torch.cat([kept + site.start for kept, site in zip(of_sites, self.slices)])
        slices = [slice(start, end) for start, end in pairwise(ends)]
        lows = _ends([module.unit_prior for module in self.noise.values()])[0].split(self.sizes)
        return UnitsLeft(units, of_sites, slices, self.tables.of_units.at(units), lows)

    def _buffers(self) -> list[Tensor]:
        return [buffer for module in self.noise.values() for buffer in module.buffers_of_prior]


def _ends(distributions: Sequence[Any]) -> Tensor:
    """The low and the high ends of distributions side by side, shape ``(2, units)``."""
    lows, highs = [part.low for part in distributions], [part.high for part in distributions]
    return torch.stack([torch.cat(lows), torch.cat(highs)])


class Tables(NamedTuple):
    """What the priors say of all units, made once for as long as they stay."""

    of_units: LogUniforms
    log_ends: Tensor  # logarithms of low and high, of shape (2, units)
    members: Tensor  # which units are a site's: 1 or 0, of shape (units, sites)


class UnitsLeft(NamedTuple):
    """
    The units that are kept, of which alone a step computes anything.

    :param units: their numbers among all units.
    :param of_sites: by site, their numbers in it.
    :param slices: by site, which of those that are kept are its.
    :param priors: theirs.
    :param lows: by site, the low ends of all its units.
    """

    units: Tensor
    of_sites: Sequence[Tensor]
    slices: Sequence[slice]
    priors: LogUniforms
    lows: Sequence[Tensor]

    def step(self, uniform: Tensor, parameters: Tensor, weights: Tensor | None) -> NoiseStep:
        """
        A step as it is for all units: what are not kept lie at the low end, and diverge by nothing.

        :param uniform: probabilities for all units.
        :param parameters: of all units.
        :param weights: of their divergences.
        """
        step = noise_step(
            uniform.index_select(-1, self.units),
            parameters.index_select(-1, self.units),
            self.priors,
            self.slices,
            None if weights is None else weights.index_select(-1, self.units),
        )
        values = [
            low.expand(*value.shape[:-1], -1).index_copy(-1, kept, value)
            for kept, value, low in zip(self.of_sites, step.values, self.lows)
        ]
        nothing = torch.zeros_like(parameters[0])
        divergence, log_normaliser = (
            nothing.index_copy(-1, self.units, part) for part in (step.divergence, step.log_normaliser)
        )
        return NoiseStep(tuple(values), divergence, log_normaliser, step.weighted)


class NoisePosteriors:
    """
    The posteriors of all noise at the parameters of one moment.

    :param units: the units.
    :param parameters: log-locations of all units, and logs of their log-scales, shape ``(2, units)``.
    :param weight: of the divergence of a site, given its name.
    """

    def __init__(self, units: NoiseUnits, parameters: Tensor, weight: Callable[[str], float] | None = None) -> None:
        self.units, self.parameters = units, parameters
        self.tables = units.tables
        self._weights = None if weight is None else units.weights(tuple(map(weight, units.noise)))
        # A part of the network that is checkpointed runs without gradients, and may be the first to ask for noise.
        self._has_gradients = torch.is_grad_enabled()
        self._step: NoiseStep | None = None
        self._drawn: dict[_size, tuple[dict[str, Tensor], Draws]] = {}
        self._given: dict[str, tuple[Tensor, Draws]] = {}
        self._shared: dict[tuple[str, _size], Tensor] = {}

    @cached_property
    def _by_site(self) -> dict[str, Tensor]:
        return self.units.split(self.parameters)

    def at(self, name: str) -> TruncatedLogNormal:
        """The posterior of each unit at one site."""
        prior, (loc, log_scale) = self.units.noise[name].unit_prior, self._by_site[name]
        return TruncatedLogNormal(loc, log_scale.exp(), prior.low, prior.high)

    def _next_step(self, uniform: Tensor) -> NoiseStep:
        with torch.set_grad_enabled(self._has_gradients), full_precision(uniform.device):
            left = self.units.left
            if left is None:
                of_units, slices = self.tables.of_units, self.units.slices
                self._step = noise_step(uniform, self.parameters, of_units, slices, self._weights)
            else:
                self._step = left.step(uniform, self.parameters, self._weights)
        return self._step

    @property
    def any_step(self) -> NoiseStep:
        """The divergences from the priors and the normalisers, which come with draws; else of a step without any."""
        return self._step or self._next_step(self.parameters.new_empty(0, self.parameters.shape[-1]))

    @cached_property
    def divergences(self) -> dict[str, Tensor]:
        """Of each site's posterior from its prior."""
        return self.sum_kept(self.any_step.divergence)

    def sum_kept(self, units: Tensor) -> dict[str, Tensor]:
        """By site, the sum over the units that are kept."""
        if not self.units.is_whole:
            units = units * torch.cat([module.kept for module in self.units.noise.values()])
        with full_precision(units.device):
            return dict(zip(self.units.noise, torch.matmul(units, self.tables.members).unbind(-1)))

    @property
    def weighted_divergence(self) -> Tensor:
        """Of all noise from its prior, each site's with its weight."""
        weighted = self.any_step.weighted
        assert weighted is not None, "posteriors with weights"
        return weighted

    def draw(self, name: str, shape: _size) -> Tensor:
        """The noise at one site; drawn for all sites at once, and anew once it has been given away."""
        values, draws = self._drawn.get(shape, ({}, None))
        if draws is None or name not in values:
            like = self.parameters
            uniform = torch.rand((*shape, like.shape[-1]), dtype=like.dtype, device=like.device)
            draws = Draws(self._next_step(uniform).values)
            values = dict(zip(self.units.noise, draws.values))
            self._drawn[shape] = values, draws
        value = values.pop(name)
        self._given[name] = value, draws
        return value

    def shared(self, name: str, shape: _size) -> Tensor:
        """The one draw at a site, of a shape, that all calls of a layer share."""
        value = self._shared.get((name, shape))
        if value is None:
            value = self._shared[name, shape] = self.draw(name, shape)
        return value

    def draws_of(self, name: str, value: Tensor) -> Draws | None:
        """The draws that a value is one of, if it is what was given at a site last."""
        given, draws = self._given.get(name, (None, None))
        return draws if given is value else None

    def log_posterior(self, name: str, draws: Draws) -> Tensor:
        """The log density of one site's noise, of draws of all, under its posterior."""
        if draws.log_posteriors is None:
            # The mode stands still, as in the derivatives of the normaliser.
            loc, log_scale = self.parameters
            mode = loc.detach().clamp(*self.tables.log_ends)
            narrowness, log_values = torch.exp(-log_scale), draws.log_values
            place = (log_values - mode) * narrowness
            energy = place * ((mode - loc) * narrowness + 0.5 * place)
            draws.log_posteriors = self.sum_kept(-energy - self.any_step.log_normaliser - log_values)
        return draws.log_posteriors[name]

    def log_prior(self, name: str, draws: Draws) -> Tensor:
        """The log density of one site's noise, of draws of all, under its prior."""
        if draws.log_priors is None:
            low, high = self.tables.log_ends
            draws.log_priors = self.sum_kept(-draws.log_values - (high - low).log())
        return draws.log_priors[name]


class Draws:
    """
    The noise of all sites, drawn together, and its log densities by site once they are known.

    :param values: the noise by site, each of shape ``(..., units of the site)``.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        self.values = values
        self.log_posteriors: dict[str, Tensor] | None = None
        self.log_priors: dict[str, Tensor] | None = None

    @cached_property
    def log_values(self) -> Tensor:
        """The logarithms of the noise of all units, shape ``(..., units)``."""
        return torch.cat(tuple(self.values), -1).log()


class NoisePosterior(Independent):
    """
    The posterior at one site, as the guide gives it: masked truncated log-normals, one event.

    It is part of :class:`NoisePosteriors`, and made by itself only where more is asked than a draw, its density, and
    the divergence.

    :param together: the posteriors of all noise.
    :param name: the site.
    :param batch_shape: that of the plates around the site.
    """

    has_rsample = True
    _validate_args = False

    def __init__(self, together: NoisePosteriors, name: str, batch_shape: _size = ()) -> None:
        self._together, self._name = together, name
        self._batch_shape = torch.Size(batch_shape)
        self._event_shape = torch.Size((together.units.noise[name].num_units,))
        self.reinterpreted_batch_ndims = 1

    @cached_property
    def base_dist(self) -> Any:
        """The distribution by itself."""
        units = self._together.at(self._name).expand(self._batch_shape + self._event_shape)
        return MaskedDistribution(units, self._together.units.noise[self._name].kept)

    def expand(self, batch_shape: _size, _instance: Any = None) -> NoisePosterior:
        return NoisePosterior(self._together, self._name, batch_shape)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        return self._together.draw(self._name, torch.Size(sample_shape) + self._batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        draws = self._together.draws_of(self._name, value)
        if draws is not None:
            return self._together.log_posterior(self._name, draws)
        log_prob: Tensor = Independent.log_prob(self, value)
        return log_prob

    def log_prior(self, value: Tensor, prior: Any) -> Tensor:
        """The log density of a value under a prior."""
        draws = self._together.draws_of(self._name, value)
        if draws is not None and self._is_own(prior):
            return self._together.log_prior(self._name, draws)
        log_prob: Tensor = prior.log_prob(value)
        return log_prob

    def divergence(self, prior: Any) -> Tensor:
        """From a prior; from the noise's own, that which was computed together with those at the other sites."""
        if self._is_own(prior):
            divergence = self._together.divergences[self._name]
            return divergence.expand(self._batch_shape) if self._batch_shape else divergence
        return kl_divergence(Independent(self.base_dist, 1), prior)

    def _is_own(self, prior: Any) -> bool:
        own = self._together.units.noise[self._name]
        if prior is own.prior:
            return True
        # A plate's is the same, expanded.
        units = getattr(prior.base_dist, "base_dist", None)
        return isinstance(units, LogUniform) and units.low.data_ptr() == own.unit_prior.low.data_ptr()


register_kl(NoisePosterior, Independent)(NoisePosterior.divergence)


_DENSITIES = frozenset(["log_prob", "log_prob_sum", "unscaled_log_prob", "score_parts"])


class LazyDensities(dict[str, Any]):
    """
    A site of a trace whose log densities are computed when they are asked for.

    An ELBO with closed-form divergences asks for none, but Pyro computes those of all sites before it knows.

    :param site: the site.
    :param posterior: the posterior at it, by which to compute the density of its prior, in a trace of the model.
    """

    def __init__(self, site: Any, posterior: NoisePosterior | None = None) -> None:
        super().__init__(site)
        self._posterior = posterior

    def __contains__(self, key: object) -> bool:
        return key in _DENSITIES or super().__contains__(key)

    def __missing__(self, key: str) -> Any:
        if key not in _DENSITIES:
            raise KeyError(key)
        fn, value = self["fn"], self["value"]
        log_prob = fn.log_prob(value) if self._posterior is None else self._posterior.log_prior(value, fn)
        scaled = scale_and_mask(log_prob, self["scale"], self["mask"])
        self["unscaled_log_prob"], self["log_prob"], self["log_prob_sum"] = log_prob, scaled, scaled.sum()
        no_score: Any = 0
        self["score_parts"] = ScoreParts(scaled, no_score, scaled)
        return self[key]
