# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Sums over examples of what units do to the log likelihood, and what is known by them of all examples.

Of some examples it is known exactly, of more of them by outputs that are linear in the noise. Where these go along with
what is exact they do for the others, and the examples that are known exactly say what they miss: a difference estimator
of two phases (C.-E. Särndal, B. Swensson and J. Wretman (1992), *Model assisted survey sampling*, chapter 9).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_bmrs.pruning.criteria.evidence.unit_profile import NUM_PLACES


@dataclass
class Moments:
    """
    Sums over examples of a few values of each unit of a site, and of their products; in double precision.

    :param values: of shape ``(units, numbers)``.
    :param products: of shape ``(units, numbers, numbers)``.
    :param count: of how many examples.
    """

    values: Tensor
    products: Tensor
    count: int = 0

    def add(self, values: Tensor, kept: Tensor) -> None:
        """
        More examples.

        :param values: of shape ``(units, numbers, examples)``.
        :param kept: which units they are of.
        """
        doubles = torch.where(kept[:, None, None], values, 0.0).double().cpu()
        self.values += doubles.sum(-1)
        self.products += doubles @ doubles.mT
        self.count += doubles.shape[-1]

    @classmethod
    def nothing(cls, num_units: int, numbers: int) -> Moments:
        """Of no example."""
        values = torch.zeros(num_units, numbers, dtype=torch.double)
        return cls(values, values.unsqueeze(-1).repeat(1, 1, numbers))

    @property
    def mean(self) -> Tensor:
        """Over examples; 0 where there are none."""
        return self.values / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        """Over examples; of one alone it is what he is himself."""
        if self.count < 2:
            return self.products
        centred = self.products - self.mean.unsqueeze(-1) * self.values.unsqueeze(-2)
        return centred / (self.count - 1)


@dataclass
class UnitLikelihoods:
    """
    What the units of a site do to the log likelihood of the data: at the places, less that at the mean.

    :param linear: of outputs that are linear in the noise; of no example where there is no such thing.
    :param exact: of those examples that were run, and beside it what linear outputs say of the same: six numbers.
    :param slope: the derivative of the log likelihood in the noise at the mean, summed over ``count`` examples.
    :param count: of examples.
    """

    linear: Moments
    exact: Moments
    slope: Tensor
    count: int = 0

    @classmethod
    def nothing(cls, num_units: int) -> UnitLikelihoods:
        """Of no example."""
        slope = torch.zeros(num_units, dtype=torch.double)
        return cls(Moments.nothing(num_units, NUM_PLACES), Moments.nothing(num_units, 2 * NUM_PLACES), slope)

    def add(self, exact: Tensor, linear: Tensor | None, some: Tensor, kept: Tensor) -> None:
        """
        More examples.

        :param exact: of those that were run, of shape ``(units, 3, some examples)``.
        :param linear: of all, of shape ``(units, 3, examples)``.
        :param some: which examples were run.
        :param kept: which units they are of.
        """
        beside = torch.zeros_like(exact) if linear is None else linear[..., some]
        self.exact.add(torch.cat([exact, beside], 1), kept)
        if linear is not None:
            self.linear.add(linear, kept)

    def add_slope(self, slope: Tensor, count: int) -> None:
        """The slope of more examples, summed over them."""
        self.slope += slope.double().cpu()
        self.count += count

    @property
    def num_evaluated(self) -> int:
        """How many examples the values are of."""
        return self.linear.count or self.exact.count

    def values_of(self, whole: int) -> Tensor:
        """The log likelihood of all examples at the places less that at the mean, of shape ``(units, 3)``."""
        exact, beside = self.exact.mean.chunk(2, -1)
        return whole * (exact + self._shares * (self.linear.mean - beside))

    def slope_of(self, whole: int) -> Tensor:
        """The derivative of the log likelihood of all examples."""
        return whole / self.count * self.slope

    def covariance_of(self, whole: int) -> Tensor:
        """Of the values, since not all examples were run, or looked at; of draws without replacement."""
        covariance = self.exact.covariance
        parts = torch.eye(NUM_PLACES).to(covariance).expand(len(covariance), -1, -1)
        missing = torch.cat([parts, -torch.diag_embed(self._shares)], -1)
        missed = missing @ covariance @ missing.mT
        seen = whole * (whole / self.num_evaluated - 1) * covariance[:, :NUM_PLACES, :NUM_PLACES]
        return seen + whole**2 * (1 / self.exact.count - 1 / self.num_evaluated) * missed

    @property
    def _shares(self) -> Tensor:
        """1 where linear outputs miss less than there is, so that they help, else 0."""
        if not self.linear.count:
            return torch.zeros_like(self.linear.values)
        # No regression: it would be met by the one example in which a unit is active, and no error would be left.
        covariance, places = self.exact.covariance, torch.arange(NUM_PLACES)
        together = covariance[:, places, NUM_PLACES + places]
        alone = covariance[:, NUM_PLACES + places, NUM_PLACES + places]
        return (alone <= 2 * together).to(alone)
