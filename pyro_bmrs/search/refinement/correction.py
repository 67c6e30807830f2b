# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
What the evidence at the means of reduced posteriors misses, as far as it is a sum over groups.

Where a posterior is skewed, or its normal is a little too wide, the evidence at the mean is off by much the same for
each group that is not reduced. Of a sample of the models the evidence is had by draws, too, and what that differs by is
regressed upon which groups are reduced:

.. math:: F_m^{\text{draws}} - F_m^{\text{mean}} = a + \sum_{i \text{ reduced in } m} b_i + \epsilon_m .
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bmrs.search.probabilities.models import ModelPosterior
from pyro_bmrs.search.refinement.evidence_by_density import DensityEvidence

# Models drawn by their probability, neighbours of the best, and draws of each.
NUM_MODELS, NUM_NEIGHBOURS, NUM_DRAWS = 64, 32, 100
# In nats: standard deviations of what is no sum over groups, and, before anything is known, of what a group adds.
_REST, _OF_A_GROUP = 0.02, 0.5


class Sample(NamedTuple):
    """
    Some models, drawn by their probability, and neighbours of the best, with the evidence of each by draws.

    :param reduced: which groups are reduced in each, shape ``(k, n)``, boolean; all different.
    :param weights: how often each was drawn, or its probability, over all.
    :param missed: evidence by draws less that at the mean, in nats.
    :param standard_error: of these.
    :param share: of the draws that count.
    """

    reduced: Tensor
    weights: Tensor
    missed: Tensor
    standard_error: Tensor
    share: Tensor


def sample_models(evidence: DensityEvidence, models: ModelPosterior, seed: int) -> Sample:
    """
    Models drawn by their probability, with what the evidence at their means misses.

    With the likeliest of those beside the best, so that it is seen if these are thought too improbable to be drawn.

    :param evidence: of the space.
    :param models: their probabilities.
    :param seed: of the draws of each.
    """
    drawn, which = models.sample(NUM_MODELS).unique(dim=0, return_inverse=True)
    shares = torch.bincount(which, minlength=len(drawn)).to(torch.double) / NUM_MODELS
    beside, probability = _beside_the_best(evidence, models)
    new = ~(beside.unsqueeze(1) == drawn).all(-1).any(-1)
    reduced, weights = torch.cat([drawn, beside[new]]), torch.cat([shares, probability[new].to(shares)])
    found = evidence.by_draws(reduced, NUM_DRAWS, torch.Generator().manual_seed(seed))
    missed = found.value - evidence.at_mean(reduced)
    return Sample(reduced, weights / weights.sum(), missed, found.standard_error, found.share)


def _beside_the_best(evidence: DensityEvidence, models: ModelPosterior) -> tuple[Tensor, Tensor]:
    """The most probable of the models that differ from the best by one group, and their probabilities."""
    best, _, probability = models.top(1)
    beside = best ^ torch.eye(best.shape[-1], device=best.device).bool()
    both = torch.cat([best, beside])
    log_mass = evidence.at_mean(both) + models.prior.log_prob(both)
    distance, place = (log_mass[1:] - log_mass[0]).topk(min(NUM_NEIGHBOURS, len(beside)))
    return beside[place], (probability.log() + distance).exp()


def missed_by_group(sample: Sample) -> Tensor:
    """
    What is to be added to the evidence of a model for each group that it reduces, in nats, shape ``(n,)``.

    0 where the draws say nothing.
    """
    groups = sample.reduced.to(sample.missed)
    design = torch.cat([torch.ones_like(groups[:, :1]), groups], -1)
    precision = len(design) * sample.weights / (sample.standard_error.square() + _REST**2)
    prior = torch.full_like(design[0], _OF_A_GROUP**-2)
    prior[0] = 0.0
    known = sample.missed.isfinite() & precision.isfinite()
    weighed = torch.where(known, precision, 0.0).unsqueeze(-1) * design
    moments = weighed.mT @ torch.where(known, sample.missed, 0.0)
    # The constant is known as soon as a model is.
    factor = weighed.mT @ design + prior.diag()
    factor[0, 0] += torch.finfo(factor.dtype).eps
    by_group: Tensor = torch.linalg.solve(factor, moments)[1:]
    return by_group
