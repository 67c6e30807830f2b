# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The evidence of a model, in the coordinates in which it is best integrated, from draws that are near its posterior.

Both ends of a reduction are such models. A model whose sites have priors that depend on other sites is integrated in
standardised coordinates, and where these do not suit it, in the sites' own as well. The one whose draws count for more
gives the estimate, and where both are about as good they have to agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bmrs.integration.importance.adaptive import Adaptation, LogIntegral, temperature
from pyro_bmrs.integration.importance.modes import find_modes
from pyro_bmrs.integration.log_joint import LogJoint

Values = Mapping[str, Tensor]

# Above this chance of a further mode that matters, the integral is not to be trusted.
_MOST_UNSEEN = 0.1
# Nor above this share of draws whose density is not known, out of so many that are looked at.
_MOST_UNKNOWN, _NUM_PROBED = 0.01, 1000
# The temperature at which enough of the first draws count from which coordinates are taken before others are looked at.
_PROMISING = 0.7
# By so many draws the normal distribution around a mode is told in other coordinates.
_NUM_AROUND = 500
# The share of draws that count in other coordinates, in units of that of a trusted estimate, from which they are gone
# on with: they have a say from a half of it on.
_WORTH = 0.2


@dataclass(frozen=True)
class LogEvidence:
    """
    The log evidence of a model, with how far it is to be trusted.

    :param integral: the integral of the model's joint density.
    :param other: the same in other coordinates; None where there are none.
    :param log_joint: the joint density, in the coordinates of ``integral``.
    :param unseen: an estimate of the chance that one search more would find a mode that matters and is not integrated
        over; 0 where none was looked for, since the model's code has no derivatives at many points at once.
    :param unknown: the share of the draws at which the density is not a number, and was taken to be 0.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs import log_evidence
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> def exact(y):
        ...     pyro.sample("mean", dist.Normal(0.5, 0.5))
        >>> y = torch.tensor([0.4, 0.7, 0.9])
        >>> found = log_evidence(model, exact, args=(y,))
        >>> round(found.value, 1), found.trusted
        (-3.7, True)
    """

    integral: LogIntegral
    other: LogIntegral | None
    log_joint: LogJoint
    unseen: float = 0.0
    unknown: float = 0.0

    @property
    def value(self) -> float:
        """The log evidence in nats."""
        return self.integral.value

    @property
    def standard_error(self) -> float:
        """
        Of :attr:`value`, in nats.

        With half of the distance to the estimate in other coordinates, where that has a say: what weights leave out
        they do not know of, and coordinates leave out different things.
        """
        distance = abs(self.value - self.other.value) if self.other is not None and self._other_counts else 0.0
        return math.hypot(self.integral.standard_error, distance / 2)

    @property
    def _other_counts(self) -> bool:
        """Whether an estimate in other coordinates is nearly as good: one that is much worse may be the wrong one."""
        if self.other is None or not self.other.trusted:
            return False
        return self.other.effective_share >= 0.5 * self.integral.effective_share

    @property
    def pareto_k(self) -> float:
        """Shape of the tail of the importance weights; above 0.7 the estimate is not to be trusted."""
        return self.integral.pareto_k

    @property
    def effective_share(self) -> float:
        """Effective sample size over the number of draws."""
        return self.integral.effective_share

    @property
    def effective_sample_size(self) -> float:
        """How many independent draws of the model's posterior the weighted ones are worth."""
        return self.integral.effective_share * len(self.integral.points)

    @property
    def trusted(self) -> bool:
        """
        Whether the weights say that the estimate holds, and nothing else says that it does not.

        Namely modes that were found so rarely that there may be others, draws at which the density is not a number, or
        an estimate in other coordinates.
        """
        if self.unseen > _MOST_UNSEEN or self.unknown > _MOST_UNKNOWN:
            return False
        if not self.integral.trusted or self.other is None or not self._other_counts:
            return self.integral.trusted
        allowed = 4 * math.hypot(self.integral.standard_error, self.other.standard_error)
        return abs(self.integral.value - self.other.value) <= max(allowed, 0.25)

    @property
    def is_beyond_doubt(self) -> bool:
        """Whether the weights are so even that another estimate need not be asked for."""
        return self.trusted and self.pareto_k <= 0.5 and self.effective_share >= 0.1

    def draws(self, num_draws: int) -> dict[str, Tensor]:
        """Draws from the model's posterior, by site, along the first dimension."""
        return self.log_joint.values(self.integral.resample(num_draws))

    def __repr__(self) -> str:
        doubt = "" if self.trusted else ", not to be trusted"
        return (
            f"LogEvidence({self.value:.2f} ± {self.standard_error:.2g} nats, Pareto k {self.pareto_k:.2f}, "
            f"{self.effective_share:.0%} of the draws count{doubt})"
        )


def integrate_model(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    starts: Sequence[Values],
    *,
    num_draws: int | None = None,
) -> LogEvidence:
    """
    The log evidence of a model.

    :param model: the model.
    :param args: its arguments.
    :param kwargs: its keyword arguments.
    :param starts: sets of draws near the posterior, each by site along the first dimension; the best is begun at.
    :param num_draws: draws a round.
    :raises ReductionError: for a model without a density at hand, or one that is 0 wherever it is looked for.
    """
    example = {name: values[0] for name, values in starts[0].items()}
    own = LogJoint(model, args, kwargs, example=example)
    if not own.has_hierarchy:
        return _Begin(own, starts, num_draws).evidence
    standardised = LogJoint(model, args, kwargs, example=example, standardised=True)
    begin = _Begin(standardised, starts, num_draws)
    if begin.promise >= _PROMISING and begin.is_enough:
        return begin.evidence
    both = [begin, begin.in_other_coordinates(own, starts)]
    both.sort(key=lambda begin: -begin.promise)
    if both[0].is_enough:
        return both[0].evidence
    both.sort(key=lambda begin: -begin.adaptation.share)
    found, rest = both[0].evidence, both[1]
    if found.is_beyond_doubt or found.trusted and rest.adaptation.share < _WORTH * both[0].adaptation.share:
        return found
    best, other = sorted((found, rest.evidence), key=lambda end: -end.effective_share)
    return replace(best, other=other.integral)


