# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The branches of a guide: what it is at each value of the discrete sites that other sites depend on.

Where a prior or a posterior depends on nothing else, each branch is a guide of known density, and there are so many of
them as those sites have joint values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.posteriors.guides.guide_factors import read_factors
from pyro_bmrs.posteriors.traces import latent_nodes, subsampled_plates, track_guide, upstream_sites
from pyro_bmrs.structure.layers import is_point

MOST_BRANCHES = 256


@dataclass(frozen=True, eq=False)
class Branch:
    """
    A fitted guide with some of its discrete sites at given values, as its model has them.

    :param values: of each of these sites.
    :param log_prob: the log probability that the guide gives them, 0-d.
    :param fitted: the guide and its model, conditioned on them.
    """

    values: Mapping[str, Tensor]
    log_prob: Tensor
    fitted: FittedGuide


class _TooMany(Exception):
    """There is no such list of branches: a site has a continuum of values, or there are too many."""


def read_branches(
    fitted: Any, names: Collection[str], upstream: Mapping[str, frozenset[str]]
) -> tuple[Branch, ...] | None:
    """
    The branches of a guide in each of which some sites depend on no other.

    :param fitted: the guide, read.
    :param names: the sites.
    :param upstream: for each site, others that a reduced prior of it depends on.
    :return: one for each joint value of the sites that these depend on, of a probability above 0; None where these are
        not discrete, have more than :data:`MOST_BRANCHES` values, or where densities are not known in the branches.
    :raises ReductionError: where one of the sites is in some branches alone.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_bmrs.posteriors import read_guide
        >>> def model():
        ...     spike = pyro.sample("spike", dist.Bernoulli(0.5))
        ...     pyro.sample("z", dist.Normal(0., 0.1) if spike else dist.Normal(0., 3.))
        >>> def guide():
        ...     pyro.sample("spike", dist.Bernoulli(0.3))
        ...     pyro.sample("z", dist.Normal(0., 0.1))
        >>> branches = read_branches(read_guide(guide, model), ["z"], {"z": frozenset()})
        >>> {float(branch.values["spike"]): branch.log_prob.exp() for branch in branches}
        {0.0: tensor(0.7000), 1.0: tensor(0.3000)}
    """
    guide = fitted.guide
    if isinstance(guide, GuideMessenger) or read_factors.dispatch(type(guide)) is not read_factors.dispatch(object):
        return None
    try:
        return tuple(_grow(fitted, sorted(names), upstream, {}, torch.zeros(()), 1))
    except _TooMany:
        return None


def _grow(
    whole: FittedGuide,
    names: Collection[str],
    upstream: Mapping[str, frozenset[str]],
    values: Mapping[str, Tensor],
    log_prob: Tensor,
    count: int,
) -> Iterator[Branch]:
    """The branches at some values, of which there are as many as count elsewhere."""
    fitted = _conditioned(whole, values)
    first = _first_open(fitted, [name for name in names if name not in values], upstream, values)
    if first is None:
        if not all(name in fitted.factor_of for name in names if name not in values):
            raise _TooMany
        yield Branch(values, log_prob, fitted)
        return
    site: Any = fitted.traces[0].nodes[first]
    support = _support(site)
    if count * len(support) > MOST_BRANCHES:
        raise _TooMany
    for value in support:
        own = site["fn"].log_prob(value).sum()
        if own > -torch.inf:
            yield from _grow(whole, names, upstream, {**values, first: value}, log_prob + own, count * len(support))


def _conditioned(whole: FittedGuide, values: Mapping[str, Tensor]) -> FittedGuide:
    if not values:
        return whole
    guide, model = (poutine.condition(program, data=dict(values)) for program in (whole.guide, whole.model))
    return FittedGuide(guide, model, whole.args, whole.kwargs)


def _first_open(
    fitted: FittedGuide, names: Collection[str], upstream: Mapping[str, frozenset[str]], values: Mapping[str, Tensor]
) -> str | None:
    """The first of the guide's sites that some sites depend on, or these; None where they depend on no other."""
    asked = fitted.upstream(names)
    needed = frozenset().union(*(asked[name] | upstream[name] for name in names)) - values.keys()
    tracked = track_guide(fitted.guide, fitted.args, fitted.kwargs)
    drawn = latent_nodes(tracked)
    while True:
        if needed - drawn.keys():
            raise _TooMany  # summed out, or in the model alone
        beyond = frozenset().union(*upstream_sites(tracked, needed).values()) & drawn.keys()
        if beyond <= needed:
            return next((name for name in drawn if name in needed), None)
        needed |= beyond


def _support(site: Any) -> list[Tensor]:
    """All values of a site, each for all of its elements."""
    prior: Distribution = site["fn"]
    if is_point(prior):
        return [site["value"]]
    if not prior.has_enumerate_support or subsampled_plates(site):
        raise _TooMany
    support: Any = prior.enumerate_support(expand=True)
    size, elements = len(support), prior.batch_shape.numel()
    if size**elements > MOST_BRANCHES:
        raise _TooMany
    flat = support.reshape((size, elements) + prior.event_shape)
    shape = prior.batch_shape + prior.event_shape
    return [flat[list(chosen), range(elements)].reshape(shape) for chosen in product(range(size), repeat=elements)]
