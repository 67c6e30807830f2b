# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The change in log evidence as an average of r/p over draws from the posterior.

It needs no more than densities and draws, so it is there for any triple; what it is worth, the Pareto k of its weights
says (Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling", JMLR 25,
https://arxiv.org/abs/1507.02646).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from pyro.distributions import Empirical
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.arviz_adapter import smooth_log_weights
from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.evidence.accuracy import Accuracy
from pyro_bmrs.evidence.registry import Reduced
from pyro_bmrs.evidence.support import check_within, contains, support_interval

LARGEST_K = 0.7


@dataclass(frozen=True)
class ImportanceEstimate:
    """
    What importance weights say of the evidence.

    :param delta_evidence: log of the mean weight, in nats, of the weights' shape without their first dimension, as are
        the next three.
    :param standard_error: of ``delta_evidence``, in nats, by the delta method.
    :param pareto_k: shape of the tail of the weights; above 0.7 neither of the two above is to be trusted.
    :param effective_sample_size: how many independent draws of the reduced posterior the weighted ones are worth.
    :param log_weights: the Pareto-smoothed log weights, of the shape of those given.

    Example::

        >>> import torch
        >>> from pyro_bmrs.evidence import importance_estimate
        >>> estimate = importance_estimate(torch.zeros(1000))
        >>> round(estimate.delta_evidence.item(), 6), estimate.log_weights.shape
        (0.0, torch.Size([1000]))
    """

    delta_evidence: Tensor
    standard_error: Tensor
    pareto_k: Tensor
    effective_sample_size: Tensor
    log_weights: Tensor

    @property
    def accuracy(self) -> Accuracy:
        """What the weights say of ``delta_evidence``, in the form that all methods have in common."""
        return Accuracy("importance", self.standard_error, self.pareto_k, self.effective_sample_size)


def importance_estimate(log_weights: Tensor, *, relative_efficiency: float | Tensor = 1.0) -> ImportanceEstimate:
    """
    The log evidence change from log r(x) - log p(x) at draws x of the posterior, with Pareto smoothing.

    The largest weights are smoothed, and judged, as A. Vehtari et al. (2024), *Pareto smoothed importance sampling*,
    https://arxiv.org/abs/1507.02646, have it.

    :param log_weights: shape ``(num_samples, *batch_shape)``; minus infinity where r has no mass. Gradients flow
        through all weights.
    :param relative_efficiency: effective sample size of the draws over their number, of shape ``batch_shape``; 1 where
        they are independent, and below for most Markov chains; 0 where the draws say nothing, as of a chain that never
        moved, so that the error has no bound.
    :raises ReductionError: where a log weight is NaN or infinity.
    :warns ReductionWarning: where the Pareto k is above 0.7.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_bmrs.evidence import importance_estimate
        >>> draws = dist.Normal(0.5, 0.5).sample((1000,))
        >>> log_weights = dist.Normal(0., 0.8).log_prob(draws) - dist.Normal(0., 1.).log_prob(draws)
        >>> estimate = importance_estimate(log_weights)
        >>> abs(estimate.delta_evidence - 0.0928) < 3 * estimate.standard_error
        tensor(True)
    """
    check_log_weights(log_weights)
    efficiency = torch.as_tensor(relative_efficiency).to(log_weights).expand(log_weights.shape[1:])
    rows, tails = smooth_log_weights(log_weights.detach().movedim(0, -1).cpu().numpy(), efficiency.cpu().numpy())
    smoothed = torch.from_numpy(rows).to(log_weights).movedim(-1, 0)
    pareto_k = torch.from_numpy(tails).to(log_weights)
    # The value of the smoothed weights with the gradient of the given ones (none flows where a weight is 0).
    zero = log_weights == -torch.inf
    smoothed = torch.where(zero, log_weights, smoothed + log_weights - log_weights.detach())
    total = torch.logsumexp(smoothed, 0)
    count = len(log_weights)
    shares = (smoothed - total).detach().exp()
    variance = (shares - 1 / count).square().sum(0) * (count / max(count - 1, 1)) / efficiency
    # One draw, or a chain that never moved, says nothing of the spread.
    variance = torch.where(efficiency > 0, variance, torch.inf) if count > 1 else torch.full_like(total, torch.inf)
    effective = efficiency / shares.square().sum(0)
    _warn_of_heavy_tails(pareto_k)
    return ImportanceEstimate(total - math.log(count), variance.sqrt(), pareto_k, effective, smoothed)


def check_log_weights(log_weights: Tensor) -> None:
    """
    Whether log weights are numbers or minus infinity, all of them.

    :raises ReductionError: with the count of those that are not.
    """
    wrong = torch.isnan(log_weights) | (log_weights == torch.inf)
    if wrong.any():
        raise ReductionError(
            f"{int(wrong.sum())} of {wrong.numel()} log weights are NaN or infinite: at these draws from the posterior "
            "the prior has no density, or a density is NaN."
        )


def _warn_of_heavy_tails(pareto_k: Tensor) -> None:
    heavy = pareto_k > LARGEST_K
    if heavy.any():
        warnings.warn(
            f"The importance estimate is not to be trusted at {int(heavy.sum())} of {heavy.numel()} elements: "
            f"its largest Pareto k is {float(pareto_k.max()):.2f}, above {LARGEST_K}. The posterior has too few draws "
            "where the reduced posterior is. Take more samples, another method, or a reduced prior nearer the prior.",
            ReductionWarning,
            stacklevel=2,
        )


def reduce_by_importance(
    posterior: Distribution, prior: Distribution, reduced_prior: Distribution, num_samples: int
) -> Reduced:
    """
    The change in log evidence from draws of the posterior, and these draws, weighted, as the reduced posterior.

    Draws come from torch's global generator. The estimate is differentiable in the parameters of all three: those of
    the posterior enter by the score function.

    :raises ReductionError: where the reduced prior draws outside the prior's support, by more than the rounding of
        bounds, or a draw of the posterior is outside it.
    :warns ReductionWarning: where the Pareto k is above 0.7.
    """
    shape = torch.broadcast_shapes(*(d.batch_shape for d in (posterior, prior, reduced_prior)))
    with torch.no_grad():
        draws = posterior.expand(shape).sample(torch.Size([num_samples]))
        likely = reduced_prior.expand(shape).sample(torch.Size([num_samples]))
    leaves = (~contains(prior, likely)).any(0)
    bounds, own_bounds = support_interval(prior), support_interval(reduced_prior)
    if bounds is not None and own_bounds is not None:
        leaves = leaves & own_bounds.outside(bounds)
    check_within(leaves, "reduced prior")
    # The prior's density is asked for at each of these, so that not even rounding may take one outside.
    check_within((~contains(prior, draws)).any(0), "posterior")
    inside = contains(reduced_prior, draws)
    reachable = torch.where(inside.reshape(inside.shape + (1,) * len(posterior.event_shape)), draws, likely)
    log_ratio = reduced_prior.log_prob(reachable) - prior.log_prob(draws)
    score = posterior.log_prob(draws)
    log_weights = log_ratio + (score - score.detach())
    estimate = importance_estimate(torch.where(inside, log_weights, -torch.inf))

    def build() -> Distribution:
        return Empirical(draws.movedim(0, len(shape)), estimate.log_weights.movedim(0, -1))

    return Reduced(estimate.delta_evidence, build, estimate.accuracy)
