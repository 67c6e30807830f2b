# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The exact rule for normals on intervals: every mixture of Normal, HalfNormal, TruncatedNormal and Uniform.

The mathematics is in :mod:`~pyro_bmrs.evidence.numerics.normal_product`. LogNormal, TruncatedLogNormal and LogUniform
come here too, as exponentials of these.
"""

from __future__ import annotations

from functools import singledispatch
from itertools import product
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, HalfNormal, Normal, Uniform

from pyro_bmrs.distributions import TruncatedNormal
from pyro_bmrs.distributions.expanded import unexpanded
from pyro_bmrs.distributions.extended_interval import leaves
from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence.numerics.normal_bulk import log_evidence
from pyro_bmrs.evidence.numerics.normal_product import IntervalNormal, IntervalUniform, NormalProduct, normal_product
from pyro_bmrs.evidence.numerics.precision import accurate_where, rounded_to
from pyro_bmrs.evidence.quadrature.reweighted import ReweightedDistribution
from pyro_bmrs.evidence.registry import Reduced, register_reduction
from pyro_bmrs.evidence.support import ROLES, check_within

_LEAST_SINGLE_SCALE = 1e-9


@singledispatch
def interval_normal(distribution: Distribution) -> IntervalNormal | IntervalUniform:
    """The parameters of a member of the family; ``interval_normal.register`` adds a type."""
    raise NotImplementedError(f"{type(distribution).__name__} is not known as a normal on an interval")


@interval_normal.register
def _normal(distribution: Normal) -> IntervalNormal:
    infinity = distribution.loc.new_tensor(torch.inf)
    return IntervalNormal(unexpanded(distribution.loc), unexpanded(distribution.scale), -infinity, infinity)


@interval_normal.register
def _half_normal(distribution: HalfNormal) -> IntervalNormal:
    zero = distribution.scale.new_zeros(())
    return IntervalNormal(zero, unexpanded(distribution.scale), zero, zero + torch.inf)


@interval_normal.register
def _truncated_normal(distribution: TruncatedNormal) -> IntervalNormal:
    return IntervalNormal(*map(unexpanded, (distribution.loc, distribution.scale, distribution.low, distribution.high)))


@interval_normal.register
def _uniform(distribution: Uniform) -> IntervalUniform:
    return IntervalUniform(unexpanded(distribution.low), unexpanded(distribution.high))


def _is_gentle(posterior: Distribution, prior: Distribution, reduced_prior: Distribution) -> bool:
    """
    Whether single precision is enough: of the evidence alone, not its gradients, without a precision to subtract.

    Pruning asks for the evidence of millions of elements. With smaller scales, terms of the precision overflow.
    """
    if not isinstance(prior, Uniform):
        return False
    members: list[Any] = [posterior, prior, reduced_prior]
    tensors = [value for member in members for value in interval_normal(member)]
    if any(x.dtype != torch.float32 or (x.requires_grad and torch.is_grad_enabled()) for x in tensors):
        return False
    scales = [unexpanded(member.scale) for member in members if hasattr(member, "scale")]
    return all(bool(scale.min() > _LEAST_SINGLE_SCALE) for scale in scales if scale.numel())


@accurate_where(_is_gentle)
def reduce_interval_normals(posterior: Distribution, prior: Distribution, reduced_prior: Distribution) -> Reduced:
    """
    Reduce any mixture of Normal, HalfNormal, TruncatedNormal and Uniform.

    :return: the change in log evidence, -inf where posterior and reduced prior share no interval, and the reduced
        posterior: Normal, HalfNormal, TruncatedNormal or Uniform, or, where the reduced prior is so much broader than
        the prior that no normal is left on the interval, one that is normalised numerically.
    :raises ReductionError: where a parameter is NaN or infinite, the support of the reduced prior leaves the prior's,
        or the evidence diverges because the reduced prior is broader than the prior on an unbounded side.

    Example::

        >>> import pyro.distributions as dist
        >>> reduced = reduce_interval_normals(dist.Normal(1.0, 0.5), dist.Normal(0.0, 1.0), dist.Normal(0.0, 0.5))
        >>> reduced.delta_evidence, reduced.posterior
        (tensor(-0.4438), Normal(loc: 0.571..., scale: 0.377...))
    """
    triple = (posterior, prior, reduced_prior)
    shape = torch.broadcast_shapes(*(distribution.batch_shape for distribution in triple))
    q, p, r = map(interval_normal, triple)
    for member, role in zip((q, p, r), ROLES):
        _check_parameters(member, role)
    check_within(leaves(r.low, r.high, p.low, p.high, rounded_to(reduced_prior)), ROLES[2])
    delta_evidence = log_evidence(q, p, r).expand(shape)
    _check_convergence(delta_evidence, torch.maximum(q.low, r.low), torch.minimum(q.high, r.high))

    def build_posterior() -> Distribution:
        named = _named_posterior(normal_product(q, p, r))
        if named is None:
            return ReweightedDistribution(posterior, prior, reduced_prior, delta_evidence)
        expanded: Distribution = named.expand(shape)
        return expanded

    return Reduced(delta_evidence, build_posterior)


for _triple in product((Normal, HalfNormal, TruncatedNormal, Uniform), repeat=3):
    if _triple != (Normal,) * 3:  # of three untruncated normals there is more to say
        register_reduction(*_triple)(reduce_interval_normals)


def _check_parameters(member: IntervalNormal | IntervalUniform, role: str) -> None:
    for name, value in zip(member._fields, member):
        # A sum is finite unless one of its terms is not: one cheap pass over what is nearly always right.
        if name in ("low", "high") or value.detach().sum().isfinite() or value.isfinite().all():
            continue
        raise ReductionError(
            f"The {role}'s {name} is NaN or infinite at {int((~value.isfinite()).sum())} of {value.numel()} elements. "
            "A guide that has diverged or was not fitted does this; for a flat prior use Uniform."
        )


def _check_convergence(delta_evidence: Tensor, low: Tensor, high: Tensor) -> None:
    if not (low.isinf() | high.isinf()).any():
        return
    diverges = delta_evidence == torch.inf
    if diverges.any():
        raise ReductionError(
            f"The reduced prior is broader than the prior where the posterior still has mass, at {int(diverges.sum())} "
            f"of {diverges.numel()} elements, and the evidence diverges. A reduced prior has to be the narrower of the "
            "two in the posterior's tails: give it a smaller scale, or bounds."
        )


def _named_posterior(product: NormalProduct) -> Distribution | None:
    """The product as a member of the family, where it is one."""
    loc, precision, low, high = product[1:]
    empty = product.log_evidence == -torch.inf
    if empty.any():
        raise ReductionError(
            f"There is no reduced posterior at {int(empty.sum())} of {empty.numel()} elements: posterior and reduced "
            "prior share no interval."
        )
    named: Distribution
    if loc is None or precision is None:
        named = dist.Uniform(low, high, validate_args=False)
    elif not (precision > 0).all():
        return None
    elif (low == -torch.inf).all() and (high == torch.inf).all():
        named = dist.Normal(loc, precision.rsqrt(), validate_args=False)
    elif (low == 0).all() and (high == torch.inf).all() and (loc == 0).all():
        named = dist.HalfNormal(precision.rsqrt(), validate_args=False)
    else:
        named = TruncatedNormal(loc, precision.rsqrt(), low, high, validate_args=False)
    return named
