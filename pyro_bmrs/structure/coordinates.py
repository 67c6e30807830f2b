# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Distributions carried between coordinates: a site's own, unconstrained ones, and the packed vector of an autoguide.

The change in log evidence is the same in all of them; guides draw in some and priors are stated in others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Transform, TransformedDistribution, transforms

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.structure.layers import as_point, is_point, peel, to_event
from pyro_bmrs.structure.packed import Packed
from pyro_bmrs.structure.transforms import flat_transforms


@dataclass(frozen=True)
class Block:
    """
    Where a site lies in a packed vector of unconstrained coordinates.

    :param name: the site.
    :param positions: its coordinates in the vector.
    :param shape: the shape of its unconstrained value.
    :param transform: from the unconstrained value to the site's, or None where they are the same.
    """

    name: str
    positions: slice
    shape: torch.Size
    transform: Transform | None

    def take(self, vector: Tensor) -> Tensor:
        """The site's unconstrained value out of the packed vector."""
        return vector[..., self.positions].reshape(vector.shape[:-1] + self.shape)


def drop_identity(transform: Transform) -> Transform | None:
    """
    A transform without its parts that do nothing; None if nothing is left.

    Which dimensions belong to the event is the distribution's affair, not the transform's.
    """
    return _compose([transform])


def _compose(transforms_: Sequence[Transform]) -> Transform | None:
    parts = flat_transforms(transforms_)
    if len(parts) > 1:
        return transforms.ComposeTransform(parts)
    return parts[0] if parts else None


def push_forward(distribution: Distribution, transform: Transform | None) -> Distribution:
    """
    The distribution of ``transform(x)`` for ``x`` from ``distribution``.

    A point mass has no density to be stretched: it goes to the point's image.
    """
    if transform is None:
        return distribution
    if isinstance(distribution, dist.Delta):
        return dist.Delta(transform(distribution.v), distribution.log_density, event_dim=distribution.event_dim)
    pushed: Distribution
    if type(distribution) is dist.Normal and isinstance(transform, transforms.ExpTransform):
        pushed = dist.LogNormal(distribution.loc, distribution.scale)
    else:
        pushed = dist.TransformedDistribution(distribution, [transform])
    return pushed


def pull_back(distribution: Distribution, transform: Transform | None) -> Distribution:
    """
    The distribution of ``transform.inv(x)`` for ``x`` from ``distribution``; of the base, where that is its transform.

    A point mass has no density to be stretched: it goes to the point's unconstrained coordinates as it is.
    """
    if transform is None:
        return distribution
    if isinstance(distribution, dist.MaskedDistribution):
        return dist.MaskedDistribution(pull_back(distribution.base_dist, transform), distribution._mask)
    if isinstance(distribution, dist.MaskedMixture):
        off, on = pull_back(distribution.component0, transform), pull_back(distribution.component1, transform)
        return dist.MaskedMixture(distribution.mask, off, on)
    if isinstance(distribution, Independent) and transform.domain.event_dim <= len(distribution.base_dist.event_shape):
        return to_event(pull_back(distribution.base_dist, transform), distribution.reinterpreted_batch_ndims)
    point = as_point(distribution)
    if point is not None:
        if not transform.codomain.check(point.v).all():
            raise ReductionError("the point of the reduced prior is outside the prior's support; move it inside")
        event_dim = point.event_dim + transform.domain.event_dim - transform.codomain.event_dim
        return dist.Delta(transform.inv(point.v), point.log_density, event_dim=event_dim)
    pulled: Distribution = dist.TransformedDistribution(distribution, [transform.inv])
    if isinstance(distribution, TransformedDistribution) and _compose(distribution.transforms) == transform:
        pulled = distribution.base_dist
    return pulled


def elements(distribution: Distribution) -> Distribution | None:
    """
    The same density with each element of an event a batch element of its own; None where the elements are dependent.

    Example::

        >>> elements(dist.Normal(0.0, torch.ones(3)).to_event(1)).batch_shape
        torch.Size([3])
        >>> elements(dist.Dirichlet(torch.ones(3))) is None
        True
    """
    if not distribution.event_shape:
        return distribution
    peeled = peel(distribution)
    core: Any = peeled.core
    if core.event_shape:
        return None
    if type(core) is dist.TransformedDistribution:
        peeled = replace(peeled, core=push_forward(core.base_dist, _compose(core.transforms)))
    return peeled.whole()


def marginals(posterior: Distribution) -> Distribution | None:
    """The marginal of each element of an event as a batch element of its own; None where it has no closed form."""
    if isinstance(posterior, (torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal)):
        return dist.Normal(posterior.mean, posterior.stddev)
    return elements(posterior)


def flatten(distribution: Distribution, shape: torch.Size) -> Distribution:
    """
    The distribution of ``x.reshape(-1)`` for ``x`` of the given shape, as one event.

    Normals stay normals and points stay points, since a joint normal posterior reduces exactly against those.

    :raises ReductionError: for a point with a mask.
    """
    size = shape.numel()
    point = as_point(distribution)
    if point is not None:
        density = point.log_density.expand(shape[: len(shape) - point.event_dim]).sum()
        return dist.Delta(point.v.expand(shape).reshape(-1), density, event_dim=1)
    base = elements(distribution)
    if isinstance(base, torch.distributions.Normal):
        return _normal_vector(base.loc.expand(shape).reshape(-1), base.scale.expand(shape).reshape(-1))
    if isinstance(distribution, torch.distributions.MultivariateNormal) and shape[-1:] == distribution.event_shape:
        factors = distribution.scale_tril.expand(shape + shape[-1:]).reshape((-1,) + 2 * tuple(shape[-1:]))
        loc = distribution.loc.expand(shape).reshape(size)
        return dist.MultivariateNormal(loc, scale_tril=torch.block_diag(*factors))
    return Packed([(distribution.expand(shape[: len(shape) - len(distribution.event_shape)]), slice(0, size))], size)


def _normal_vector(loc: Tensor, scale: Tensor) -> Distribution:
    vector: Distribution = dist.Normal(loc, scale).to_event(1)
    return vector


def is_normal_vector(part: Distribution) -> bool:
    """Whether a distribution is a vector of independent normals."""
    return isinstance(part, Independent) and isinstance(part.base_dist, torch.distributions.Normal)


def concatenate(parts: Sequence[Any]) -> Distribution:
    """The joint distribution of independent vectors, end to end: a normal where all are, a point where all are."""
    if len(parts) == 1:
        only: Distribution = parts[0]
        return only
    if all(map(is_normal_vector, parts)):
        loc = torch.cat([part.base_dist.loc for part in parts])
        return _normal_vector(loc, torch.cat([part.base_dist.scale for part in parts]))
    if all(map(is_point, parts)):
        density = torch.stack([part.log_density for part in parts]).sum()
        return dist.Delta(torch.cat([part.v for part in parts]), density, event_dim=1)
    if all(isinstance(part, dist.MultivariateNormal) or is_normal_vector(part) for part in parts):
        loc = torch.cat([part.mean for part in parts])
        factors = [getattr(part, "scale_tril", None) for part in parts]
        factors = [part.stddev.diag() if factor is None else factor for part, factor in zip(parts, factors)]
        return dist.MultivariateNormal(loc, scale_tril=torch.block_diag(*factors))
    placed, start = [], 0
    for part in parts:
        size = part.event_shape.numel()
        placed.append((part, slice(start, start + size)))
        start += size
    return Packed(placed, start)
