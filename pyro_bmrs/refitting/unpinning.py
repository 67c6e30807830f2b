# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduced guides whose points are given a density again, so that the elements beside them can be reduced in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch.distributions import Distribution

from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.posteriors.reduced_guide import ReducedGuide
from pyro_bmrs.structure.coordinates import elements, flatten, is_normal_vector
from pyro_bmrs.structure.layers import is_point, to_event
from pyro_bmrs.structure.packed import Packed


@torch.no_grad()
def unpinned_guide(guide: ReducedGuide, before: FittedGuide, model: Callable[..., Any]) -> ReducedGuide:
    """
    A guide with the density that a point had before it was one, independent of all else, and all else as it is.

    :param guide: a reduced guide, some of whose elements are points.
    :param before: the guide that was reduced, read, without points.
    :param model: the model that the new guide belongs to.
    """
    nodes = poutine.trace(before.guide).get_trace(*before.args, **before.kwargs).nodes
    statements = {factor.statement for factor in before.factors}
    placed = {
        name: unpin(distribution, nodes[guide.original_names[name]]["fn"])
        for name, distribution in guide.current_statements().items()
        if guide.original_names[name] in statements
    }
    return ReducedGuide(guide, model, placed, guide.default_arguments)


def unpin(now: Distribution, before: Distribution) -> Distribution:
    """
    A distribution with its points replaced.

    :param now: a point, a mixture by element with points, a packed vector with points, or any distribution without.
    :param before: a distribution without points over the same values; in a packed vector, a normal.
    :return: a distribution over the same values; a packed vector of which some part is no normal stays as it is.

    Example::

        >>> fixed = dist.Delta(torch.zeros(1), event_dim=1)
        >>> packed = Packed([(fixed, slice(0, 1)), (dist.Normal(torch.ones(2), 0.1).to_event(1), slice(1, 3))], 3)
        >>> unpin(packed, dist.Normal(torch.full((3,), 5.), 2.).to_event(1)).stddev
        tensor([2.0000, 0.1000, 0.1000])
    """
    if is_point(now):
        return before
    mixture: Any = elements(now)
    if isinstance(mixture, dist.MaskedMixture) and is_point(mixture.component1):
        return to_event(mixture.component0.expand(mixture.batch_shape), len(now.event_shape))
    return _unpin_parts(now, before) if isinstance(now, Packed) else now


def _unpin_parts(now: Packed, before: Any) -> Distribution:
    loc, tril = before.mean.clone(), before.stddev.diag()
    independent = True
    for part, positions in now.parts:
        at = torch.arange(len(loc), device=loc.device)[positions]
        own = unpin(part, dist.Normal(loc[at], tril.diagonal()[at]).to_event(1))
        vector: Any = flatten(own, own.batch_shape + own.event_shape)
        if not is_normal_vector(vector) and not isinstance(vector, torch.distributions.MultivariateNormal):
            return now
        independent &= is_normal_vector(vector)
        loc[at] = vector.mean
        # Positions go upward, so that what is lower triangular stays so.
        tril[at.unsqueeze(-1), at] = vector.stddev.diag() if is_normal_vector(vector) else vector.scale_tril
    return (
        dist.Normal(loc, tril.diagonal()).to_event(1) if independent else dist.MultivariateNormal(loc, scale_tril=tril)
    )
