# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Posterior distributions over reduced models: groups that are independent of each other, and a list of models."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_bmrs.search.probabilities.model_prior import ModelPrior, subset_sums


class Models(NamedTuple):
    """
    Some models, the most probable first.

    :param reduced: which groups take their reduced prior in each, shape ``(num_models, num_groups)``, boolean.
    :param delta_evidence: log evidence of each, less that of the full model, in nats.
    :param probability: posterior probability of each.
    """

    reduced: Tensor
    delta_evidence: Tensor
    probability: Tensor


class ModelPosterior(Protocol):
    """What a space of models asks of the posterior over them."""

    @property
    def num_models(self) -> int:
        """How many models there are."""

    @property
    def prior(self) -> ModelPrior:
        """The prior probabilities of models."""

    @property
    def alone(self) -> Tensor:
        """Change in log evidence with the reduction of each group alone, shape ``(num_groups,)``."""

    @property
    def inclusion_probability(self) -> Tensor:
        """Probability of each group to keep its full prior, shape ``(num_groups,)``."""

    @property
    def inclusion_error(self) -> Tensor:
        """Standard error of each, shape ``(num_groups,)``: 0 where all models are counted, NaN where not known."""

    def top(self, num_models: int) -> Models:
        """The most probable models."""

    def for_average(self, num_models: int) -> Models:
        """The models that most of an average is made of, with their weights in it."""

    def sample(self, num_samples: int) -> Tensor:
        """Models at random: which groups are reduced, shape ``(num_samples, num_groups)``."""


@dataclass(frozen=True)
class IndependentModels:
    """
    All 2^n models of n groups that are independent in the posterior: nothing needs to be searched.

    :param alone: change in log evidence with the reduction of each group, shape ``(n,)``.
    :param prior: the prior of models, independent between groups.
    """

    alone: Tensor
    prior: ModelPrior

    @property
    def num_models(self) -> int:
        return 1 << len(self.alone)

    @property
    def _score(self) -> Tensor:
        return self.alone + self.prior.log_odds

    @property
    def inclusion_probability(self) -> Tensor:
        return torch.sigmoid(-self._score)

    @property
    def inclusion_error(self) -> Tensor:
        return torch.zeros_like(self.alone)

    def top(self, num_models: int) -> Models:
        """
        The most probable models, each the best one with some groups on their less probable side.

        They come off a heap in the order of what these flips cost: the successors of a set of flips, sorted by cost,
        are the set with its last flip moved on by one, and with the next flip added.
        """
        score = self._score
        cost, order = score.abs().sort()
        cost = cost[cost < math.inf]
        best = score > 0
        log_probability = torch.nn.functional.logsigmoid(score.abs()).sum()
        flips: list[list[int]] = [[]]
        heap = [(cost[0].item(), [0])] if len(cost) else []
        while heap and len(flips) < num_models:
            total, chosen = heapq.heappop(heap)
            flips.append(chosen)
            last, following = chosen[-1], chosen[-1] + 1
            if following < len(cost):
                step = float(cost[following])
                heapq.heappush(heap, (total - float(cost[last]) + step, [*chosen[:-1], following]))
                heapq.heappush(heap, (total + step, [*chosen, following]))
        reduced = best.repeat(len(flips), 1)
        for row, chosen in zip(reduced, flips):
            row[order[chosen]] ^= True
        costs = torch.stack([cost[chosen].sum() for chosen in flips])
        delta_evidence = torch.where(reduced, self.alone, torch.zeros_like(score)).sum(-1)
        return Models(reduced, delta_evidence, (log_probability - costs).exp())

    def for_average(self, num_models: int) -> Models:
        return self.top(num_models)

    def sample(self, num_samples: int) -> Tensor:
        return torch.bernoulli(torch.sigmoid(self._score).expand(num_samples, -1)).bool()