class _Begin:
    """
    An integral that is begun at each set of draws, and at the modes that can be found.

    :param log_joint: the joint density, in the coordinates that are integrated over.
    :param starts: sets of draws near the posterior, by site.
    :param num_draws: draws a round.
    :param unseen: the chance of a further mode, if such have been looked for.
    """

    def __init__(
        self, log_joint: LogJoint, starts: Sequence[Values], num_draws: int | None, unseen: float | None = None
    ) -> None:
        self.log_joint = log_joint
        begins = [moments(log_joint.coordinates(values)) for values in starts]
        parts, self.unseen, self.modes = [begins], unseen or 0.0, None
        if log_joint.dim and log_joint.has_derivatives:
            self.modes = find_modes(log_joint, begins, is_blind=unseen is None)
            parts.append(list(zip(self.modes.points, self.modes.covariances)))
            self.unseen = max(self.unseen, self.modes.unseen)
        loc, covariance = zip(*(begin for part in parts for begin in part))
        self.loc, self.covariance, self.num_draws = torch.stack(loc), torch.stack(covariance), num_draws

    def in_other_coordinates(self, log_joint: LogJoint, starts: Sequence[Values]) -> _Begin:
        """The same integral, begun at all modes that were found, which need not be looked for again."""
        modes = self.modes
        if modes is None:
            return _Begin(log_joint, starts, self.num_draws)
        around = [
            self.log_joint.values(dist.MultivariateNormal(loc, covariance).sample(torch.Size([_NUM_AROUND])))
            for loc, covariance in zip(modes.points, modes.covariances)
        ]
        return _Begin(log_joint, [*starts, *around], self.num_draws, self.unseen)

    @property
    def is_enough(self) -> bool:
        """Whether its weights are so even that the integral in other coordinates need not be asked for."""
        return self.adaptation.is_even and self.evidence.is_beyond_doubt

    @cached_property
    def promise(self) -> float:
        """How far the first draws from here are those of the density."""
        return temperature(self.log_joint, self.loc, self.covariance) if self.log_joint.dim else 1.0

    @cached_property
    def adaptation(self) -> Adaptation:
        """What comes of it without patches."""
        return Adaptation(self.log_joint, self.loc, self.covariance, num_draws=self.num_draws)

    @cached_property
    def evidence(self) -> LogEvidence:
        """The evidence, in these coordinates."""
        integral = self.adaptation.integral()
        some = integral.points[:: max(1, len(integral.points) // _NUM_PROBED)]
        return LogEvidence(integral, None, self.log_joint, self.unseen, self.log_joint.unknown_share(some))


def moments(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """
    Mean and covariance of draws, in double precision; never singular, so that it can be drawn from.

    :param coordinates: shape ``(num_draws, dim)``.
    """
    draws = coordinates.double()
    draws = draws[draws.isfinite().all(-1)]
    covariance = torch.atleast_2d(torch.cov(draws.mT)) if draws.shape[1] else draws.new_zeros(0, 0)
    variance = covariance.diagonal()
    floor = 1e-6 * torch.where(variance > 0, variance, 1.0)
    return draws.mean(0), covariance + floor.diag()


def conditioned(full: LogEvidence, model: Callable[..., Any], num: int) -> Values | None:
    """
    Draws near the posterior of a reduced model, by conditioning a normal approximation of the full one.

    :param full: the evidence of the full model.
    :param model: the reduced model, some of whose coordinates may be fixed; it takes the full model's arguments.
    :param num: how many draws.
    :return: None where the two do not have the same coordinates.
    """
    args, kwargs = full.log_joint.arguments
    near = full.draws(num)
    example = {name: values[0] for name, values in near.items()}
    before = LogJoint(full.log_joint.model, args, kwargs, example=example)
    after = LogJoint(model, args, kwargs, example=example)
    kept: list[Tensor] = []
    for name, place in after.places.items():
        whole = before.places.get(name)
        if whole is None or whole.shape != place.shape or whole.free is not None:
            return None
        positions = torch.arange(whole.positions.start, whole.positions.stop)
        kept.append(positions if place.free is None else positions[place.free.flatten()])
    at = torch.cat(kept) if kept else torch.zeros(0, dtype=torch.long)
    loc, covariance = moments(before.coordinates(near))
    # Where the reduced model's sites are if its own coordinates are at 0: only what it fixes is looked at.
    points = before.coordinates(after.values(loc.new_zeros(1, after.dim)))[0].double()
    is_fixed = torch.ones(before.dim, dtype=torch.bool)
    is_fixed[at] = False
    fixed = (is_fixed & points.isfinite()).nonzero().squeeze(-1)
    gain = torch.linalg.solve(covariance[fixed][:, fixed], covariance[fixed][:, at]).mT
    loc_of_rest = loc[at] + gain @ (points[fixed] - loc[fixed])
    covariance_of_rest = covariance[at][:, at] - gain @ covariance[fixed][:, at]
    if not len(at):
        return after.values(loc.new_zeros(num, 0))
    return after.values(dist.MultivariateNormal(loc_of_rest, covariance_of_rest).sample(torch.Size([num])))
