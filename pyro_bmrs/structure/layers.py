# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Distributions layer by layer: ``Independent``, ``.expand``, ``.mask`` and transforms around a core.

A wrapper says how elements are laid out, or which of them count, and not how they are distributed. Whoever asks what a
distribution is asks its core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.structure.transforms import flat_transforms


def layers(distribution: Distribution) -> Iterator[Distribution]:
    """
    The distribution, what it is wrapped around, and so on to the innermost.

    Example::

        >>> [type(layer).__name__ for layer in layers(dist.LogNormal(torch.zeros(2), 1.0).to_event(1))]
        ['Independent', 'LogNormal', 'Normal']
    """
    layer: Any = distribution
    while isinstance(layer, Distribution):
        yield layer
        layer = getattr(layer, "base_dist", None)


@dataclass(frozen=True)
class Peeled:
    """
    A distribution without the wrappers that only lay out its elements, and what they said.

    :param core: the distribution of one element, or of all elements that have parameters in common.
    :param event_dims: how many of the rightmost dimensions of ``shape`` are event dimensions of the wrapped one.
    :param shape: the batch shape of the core's elements: the whole batch shape, then the independent event dimensions.
    :param mask: False where an element does not count; it broadcasts to ``shape``.
    """

    core: Distribution
    event_dims: int
    shape: torch.Size
    mask: Tensor | bool

    def whole(self) -> Distribution:
        """All elements, each a batch element of its own, with their mask."""
        core = self.core if self.core.batch_shape == self.shape else self.core.expand(self.shape)
        return core if self.mask is True else MaskedDistribution(core, self.mask)

    def joined(self, event_dims: int) -> Distribution:
        """
        The core with all but the last ``event_dims`` of its independent dimensions.

        :raises ReductionError: where single elements of what would become one event are masked.
        """
        joint = self.event_dims - event_dims
        if not joint:
            return self.core
        self.check_unmasked()
        return to_event(self.whole(), joint)

    def check_unmasked(self) -> None:
        """
        Whether all elements count.

        :raises ReductionError: where they are masked one by one.
        """
        if self.mask is not True:
            raise ReductionError(
                "A mask on single elements of an event has no meaning beside a distribution that is joint over them. "
                "Mask whole events (.to_event() first, then .mask()), or make all three distributions independent."
            )


def peel(distribution: Distribution) -> Peeled:
    """
    Take off ``Independent``, ``.expand`` and ``.mask``, also from beneath transforms that act element by element.

    A ``Delta`` over events is independent elements, too, unless it carries a log density.

    Example::

        >>> peeled = peel(dist.Normal(0.0, torch.ones(2)).expand([3, 2]).to_event(1))
        >>> peeled.core, peeled.event_dims, peeled.shape
        (Normal(loc: torch.Size([3, 2]), scale: torch.Size([3, 2])), 1, torch.Size([3, 2]))
        >>> peel(dist.Delta(torch.zeros(4), event_dim=1)).event_dims
        1
    """
    core: Any = distribution
    event_dims = 0
    mask: Tensor | bool = True
    while True:
        dims = 0
        if isinstance(core, Independent):
            dims, core = core.reinterpreted_batch_ndims, core.base_dist
        elif isinstance(core, ExpandedDistribution):
            core = core.base_dist
        elif isinstance(core, MaskedDistribution):
            mask = core._mask if mask is True else mask & core._mask
            core = core.base_dist
        elif isinstance(core, dist.Delta) and core.event_dim and bool((core.log_density == 0).all()):
            dims, core = core.event_dim, dist.Delta(core.v)
        elif _is_elementwise(core):
            # An elementwise transform of independent elements is independent elements, each transformed.
            inner, transforms = core.base_dist, flat_transforms(core.transforms)
            dims = inner.reinterpreted_batch_ndims if isinstance(inner, Independent) else 0
            core = dist.TransformedDistribution(inner.base_dist, transforms) if transforms else inner.base_dist
        else:
            break
        event_dims += dims
        if dims and isinstance(mask, Tensor):
            mask = mask.reshape(mask.shape + (1,) * dims)
    shape = distribution.batch_shape + distribution.event_shape[:event_dims]
    return Peeled(core, event_dims, shape, mask)


def _is_elementwise(distribution: Distribution) -> bool:
    """Whether transforms that act element by element are around a wrapper."""
    return (
        isinstance(distribution, TransformedDistribution)
        and isinstance(distribution.base_dist, (Independent, ExpandedDistribution))
        and not any(t.domain.event_dim or t.codomain.event_dim for t in flat_transforms(distribution.transforms))
    )


def to_event(distribution: Distribution, dims: int) -> Distribution:
    """The distribution with its ``dims`` rightmost batch dimensions in the event; a ``Delta`` stays a ``Delta``."""
    if not dims:
        return distribution
    if isinstance(distribution, dist.Delta):
        density = sum_rightmost(distribution.log_density, dims)
        return dist.Delta(distribution.v, density, event_dim=distribution.event_dim + dims)
    return dist.Independent(distribution, dims)


def is_point(distribution: Distribution) -> bool:
    """
    Whether a distribution is a point mass, whatever it is wrapped in.

    Example::

        >>> is_point(dist.Delta(torch.tensor(0.0)).expand([3]).mask(torch.ones(3).bool()).to_event(1))
        True
    """
    return isinstance(peel(distribution).core, dist.Delta)


def has_points(distribution: Distribution) -> bool:
    """Whether a distribution, or one side of a mixture of two element by element, is a point mass."""
    core: Any = peel(distribution).core
    sides = (core.component0, core.component1) if isinstance(core, dist.MaskedMixture) else (distribution,)
    return any(map(is_point, sides))


def as_point(distribution: Distribution) -> dist.Delta | None:
    """
    A point mass as one ``Delta`` over the whole event, however it is spelled; None for every other distribution.

    :raises ReductionError: for a mask, of which a ``Delta`` cannot tell.

    Example::

        >>> as_point(dist.Delta(torch.tensor(0.0)).expand([3]).to_event(1)).event_dim
        1
    """
    peeled = peel(distribution)
    if not isinstance(peeled.core, dist.Delta):
        return None
    peeled.check_unmasked()
    point = to_event(peeled.whole(), peeled.event_dims)
    assert isinstance(point, dist.Delta)
    return point