@dataclass(frozen=True)
class ListedModels:
    """
    The models that some groups can form while the others stay as they are.

    :param delta_evidence: change in log evidence of each of the 2^k models of k groups; bit i of a model's index tells
        whether the i-th of them is reduced.
    :param prior: the prior of models; independent between groups where some groups stay.
    :param base: the state of the groups that stay: which of all are reduced, shape ``(n,)``, boolean.
    :param open: the k groups that do not stay, shape ``(k,)``.
    :param alone: change in log evidence with the reduction of each group alone, shape ``(n,)``.
    :param base_inclusion: probability of each group to keep its full prior, for those that stay.
    """

    delta_evidence: Tensor
    prior: ModelPrior
    base: Tensor
    open: Tensor
    alone: Tensor
    base_inclusion: Tensor

    @property
    def num_models(self) -> int:
        return len(self.delta_evidence)

    @cached_property
    def probability(self) -> Tensor:
        """Posterior probability of each model among those listed, in the order of ``delta_evidence``."""
        return torch.softmax(self.delta_evidence + self._log_prior, -1)

    @property
    def _log_prior(self) -> Tensor:
        return self.prior.of_all() if self.is_whole else subset_sums(self.prior.log_odds[self.open])

    @property
    def is_whole(self) -> bool:
        """Whether these are all the models that there are."""
        return len(self.open) == len(self.base)

    @cached_property
    def _order(self) -> Tensor:
        return self.probability.argsort(descending=True, stable=True)

    @cached_property
    def inclusion_probability(self) -> Tensor:
        inclusion = self.base_inclusion.clone()
        inclusion[self.open] = torch.stack(
            [self.probability.reshape(-1, 2, 2**bit)[:, 0].sum() for bit in range(len(self.open))]
        )
        return inclusion

    @property
    def inclusion_error(self) -> Tensor:
        return torch.full_like(self.alone, 0.0 if self.is_whole else torch.nan)

    @property
    def states(self) -> Tensor:
        """Which groups are reduced in each of the models, shape ``(num_models, n)``, boolean."""
        return self.reduced(torch.arange(self.num_models, device=self.alone.device))

    def reduced(self, index: Tensor) -> Tensor:
        """Which groups are reduced in the models of the given index, shape ``(*index.shape, n)``."""
        reduced = self.base.expand(*index.shape, -1).clone()
        reduced[..., self.open] = (index.unsqueeze(-1) >> torch.arange(len(self.open), device=index.device)) & 1 == 1
        return reduced

    def top(self, num_models: int) -> Models:
        chosen = self._order[:num_models]
        return Models(self.reduced(chosen), self.delta_evidence[chosen], self.probability[chosen])

    def for_average(self, num_models: int) -> Models:
        return self.top(num_models)

    def sample(self, num_samples: int) -> Tensor:
        return self.reduced(_drawn(self.probability, num_samples))

    def drawn(self, num_samples: int, num_walks: int) -> VisitedModels:
        """
        Models at random out of these, as walks would have come to them, where these are all the models.

        :param num_samples: how many each walk has.
        :param num_walks: how many walks, which are independent draws.
        """
        index, which = _drawn(self.probability, num_samples * num_walks).unique(return_inverse=True)
        which = which.reshape(num_samples, num_walks)
        inclusion = self.inclusion_probability.expand(num_walks, -1)
        visits = Visits(which, torch.ones_like(which, dtype=self.delta_evidence.dtype), inclusion)
        log_total = (self.delta_evidence + self._log_prior).logsumexp(0)
        return ranked(self.reduced(index), self.delta_evidence[index], log_total, self.prior, self.alone, visits)


