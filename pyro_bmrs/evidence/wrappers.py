# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What surrounds a distribution without changing how it is reduced.

``Independent``, ``.expand``, ``.mask`` and a bijection shared by posterior, prior and reduced prior are taken off
before a rule is asked, and put back round its answer. The change in log evidence is a sum over independent elements,
does not know of a bijection applied to all three, and is 0 where a mask takes the site out of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution
from torch.distributions.transforms import ExpTransform, PowerTransform, Transform

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal, TruncatedNormal
from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence.accuracy import Accuracy, choose
from pyro_bmrs.evidence.quadrature.reweighted import ReweightedDistribution
from pyro_bmrs.evidence.registry import Reduced
from pyro_bmrs.evidence.support import common_interval
from pyro_bmrs.structure.layers import peel, to_event
from pyro_bmrs.structure.transforms import flat_transforms

Triple = tuple[Distribution, Distribution, Distribution]


@dataclass(frozen=True)
class Layers:
    """
    What was taken off a triple of distributions.

    :param shape: batch shape of the bare triple.
    :param event_dims: how many of its rightmost dimensions are event dimensions of the wrapped one.
    :param mask: False where the site is not part of the model.
    """

    shape: torch.Size
    event_dims: int
    mask: Tensor | bool

    def put_back(self, reduced: Reduced) -> Reduced:
        """What the rule said of the bare triple, said of the wrapped one."""
        accuracy = reduced.accuracy
        if self.mask is not True:
            # What is no part of the model is 0, exactly.
            accuracy = choose(torch.as_tensor(self.mask), accuracy, Accuracy())
        return Reduced(
            self._sum(reduced.delta_evidence),
            lambda: self._wrap(reduced.posterior),
            accuracy.summed(self.shape, self.event_dims),
        )

    def _sum(self, terms: Tensor) -> Tensor:
        if terms.shape != self.shape:
            terms = terms.expand(self.shape)
        if self.mask is not True:
            mask = torch.as_tensor(self.mask, device=terms.device)
            terms = torch.where(mask, terms, 0.0)
        return terms.sum(tuple(range(-self.event_dims, 0))) if self.event_dims else terms

    def _wrap(self, posterior: Distribution) -> Distribution:
        if posterior.batch_shape != self.shape:
            posterior = posterior.expand(self.shape)
        if self.mask is not True:
            posterior = MaskedDistribution(posterior, self.mask)
        return to_event(posterior, self.event_dims)


def unwrap(posterior: Distribution, prior: Distribution, reduced_prior: Distribution) -> tuple[Triple, Layers]:
    """
    The triple without ``Independent``, ``.expand`` and ``.mask``, and what was taken off.

    Where one of the three is joint in dimensions in which the others are independent, the others keep an
    ``Independent`` over these dimensions, so that all three have the same event dimensions.

    :raises ReductionError: where batch shapes do not broadcast, or where a mask leaves the site without a posterior or
        a reduced prior.
    """
    q, p, r = peel(posterior), peel(prior), peel(reduced_prior)
    event_dims = min(q.event_dims, p.event_dims, r.event_dims)
    bare = q.joined(event_dims), p.joined(event_dims), r.joined(event_dims)
    shapes = {peeled.shape[: len(peeled.shape) - (peeled.event_dims - event_dims)] for peeled in (q, p, r)}
    shape = shapes.pop() if len(shapes) == 1 else torch.broadcast_shapes(*shapes)
    return bare, Layers(shape, event_dims, _site_mask(q.mask, p.mask, r.mask))


def _site_mask(posterior: Tensor | bool, prior: Tensor | bool, reduced_prior: Tensor | bool) -> Tensor | bool:
    for mask, role in ((posterior, "posterior"), (reduced_prior, "reduced prior")):
        if mask is True or mask is prior:
            continue
        missing = torch.as_tensor(prior) & ~torch.as_tensor(mask)
        if missing.any():
            raise ReductionError(
                f"The {role} is masked where the prior is not ({int(missing.sum())} elements): there it has no density "
                f"to compare. Mask the prior as well, or take the mask off the {role}."
            )
    return prior


def shared_bijection(
    posterior: Distribution, prior: Distribution, reduced_prior: Distribution
) -> tuple[Triple, list[Transform]] | None:
    """
    The longest run of outermost bijections that posterior, prior and reduced prior have in common.

    :return: the three distributions before it and the list of its transforms; None where there is none. Different
        spellings of a transform (a composition of one, an identity, an independent view) are the same transform.
    """
    transformed = [d for d in (posterior, prior, reduced_prior) if isinstance(d, TransformedDistribution)]
    if len(transformed) < 3:
        return None
    flat = [flat_transforms(d.transforms) for d in transformed]
    count = 0
    for last in zip(*(reversed(transforms) for transforms in flat)):
        if not (last[0].bijective and _same(last[0], last[1]) and _same(last[0], last[2])):
            break
        count += 1
    if not count and any(flat):
        return None
    before = [
        dist.TransformedDistribution(d.base_dist, own[: len(own) - count]) if len(own) > count else d.base_dist
        for d, own in zip(transformed, flat)
    ]
    return (before[0], before[1], before[2]), flat[0][len(flat[0]) - count :]


def _same(one: Transform, other: Transform) -> bool:
    # Torch compares some parameterless transforms by identity, so two biject_to(corr_cholesky) would differ.
    return one == other or (type(one) is type(other) and not _state(one) and not _state(other))


def _state(transform: Transform) -> dict[str, Any]:
    bookkeeping = ("_inv", "_cache_size", "_cached_x_y")
    return {name: value for name, value in vars(transform).items() if name not in bookkeeping}


def transform_posterior(reduced: Reduced, transforms: list[Transform], triple: Triple) -> Reduced:
    """What a rule said of a triple before a shared bijection, said of the triple itself: the posterior is another."""
    if not transforms:
        return reduced

    def build() -> Distribution:
        base = reduced.posterior
        if isinstance(base, ReweightedDistribution):
            return ReweightedDistribution(*triple, reduced.delta_evidence)
        name = NATURAL_NAMES.get((type(base), *map(type, transforms)))
        named = None if name is None else name(base, transforms, triple)
        return dist.TransformedDistribution(base, transforms) if named is None else named

    return replace(reduced, build_posterior=build)


def _inverse_gamma(base: Any, transforms: list[Any], triple: Triple) -> Distribution | None:
    return dist.InverseGamma(base.concentration, base.rate) if (transforms[0].exponent == -1).all() else None


def _truncated_log_normal(base: Any, transforms: list[Transform], triple: Triple) -> Distribution:
    # The ends as they were given, not the exponentials of their logarithms.
    ends = common_interval(*triple)
    return TruncatedLogNormal(base.loc, base.scale, ends.low, ends.high)


def _log_uniform(base: Any, transforms: list[Transform], triple: Triple) -> Distribution:
    ends = common_interval(*triple)
    return LogUniform(ends.low, ends.high)


# The distributions that have a name of their own, by the types of their base and of its transforms.
NATURAL_NAMES: dict[tuple[type, ...], Callable[[Any, list[Any], Triple], Distribution | None]] = {
    (dist.Normal, ExpTransform): lambda base, _transforms, _triple: dist.LogNormal(base.loc, base.scale),
    (TruncatedNormal, ExpTransform): _truncated_log_normal,
    (dist.Uniform, ExpTransform): _log_uniform,
    (dist.Gamma, PowerTransform): _inverse_gamma,
}
