# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The criterion that asks whether the noise of a unit is all but 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch.distributions import Distribution

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.errors import check_number
from pyro_bmrs.pruning.criteria.evidence.evidence_criterion import ClosedOrEvaluated


@dataclass(frozen=True)
class BMRS_N(ClosedOrEvaluated):
    r"""
    The change in log evidence when the noise is all but 0: a log-normal prior at the low end of its interval.

    The criterion of D. Wright, C. Igel and R. Selvan (2024), *BMRS: Bayesian model reduction for structured pruning*,
    https://arxiv.org/abs/2406.01345. As ``scale`` goes to 0 it becomes the Savage-Dickey ratio there, the posterior's
    log density less the prior's.

    :param prior_log_odds: for removal, in nats; a number, or one for each site, as :func:`in_proportion_to_cost` gives
        in proportion to what a unit costs. A unit of which the data say nothing has a change in log evidence near 0,
        for every reduced prior: this is what decides about it. By default 1, the limit of what Jeffreys calls evidence
        not worth more than a bare mention.
    :param scale: scale of the logarithm under the reduced prior.
    :param evidence: ``"closed"``, of the guide, or ``"evaluated"`` on ``batches`` of data; see
        :class:`EvidenceCriterion` for these, ``likelihood``, ``num_exact`` and ``progress``.
    :raises ReductionError: for odds that are no finite numbers, or a scale that is not positive.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, BMRS_N, attach_noise, prune
        >>> _ = torch.manual_seed(0)
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> with torch.no_grad():  # in place of fitting
        ...     guide.noise_locs[:3] = -20.0
        >>> prune(net, guide, BMRS_N()).num_kept
        1
    """

    prior_log_odds: float | Mapping[str, float] = 1.0
    scale: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.scale, "the scale under the reduced prior", above=0)

    @classmethod
    def paper(cls) -> BMRS_N:
        r"""The rule of the paper's code, whose evidence lacks a factor of :math:`1/\sqrt{2\pi}`, as odds."""
        return cls(prior_log_odds=0.5 * math.log(2 * math.pi))

    def reduced_prior(self, prior: LogUniform) -> Distribution:
        """A truncated log-normal on the prior's interval, at its low end."""
        return TruncatedLogNormal(prior.low.log(), self.scale, prior.low, prior.high)
