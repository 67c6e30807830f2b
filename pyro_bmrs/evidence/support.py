# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The supports of posterior, prior and reduced prior, and that they lie within the prior's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution, VonMises, constraints
from torch.distributions.transforms import AffineTransform, ExpTransform, Transform

from pyro_bmrs.distributions.extended_interval import extended_interval, leaves
from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence.numerics.precision import rounded_to

ROLES = ("posterior", "prior", "reduced prior")

Bound = Tensor | float


@dataclass(frozen=True)
class Interval:
    """An interval of the real line; bounds are numbers or tensors of the batch shape, infinite where there is none."""

    low: Bound = -math.inf
    high: Bound = math.inf

    def intersection(self, other: Interval) -> Interval:
        """What is in both."""
        return Interval(_largest(self.low, other.low), -_largest(-self.high, -other.high))

    def outside(self, other: Interval, rounded_to: torch.dtype | None = None) -> Tensor:
        """Where a part of this interval is outside the other, by more than rounding, which may have been coarser."""
        low, high, outer_low, outer_high = map(_exactly, (self.low, self.high, other.low, other.high))
        return leaves(low, high, outer_low, outer_high, rounded_to)

    def constraint(self) -> constraints.Constraint:
        """The support of a distribution on this interval."""
        if not isinstance(self.low, Tensor) and not isinstance(self.high, Tensor) and self == Interval():
            return constraints.real
        return extended_interval(*torch.broadcast_tensors(torch.as_tensor(self.low), torch.as_tensor(self.high)))


def _largest(one: Bound, other: Bound) -> Bound:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        like = one if isinstance(one, Tensor) else torch.as_tensor(other)
        return torch.maximum(*(torch.as_tensor(bound, dtype=like.dtype, device=like.device) for bound in (one, other)))
    return max(one, other)


def _exactly(bound: Bound) -> Tensor:
    """The bound as a tensor; a number keeps all its digits."""
    return bound if isinstance(bound, Tensor) else torch.tensor(bound, dtype=torch.float64)


def support_interval(distribution: Distribution) -> Interval | None:
    """
    The support of a continuous distribution of scalars; None where it has another, or none that can be told.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_bmrs.evidence.support import support_interval
        >>> support_interval(dist.Gamma(2., 1.))
        Interval(low=0.0, high=inf)
        >>> support_interval(dist.Poisson(2.)) is None
        True
    """
    if distribution.event_shape:
        return None
    if isinstance(distribution, VonMises):
        return Interval(-math.pi, math.pi)  # the density is periodic; torch calls the support real
    declared = _constraint_interval(distribution.support)
    if declared is None or not isinstance(distribution, TransformedDistribution):
        return declared
    # Torch takes the codomain of the last transform for the support, however bounded the base distribution is.
    image = support_interval(distribution.base_dist)
    for transform in distribution.transforms:
        image = None if image is None else _image(image, transform)
    return declared if image is None else declared.intersection(image)


def contains(distribution: Distribution, value: Tensor) -> Tensor:
    """Whether values are in the support of a distribution, each event as a whole."""
    support: Any = distribution.support
    inside: Tensor = support.check(value.to(rounded_to(distribution) or value.dtype))
    return inside


def is_discrete(distribution: Distribution) -> bool:
    """Whether a distribution is one of counts or categories."""
    support: Any = distribution.support
    return bool(support.is_discrete)


def check_within(outside: Tensor, role: str) -> None:
    """
    That a support lies within the prior's.

    :param outside: where it does not, element by element.
    :param role: whose support it is.
    :raises ReductionError: with the number of elements at which it does not.
    """
    if outside.any():
        raise ReductionError(
            f"The {role}'s support leaves the prior's at {int(outside.sum())} of {outside.numel()} elements. There the "
            f"prior has no density: bound the {role} to the support of the prior."
        )


def common_interval(posterior: Distribution, prior: Distribution, reduced_prior: Distribution) -> Interval:
    """
    The intersection of three supports.

    :raises ReductionError: where one is no interval, the reduced prior's leaves the prior's, or the intersection is
        empty.
    """
    intervals = []
    for distribution, role in zip((posterior, prior, reduced_prior), ROLES):
        interval = support_interval(distribution)
        if interval is None:
            raise ReductionError(
                f"Quadrature takes continuous distributions of scalars on an interval; the {role} is "
                f"{type(distribution).__name__}. Take method='importance'."
            )
        intervals.append(interval)
    q, p, r = intervals
    check_within(r.outside(p, rounded_to(reduced_prior)), ROLES[2])
    common = q.intersection(r).intersection(p)
    empty = torch.as_tensor(common.low) >= torch.as_tensor(common.high)
    if empty.any():
        raise ReductionError(
            f"The supports of posterior and reduced prior do not overlap at {int(empty.sum())} of {empty.numel()} "
            "elements: there the evidence of the reduced model is zero."
        )
    return common


def _image(interval: Interval, transform: Transform) -> Interval | None:
    if isinstance(transform, AffineTransform):
        ends = [transform.loc + transform.scale * end for end in (interval.low, interval.high)]
        return Interval(-_largest(-ends[0], -ends[1]), _largest(ends[0], ends[1]))
    if isinstance(transform, ExpTransform):
        return Interval(
            *(end.exp() if isinstance(end, Tensor) else float(np.exp(end)) for end in (interval.low, interval.high))
        )
    return None


def _constraint_interval(constraint: Any) -> Interval | None:
    if constraint.is_discrete:
        return None
    if isinstance(constraint, constraints.MixtureSameFamilyConstraint):
        interval = _constraint_interval(constraint.base_constraint)
        bounds = () if interval is None else (interval.low, interval.high)
        return None if any(isinstance(bound, Tensor) and bound.dim() for bound in bounds) else interval
    if constraint is constraints.real:
        return Interval()
    bounded = (
        constraints.greater_than,
        constraints.greater_than_eq,
        constraints.less_than,
        constraints.interval,
        constraints.half_open_interval,
    )
    if not isinstance(constraint, bounded):
        return None
    low, high = getattr(constraint, "lower_bound", -math.inf), getattr(constraint, "upper_bound", math.inf)
    return Interval(*(bound if isinstance(bound, Tensor) else float(bound) for bound in (low, high)))
