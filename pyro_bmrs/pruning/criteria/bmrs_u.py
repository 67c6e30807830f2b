# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The criterion that asks whether the noise of a unit is rounded to 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.distributions import Distribution

from pyro_bmrs.distributions import LogUniform
from pyro_bmrs.errors import check_number
from pyro_bmrs.pruning.criteria.evidence.evidence_criterion import ClosedOrEvaluated


@dataclass(frozen=True)
class BMRS_U(ClosedOrEvaluated):
    r"""
    The change in log evidence when the noise is confined to values that fewer bits round to 0.

    The other criterion of D. Wright, C. Igel and R. Selvan (2024), *BMRS: Bayesian model reduction for structured
    pruning*, https://arxiv.org/abs/2406.01345.

    The reduced prior is log-uniform up to :math:`2^{-p_1}`. The change cannot exceed the log of the ratio of the widths
    of both intervals, 0.32 nats for the default interval and 8 bits, and comes near it for units that collapsed.

    :param p1: the number of bits, 8 or 4 in the paper.
    :param prior_log_odds: see :class:`BMRS_N`.
    :param low: lower end of the reduced prior; by default that of the prior.
    :param evidence: ``"closed"``, of the guide, or ``"evaluated"`` on ``batches`` of data; see
        :class:`EvidenceCriterion` for these, ``likelihood``, ``num_exact`` and ``progress``.
    :raises ReductionError: for odds that are no finite numbers, or bits or a lower end that are not positive.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, BMRS_U, attach_noise, prune
        >>> _ = torch.manual_seed(0)
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> with torch.no_grad():  # in place of fitting
        ...     guide.noise_locs[:3] = -20.0
        >>> prune(net, guide, BMRS_U(8)).num_kept
        1
    """

    p1: float = 8
    prior_log_odds: float | Mapping[str, float] = 1.0
    low: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.p1, "the number of bits", above=0)
        if self.low is not None:
            check_number(self.low, "the lower end of the reduced prior", above=0)

    @classmethod
    def paper(cls, p1: float = 8) -> BMRS_U:
        """The rule of the paper's code: from 2^-23 on, at even odds."""
        return cls(p1, prior_log_odds=0.0, low=2.0**-23)

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"BMRS_U-{self.p1:g}{self._suffix}"

    def reduced_prior(self, prior: LogUniform) -> Distribution:
        """A log-uniform from the low end to ``2^-p1``."""
        low = prior.low if self.low is None else torch.full_like(prior.low, self.low)
        return LogUniform(low, torch.full_like(low, 2.0**-self.p1))
