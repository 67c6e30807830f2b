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
    def log_odds(self) -> Tensor:
        """Prior log odds for each group's reduction, shape ``(num_groups,)``."""

    @property
    def alone(self) -> Tensor:
        """Change in log evidence with the reduction of each group alone, shape ``(num_groups,)``."""

    @property
    def inclusion_probability(self) -> Tensor:
        """Probability of each group to keep its full prior, shape ``(num_groups,)``."""

    def top(self, num_models: int) -> Models:
        """The most probable models."""

    def sample(self, num_samples: int) -> Tensor:
        """Models at random: which groups are reduced, shape ``(num_samples, num_groups)``."""


@dataclass(frozen=True)
class IndependentModels:
    """
    All 2^n models of n groups that are independent in the posterior: nothing needs to be searched.

    :param alone: change in log evidence with the reduction of each group, shape ``(n,)``.
    :param log_odds: prior log odds for each reduction, shape ``(n,)``.
    """

    alone: Tensor
    log_odds: Tensor

    @property
    def num_models(self) -> int:
        return 1 << len(self.alone)

    @property
    def _score(self) -> Tensor:
        return self.alone + self.log_odds

    @property
    def inclusion_probability(self) -> Tensor:
        return torch.sigmoid(-self._score)

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

    def sample(self, num_samples: int) -> Tensor:
        return torch.bernoulli(torch.sigmoid(self._score).expand(num_samples, -1)).bool()


@dataclass(frozen=True)
class ListedModels:
    """
    The models that some groups can form while the others stay as they are.

    :param delta_evidence: change in log evidence of each of the 2^k models of k groups; bit i of a model's index tells
        whether the i-th of them is reduced.
    :param log_odds: prior log odds for each group's reduction, shape ``(n,)``.
    :param base: the state of the groups that stay: which of all are reduced, shape ``(n,)``, boolean.
    :param open: the k groups that do not stay, shape ``(k,)``.
    :param alone: change in log evidence with the reduction of each group alone, shape ``(n,)``.
    :param base_inclusion: probability of each group to keep its full prior, for those that stay.
    """

    delta_evidence: Tensor
    log_odds: Tensor
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
        return torch.softmax(self.delta_evidence + subset_sums(self.log_odds[self.open]), -1)

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

    def reduced(self, index: Tensor) -> Tensor:
        """Which groups are reduced in the models of the given index, shape ``(*index.shape, n)``."""
        reduced = self.base.expand(*index.shape, -1).clone()
        reduced[..., self.open] = (index.unsqueeze(-1) >> torch.arange(len(self.open), device=index.device)) & 1 == 1
        return reduced

    def top(self, num_models: int) -> Models:
        chosen = self._order[:num_models]
        return Models(self.reduced(chosen), self.delta_evidence[chosen], self.probability[chosen])

    def sample(self, num_samples: int) -> Tensor:
        # torch.multinomial takes no more than 2^24 categories.
        ends = self.probability.cumsum(0)
        uniform = torch.rand(num_samples, dtype=ends.dtype, device=ends.device) * ends[-1]
        return self.reduced(torch.searchsorted(ends, uniform).clamp(max=len(ends) - 1))


def subset_sums(values: Tensor) -> Tensor:
    """
    The sum of every subset; bit i of the index tells whether the i-th value is in it.

    Example::

        >>> subset_sums(torch.tensor([1.0, 10.0]))
        tensor([ 0.,  1., 10., 11.])
    """
    sums = values.new_zeros(1)
    for value in values:
        sums = torch.cat([sums, sums + value])
    return sums
