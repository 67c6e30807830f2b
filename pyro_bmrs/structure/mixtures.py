# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The prior of a site of which some elements take a reduced prior and the others keep their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyro_bmrs.structure.coordinates import Block, elements
from pyro_bmrs.structure.layers import peel, to_event
from pyro_bmrs.structure.parameters import is_leaf, map_parameters


def mix(prior: Distribution, reduced_prior: Distribution, reduced: Tensor) -> Distribution:
    """
    The reduced prior where ``reduced`` is true and the prior elsewhere.

    Of the priors' own type where both are of one type, with each element's parameters from one or the other; else a
    ``MaskedMixture``.

    :param prior: prior of a site.
    :param reduced_prior: its reduced prior, of the same shapes.
    :param reduced: of the shape of the site's elements, or of its batch shape where elements cannot be parted.

    Example::

        >>> mix(dist.Normal(torch.zeros(2), 1.0), dist.Normal(torch.zeros(2), 0.1), torch.tensor([True, False])).scale
        tensor([0.1000, 1.0000])
    """
    if reduced.all() or not reduced.any():
        return reduced_prior if reduced.all() else prior
    p, r = elements(prior), elements(reduced_prior)
    if p is None or r is None or reduced.shape == prior.batch_shape:
        p, r = prior, reduced_prior
    p, r = p.expand(reduced.shape), r.expand(reduced.shape)
    mixed: Any = _of_one_type(p, r, reduced) if type(p) is type(r) and is_leaf(p) else dist.MaskedMixture(reduced, p, r)
    whole: Distribution = mixed.to_event(len(prior.event_shape) - len(mixed.event_shape))
    return whole


def unmask(prior: Distribution, reduced_prior: Distribution) -> tuple[Distribution, Distribution]:
    """
    A prior and a reduced prior that say without a mask what they say with it: masked elements keep their prior.

    :param prior: prior of a site.
    :param reduced_prior: its reduced prior, of the same shapes, masked where the prior is.

    Example::

        >>> mask = torch.tensor([True, False])
        >>> prior, reduced_prior = dist.Normal(torch.zeros(2), 1.0), dist.Normal(torch.zeros(2), 0.1)
        >>> unmask(prior.mask(mask), reduced_prior.mask(mask))[1].scale
        tensor([0.1000, 1.0000])
    """
    p, r = peel(prior), peel(reduced_prior)
    if p.mask is True:
        return prior, reduced_prior
    mask = torch.as_tensor(p.mask).expand(p.shape)
    bare = [to_event(replace(peeled, mask=True).whole(), peeled.event_dims) for peeled in (p, r)]
    return bare[0], mix(bare[0], bare[1], mask)


def _of_one_type(prior: Distribution, reduced_prior: Distribution, reduced: Tensor) -> Distribution:
    values = _parameters(reduced_prior)

    def choose(path: str, value: Tensor, constraint: Constraint, event_dim: int) -> Tensor:
        return torch.where(reduced[(...,) + (None,) * event_dim], values[path], value)

    return map_parameters(prior, choose)


def _parameters(distribution: Distribution) -> dict[str, Tensor]:
    values = {}

    def note(path: str, value: Tensor, constraint: Constraint, event_dim: int) -> Tensor:
        values[path] = value
        return value

    map_parameters(distribution, note)
    return values


def is_mixed(prior: Distribution) -> bool:
    """Whether a prior is one distribution for some elements and another for the rest."""
    return isinstance(elements(prior), dist.MaskedMixture)


def part(
    blocks: Sequence[Block], priors: Mapping[str, Distribution], reduced_priors: Mapping[str, Distribution]
) -> tuple[tuple[Block, ...], dict[str, Distribution], dict[str, Distribution]]:
    """
    Blocks cut up so that no reduced prior in them is mixed, with the priors of the pieces.

    A piece whose reduced prior is its prior is not among the reduced priors that are returned.

    :param blocks: where sites lie in a packed vector; their transforms are taken element by element.
    :param priors: prior of each site that is reduced.
    :param reduced_priors: reduced prior of each.
    """
    pieces: list[Block] = []
    p, r = {name: priors[name] for name in reduced_priors}, dict(reduced_priors)
    for block in blocks:
        if block.name not in r or not is_mixed(r[block.name]):
            pieces.append(block)
            continue
        prior = elements(p.pop(block.name))
        mixed: Any = elements(r.pop(block.name))
        sides = {False: mixed.component0, True: mixed.component1}
        mask = mixed.mask.expand(block.shape).reshape(-1)
        ends = [0, *(mask.diff().nonzero().squeeze(-1) + 1).tolist(), len(mask)]
        for low, high in zip(ends, ends[1:]):
            start = block.positions.start
            name = f"{block.name}[{low}:{high}]"
            pieces.append(
                replace(block, name=name, positions=slice(start + low, start + high), shape=torch.Size([high - low]))
            )
            other = _cut(sides[bool(mask[low])], block.shape, low, high)
            p[name] = own = _cut(prior, block.shape, low, high)
            if not _same(own, other):
                r[name] = other
    return tuple(pieces), p, r


def _cut(distribution: Any, shape: torch.Size, low: int, high: int) -> Distribution:
    """Some of the elements of a distribution, laid out flat, as one event."""
    whole = distribution.expand(shape)
    cut = map_parameters(whole, lambda path, value, *_: value.expand(shape).reshape(-1)[low:high])
    return to_event(cut, 1)


def _same(one: Distribution, other: Distribution) -> bool:
    left, right = _parameters(one), _parameters(other)
    return left.keys() == right.keys() and all(torch.equal(left[path], right[path]) for path in left)