class Visits(NamedTuple):
    """
    Where several walks through the models were.

    :param which: of the models visited, shape ``(num_steps, num_walks)``.
    :param times: spent at each, shape ``(num_steps, num_walks)``.
    :param inclusion: probability of each group to keep its full prior, as each walk has it, shape ``(num_walks, n)``.
    """

    which: Tensor
    times: Tensor
    inclusion: Tensor

    def share_of(self, num_models: int) -> Tensor:
        """Of the time that was spent at each model; each walk counts the same, however long it stayed where it was."""
        share = self.times.new_zeros(num_models)
        return share.index_add_(0, self.which.flatten(), (self.times / self.times.sum(0)).flatten()) / len(
            self.inclusion
        )


@dataclass(frozen=True)
class VisitedModels:
    """
    The models that walks through all of them have come to, or that were drawn from them.

    :param states: which groups are reduced in each, shape ``(num_models, n)``, boolean.
    :param delta_evidence: change in log evidence of each, shape ``(num_models,)``.
    :param share: of the time that was spent at each.
    :param probability: posterior probability of each, the largest first.
    :param prior: the prior of models.
    :param alone: change in log evidence with the reduction of each group alone, shape ``(n,)``.
    :param visits: where the walks were, which tell by how they differ how far to trust them.
    """

    states: Tensor
    delta_evidence: Tensor
    share: Tensor
    probability: Tensor
    prior: ModelPrior
    alone: Tensor
    visits: Visits

    @property
    def num_models(self) -> int:
        return len(self.states)

    @property
    def inclusion_probability(self) -> Tensor:
        return self.visits.inclusion.mean(0)

    @property
    def inclusion_error(self) -> Tensor:
        error: Tensor = self.visits.inclusion.std(0) / len(self.visits.inclusion) ** 0.5
        return error

    def top(self, num_models: int) -> Models:
        return Models(self.states[:num_models], self.delta_evidence[:num_models], self.probability[:num_models])

    def for_average(self, num_models: int) -> Models:
        """By the time spent in each, which sums to 1 whatever part of all models was seen."""
        chosen = self.share.argsort(descending=True, stable=True)[:num_models]
        return Models(self.states[chosen], self.delta_evidence[chosen], self.share[chosen])

    def sample(self, num_samples: int) -> Tensor:
        return self.states[_drawn(self.share, num_samples)]


def weighted(models: Models, weights: Tensor, prior: ModelPrior, alone: Tensor) -> VisitedModels:
    """
    Some models with weights of their own, such as those by which their predictions are mixed.

    :param models: the models.
    :param weights: of each, adding up to 1.
    """
    inclusion = (weights @ (~models.reduced).to(weights)).unsqueeze(0)
    visits = Visits(torch.arange(len(weights)).unsqueeze(-1), weights.unsqueeze(-1), inclusion)
    return VisitedModels(models.reduced, models.delta_evidence, weights, models.probability, prior, alone, visits)


def ranked(
    states: Tensor,
    delta_evidence: Tensor,
    log_total: Tensor,
    prior: ModelPrior,
    alone: Tensor,
    visits: Visits,
) -> VisitedModels:
    """
    Models visited, the most probable first.

    :param states: of which ``visits`` tells, in any order.
    :param log_total: the logarithm of the mass of all models; NaN where it is not known, and those visited are all.
    """
    log_mass = delta_evidence + prior.log_prob(states)
    probability = (log_mass - log_total.nan_to_num(float(log_mass.logsumexp(0)))).exp()
    order = log_mass.argsort(descending=True, stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    share = visits.share_of(len(states))[order]
    return VisitedModels(
        states[order],
        delta_evidence[order],
        share,
        probability[order],
        prior,
        alone,
        visits._replace(which=place[visits.which]),
    )


def _drawn(probability: Tensor, num_samples: int) -> Tensor:
    """Places at random; torch.multinomial takes no more than 2^24 categories."""
    ends = probability.cumsum(0)
    uniform = torch.rand(num_samples, dtype=ends.dtype, device=ends.device) * ends[-1]
    places: Tensor = torch.searchsorted(ends, uniform).clamp(max=len(ends) - 1)
    return places
