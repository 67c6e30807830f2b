# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The evidence of a model by adaptive importance sampling, from moments that need not be right.

Draws from a heavy-tailed mixture, with a component wherever the density is begun at, are weighted by density over
proposal; the weighted draws give the next mixture, which is nearer the density in the sense of Kullback and Leibler
(O. Cappé, R. Douc, A. Guillin, J.-M. Marin and C. Robert (2008), *Adaptive importance sampling in general mixture
classes*, https://arxiv.org/abs/0710.4242). Where the weights say too little, they are tempered: raised to the largest
power at which enough draws count, so that a proposal beside the posterior walks towards it. When the share of draws
that count no longer rises, fresh draws give the estimate, with Pareto-smoothed weights, whose tail shape says whether
it holds (Vehtari et al. 2024, https://arxiv.org/abs/1507.02646). No gradients are asked for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.evidence.importance import LARGEST_K, importance_estimate
from pyro_bmrs.integration.importance.proposals import StudentMixture

LogDensity = Callable[[Tensor], Tensor]

# Below this share of draws that count, moments are not to be trusted, nor is the estimate.
SMALLEST_SHARE = 0.05
_INFLATION = 1.1
# Rounds of adaptation, and how many of them in which a share that is too small does not rise.
_MOST_ROUNDS, _MOST_IDLE_ROUNDS = 15, 3
# By what factor the share rises in a round that is not idle: in the end, so that it spares more draws than it takes.
_RISE, _WORTHWHILE_RISE = 1.1, 1.25
# The error that the last draws are to bring, in nats, as far as so many are enough for it.
_STANDARD_ERROR, _ENOUGH_DRAWS = 0.005, 20_000
# Tempered weights count in this share.
_SHARE_TOLD = 0.1
# Where the proposal lacks most it is patched: how many patches at once, their share of the draws, and how often; while
# it adapts if the share of draws that count is below this.
_NUM_PATCHES, _SHARE_OF_PATCHES, _MOST_PATCHES, _PATCH_BELOW = 6, 0.3, 2, 0.1
# Of one end of a change in log evidence, in nats.
_LARGEST_ERROR = 0.1
# Each tail keeps this share of its component, and a component goes whose share of the whole is below the second.
_SMALLEST_TAIL, _SMALLEST_COMPONENT = 0.2, 1e-3


@dataclass(frozen=True)
class LogIntegral:
    """
    The logarithm of the integral of a density, estimated.

    :param value: in nats.
    :param standard_error: of ``value``, in nats, widened where the variance of the weights is infinite; 0 where the
        density is over no dimension at all.
    :param pareto_k: shape of the tail of the importance weights.
    :param effective_share: effective sample size over the number of draws.
    :param num_evaluations: how often the density was evaluated.
    :param points: the last draws, shape ``(num_draws, dim)``.
    :param log_weights: their log weights, smoothed, shape ``(num_draws,)``.
    """

    value: float
    standard_error: float
    pareto_k: float
    effective_share: float
    num_evaluations: int
    points: Tensor = field(repr=False)
    log_weights: Tensor = field(repr=False)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the density's coordinates, by the weighted draws."""
        return _moments(self.points, torch.softmax(self.log_weights, 0))

    def resample(self, num_draws: int) -> Tensor:
        """Draws with replacement by weight, shape ``(num_draws, dim)``."""
        return self.points[torch.multinomial(self.log_weights.softmax(0), num_draws, replacement=True)]

    @property
    def trusted(self) -> bool:
        """
        Whether the weights say that the estimate holds.

        That is, k is at most 0.7, at least 5 % of the draws count, and the standard error is at most 0.1 nats.
        """
        enough_count = self.effective_share >= SMALLEST_SHARE
        return self.pareto_k <= LARGEST_K and enough_count and self.standard_error <= _LARGEST_ERROR


def log_integral(
    log_density: LogDensity, loc: Tensor, covariance: Tensor, *, num_draws: int | None = None
) -> LogIntegral:
    """
    The logarithm of the integral of a density that need not be normalised.

    :param log_density: of points of shape ``(num_points, dim)``; of shape ``(num_points,)``, in nats.
    :param loc: where to begin: the moments of a posterior, or something like it. Of shape ``(dim,)``, or
        ``(num_components, dim)`` for several places.
    :param covariance: of that shape, with ``dim`` once more.
    :param num_draws: how many a round; by default some hundred for each dimension, and in the last as many as it takes.
    :return: the estimate. Draws come from torch's global generator.

    Example::

        >>> import torch
        >>> density = torch.distributions.MultivariateNormal(torch.ones(3), 0.1 * torch.eye(3))
        >>> estimate = log_integral(lambda x: density.log_prob(x) + 2.0, torch.zeros(3), torch.eye(3))
        >>> abs(estimate.value - 2.0) < 0.05, estimate.trusted
        (True, True)
    """
    return Adaptation(log_density, loc, covariance, num_draws=num_draws).integral()


class Adaptation:
    """
    A proposal that has been adapted to a density, as far as that goes without patches, and what is made of it.

    :param log_density: with ``loc``, ``covariance`` and ``num_draws`` as for :func:`log_integral`.
    """

    def __init__(
        self, log_density: LogDensity, loc: Tensor, covariance: Tensor, *, num_draws: int | None = None
    ) -> None:
        dim = loc.shape[-1]
        self._log_density, self._most = log_density, num_draws or _ENOUGH_DRAWS
        self._num_draws = num_draws or max(2000, 200 * (dim + 5))
        self._draws, self._calls = None, 0
        if dim:
            self._draws, self._calls = _adapted(log_density, _around(loc, covariance), self._num_draws)

    @property
    def share(self) -> float:
        """The share of draws that count."""
        return 1.0 if self._draws is None else self._draws.share

    @property
    def is_even(self) -> bool:
        """Whether so many draws count that the proposal needs no patches."""
        return self.share >= _PATCH_BELOW

    def integral(self) -> LogIntegral:
        """The integral, by draws of their own; patched, where few draws count."""
        draws, calls = self._draws, self._calls
        if draws is None:
            nowhere = torch.zeros(1, 0)
            return LogIntegral(float(self._log_density(nowhere)), 0.0, -math.inf, 1.0, 1, nowhere, torch.zeros(1))
        if not self.is_even:
            patched, more = _adapted(self._log_density, draws.patched(), self._num_draws)
            draws, calls = max((draws, patched), key=lambda some: some.share), calls + more
        enough = math.ceil((1 / draws.share - 1) / _STANDARD_ERROR**2)
        draws = _Draws(self._log_density, draws.next_proposal(), max(self._num_draws, min(enough, self._most)))
        found = draws.estimate(calls)
        for _ in range(_MOST_PATCHES):
            if found.trusted:
                break
            draws = _Draws(self._log_density, draws.patched(), max(self._num_draws, self._most))
            found = draws.estimate(found.num_evaluations)
        return found


def temperature(log_density: LogDensity, loc: Tensor, covariance: Tensor, *, num_draws: int = 1000) -> float:
    """
    The power, up to 1, to which the weights of draws from given moments are raised so that a tenth of them counts.

    Of proposals that are far from a density it tells which is nearer, where the share that counts is down to chance.
    """
    return _temperature(_Draws(log_density, _around(loc, covariance), num_draws).log_weights, _SHARE_TOLD * num_draws)


def _around(loc: Tensor, covariance: Tensor) -> StudentMixture:
    dim = loc.shape[-1]
    return StudentMixture(loc.double().reshape(-1, dim), _INFLATION * covariance.double().reshape(-1, dim, dim))


def _adapted(log_density: LogDensity, proposal: StudentMixture, num_draws: int) -> tuple[_Draws, int]:
    """The last draws of a proposal that goes on until its share no longer rises, and how many there were in all."""
    best, calls, idle = 0.0, 0, 0
    for _ in range(_MOST_ROUNDS):
        draws = _Draws(log_density, proposal, num_draws)
        calls += num_draws
        idle = 0 if draws.share >= (_RISE if best < _PATCH_BELOW else _WORTHWHILE_RISE) * best else idle + 1
        if idle and draws.share >= SMALLEST_SHARE or idle >= _MOST_IDLE_ROUNDS:
            break
        best, proposal = max(best, draws.share), draws.next_proposal()
    return draws, calls


class _Draws:
    """Draws from a proposal, weighted by a density."""

    def __init__(self, log_density: LogDensity, proposal: StudentMixture, num_draws: int) -> None:
        self.proposal, self.points = proposal, proposal.sample(num_draws)
        self._distance = proposal.squared_distance(self.points)
        self._parts = proposal.log_parts(self._distance)
        self.log_weights = log_density(self.points) - self._parts.flatten(1).logsumexp(-1)
        if not self.log_weights.isfinite().any():
            raise ReductionError("the model's density is 0, or not a number, at all the draws around the posterior")

    @property
    def share(self) -> float:
        """The share of the draws that count."""
        return _effective_size(self.log_weights) / len(self.log_weights)

    def estimate(self, num_before: int) -> LogIntegral:
        """
        What the draws say of the integral.

        :param num_before: how often the density was evaluated before.
        """
        with warnings.catch_warnings():
            # The result says it.
            warnings.simplefilter("ignore", ReductionWarning)
            estimate = importance_estimate(self.log_weights)
        count, effective, k = len(self.points), float(estimate.effective_sample_size), float(estimate.pareto_k)
        # Above k = 1/2 weights have no variance, and the error of their mean falls as n^(k - 1).
        error = float(estimate.standard_error) * effective ** max(k - 0.5, 0.0)
        value, calls = float(estimate.delta_evidence), num_before + count
        return LogIntegral(value, error, k, effective / count, calls, self.points, estimate.log_weights)

    def patched(self) -> StudentMixture:
        """
        The proposal, with further components where the weights are largest: where it lacks most.

        A. E. Raftery and L. Bao (2010), *Estimating and projecting trends in HIV/AIDS generalized epidemics using
        incremental mixture importance sampling*, https://doi.org/10.1111/j.1541-0420.2010.01399.x.
        """
        proposal, weights = self.proposal, self._tempered
        count, dim = self.points.shape
        _, whole = _moments(self.points, weights)
        standard = torch.linalg.solve_triangular(torch.linalg.cholesky(whole), self.points.mT, upper=False).mT
        left, size = torch.ones(count, dtype=torch.bool), max(count // 20, 4 * dim)
        loc, covariance = [proposal.loc], [proposal.covariance]
        for _ in range(_NUM_PATCHES):
            place = int(torch.where(left, self.log_weights, -torch.inf).argmax())
            near = (standard - standard[place]).square().sum(-1).topk(min(size, count), largest=False).indices
            share = weights[near] + 1 / count
            share = share / share.sum()
            centred = self.points[near] - self.points[place]
            few = min(0.5, 0.5 * dim * float(share.square().sum()))
            loc.append(self.points[place, None])
            covariance.append((1 - few) * (centred * share.unsqueeze(-1)).mT @ centred + few * whole)
            covariance[-1] = covariance[-1].unsqueeze(0)
            left[near] = False
        patches = proposal.shares.new_full((_NUM_PATCHES, len(proposal.df)), 1 / (_NUM_PATCHES * len(proposal.df)))
        shares = torch.cat([(1 - _SHARE_OF_PATCHES) * proposal.shares, _SHARE_OF_PATCHES * patches])
        return StudentMixture(torch.cat(loc), torch.cat(covariance), shares)

    @property
    def _tempered(self) -> Tensor:
        count, dim = self.points.shape
        # Enough for the next moments.
        enough = min(0.5 * count, max(_SHARE_TOLD * count, 4.0 * dim))
        return torch.softmax(_temperature(self.log_weights, enough) * self.log_weights, 0)

    def next_proposal(self) -> StudentMixture:
        """A step of expectation and maximisation towards the density, as far as the draws can tell it."""
        proposal, dim = self.proposal, self.points.shape[1]
        weights = self._tempered
        # Each draw belongs to all parts, by their densities there.
        belonging = weights[:, None, None] * self._parts.flatten(1).softmax(-1).reshape(self._parts.shape)
        shares = belonging.sum(0)
        kept = shares.sum(-1) >= _SMALLEST_COMPONENT
        loc, covariance = [], []
        for place in kept.nonzero().flatten().tolist():
            mine = belonging[:, place].sum(-1) / shares[place].sum()
            loc.append(mine @ self.points)
            centred = self.points - loc[-1]
            spread = (centred * mine.unsqueeze(-1)).mT @ centred
            few = dim * float(mine.square().sum())
            covariance.append(_towards(spread, proposal.covariance[place], min(0.5, 0.5 * few)))
        tails = shares[kept] / shares[kept].sum(-1, keepdim=True)
        tails = _SMALLEST_TAIL + (1 - len(proposal.df) * _SMALLEST_TAIL) * tails
        shares = shares[kept].sum(-1, keepdim=True) * tails
        return StudentMixture(torch.stack(loc), _INFLATION * torch.stack(covariance), shares)


def _towards(covariance: Tensor, before: Tensor, share: float) -> Tensor:
    """A covariance whose correlations are drawn towards those of another, and that is never singular."""
    scale = (covariance.diagonal() / before.diagonal()).sqrt()
    return (1 - share) * covariance + share * scale.unsqueeze(-1) * before * scale


def _effective_size(log_weights: Tensor) -> float:
    shares = torch.softmax(log_weights, 0)
    return float(1 / shares.square().sum())


def _temperature(log_weights: Tensor, enough: float) -> float:
    """The largest power, up to 1, to which weights are raised so that enough draws count."""
    if _effective_size(log_weights) >= enough:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _effective_size(middle * log_weights) >= enough else (low, middle)
    return low


def _moments(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted moments; few draws that count draw the covariance towards its diagonal."""
    loc = weights @ points
    centred = points - loc
    covariance = (centred * weights.unsqueeze(-1)).mT @ centred
    pull = min(0.5, 0.5 * len(loc) * float(weights.square().sum()))
    return loc, (1 - pull) * covariance + pull * covariance.diagonal().diag()
