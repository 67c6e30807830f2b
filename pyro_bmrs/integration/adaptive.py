# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The evidence of a model by adaptive importance sampling, from moments that need not be right.

Draws from a heavy-tailed proposal of the present moments are weighted by density over proposal; the weighted draws
give the next moments (O. Cappé, R. Douc, A. Guillin, J.-M. Marin and C. Robert (2008), *Adaptive importance sampling in
general mixture classes*, https://arxiv.org/abs/0710.4242). Where the weights say too little, they are tempered: raised
to the largest power at which enough draws count, so that a proposal beside the posterior walks towards it. When the
share of draws that count no longer rises, fresh draws give the estimate, with Pareto-smoothed weights, whose tail shape
says whether it holds (Vehtari et al. 2024, https://arxiv.org/abs/1507.02646). No gradients are asked for.
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
from pyro_bmrs.integration.proposals import StudentMixture

LogDensity = Callable[[Tensor], Tensor]

# Below this share of draws that count, moments are not to be trusted, nor is the estimate.
SMALLEST_SHARE = 0.05
_INFLATION = 1.1
_MOST_ROUNDS = 20


@dataclass(frozen=True)
class LogIntegral:
    """
    The logarithm of the integral of a density, estimated.

    :param value: in nats.
    :param standard_error: of ``value``, in nats; None where the density is over no dimension at all.
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
        """Whether the weights say that the estimate holds: k at most 0.7, and at least 5 % of the draws count."""
        return self.pareto_k <= LARGEST_K and self.effective_share >= SMALLEST_SHARE


def log_integral(
    log_density: LogDensity, loc: Tensor, covariance: Tensor, *, num_draws: int | None = None
) -> LogIntegral:
    """
    The logarithm of the integral of a density that need not be normalised.

    :param log_density: of points of shape ``(num_points, dim)``; of shape ``(num_points,)``, in nats.
    :param loc: where to begin, shape ``(dim,)``; the moments of a posterior, or something like it.
    :param covariance: shape ``(dim, dim)``.
    :param num_draws: how many a round; by default some hundred for each dimension.
    :return: the estimate. Draws come from torch's global generator.

    Example::

        >>> import torch
        >>> density = torch.distributions.MultivariateNormal(torch.ones(3), 0.1 * torch.eye(3))
        >>> estimate = log_integral(lambda x: density.log_prob(x) + 2.0, torch.zeros(3), torch.eye(3))
        >>> abs(estimate.value - 2.0) < 0.05, estimate.trusted
        (True, True)
    """
    dim = len(loc)
    if dim == 0:
        value = float(log_density(loc.new_zeros(1, 0)))
        return LogIntegral(value, 0.0, -math.inf, 1.0, 1, loc.new_zeros(1, 0), loc.new_zeros(1))
    num_draws = num_draws or max(2000, 200 * (dim + 5))
    loc, covariance = loc.double(), covariance.double()
    best, calls = 0.0, 0
    for _ in range(_MOST_ROUNDS):
        points, log_weights = _draw(log_density, loc, covariance, num_draws)
        calls += num_draws
        share = _effective_size(log_weights) / num_draws
        weights = torch.softmax(_temperature(log_weights, dim) * log_weights, 0)
        loc, covariance = _moments(points, weights)
        if share >= SMALLEST_SHARE and share < 1.1 * best:
            break
        best = max(best, share)
    points, log_weights = _draw(log_density, loc, covariance, num_draws)
    with warnings.catch_warnings():
        # The result says it.
        warnings.simplefilter("ignore", ReductionWarning)
        estimate = importance_estimate(log_weights)
    return LogIntegral(
        float(estimate.delta_evidence),
        float(estimate.standard_error),
        float(estimate.pareto_k),
        float(estimate.effective_sample_size) / num_draws,
        calls + num_draws,
        points,
        estimate.log_weights,
    )


def effective_share(log_density: LogDensity, loc: Tensor, covariance: Tensor, *, num_draws: int = 500) -> float:
    """The share of draws from a proposal of given moments that count for the integral of a density."""
    _, log_weights = _draw(log_density, loc.double(), covariance.double(), num_draws)
    return _effective_size(log_weights) / num_draws


def _draw(log_density: LogDensity, loc: Tensor, covariance: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
    proposal = StudentMixture(loc, _INFLATION * covariance)
    points = proposal.sample(num_draws)
    log_weights = log_density(points) - proposal.log_prob(points)
    if not log_weights.isfinite().any():
        raise ReductionError("the model's density is 0, or not a number, at all the draws around the posterior")
    return points, log_weights


def _effective_size(log_weights: Tensor) -> float:
    shares = torch.softmax(log_weights, 0)
    return float(1 / shares.square().sum())


def _temperature(log_weights: Tensor, dim: int) -> float:
    """The largest power, up to 1, to which weights are raised so that enough draws count for the next moments."""
    enough = min(0.5 * len(log_weights), max(0.1 * len(log_weights), 4.0 * dim))
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
