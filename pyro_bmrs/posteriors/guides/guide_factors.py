# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The independent factors of a guide, by the type of the guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any

import pyro.distributions as dist
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoGuideList,
    AutoNormal,
    AutoNormalMessenger,
)
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal, biject_to

from pyro_bmrs.posteriors.factors import Factor, JointNormalFactor, PackedFactor, SiteFactor
from pyro_bmrs.posteriors.reduced_guide import ReducedGuide, packed_statement
from pyro_bmrs.posteriors.traces import GuideRun, first_run, latent_nodes, trace_guide, track_guide, upstream_sites
from pyro_bmrs.structure.coordinates import Block, drop_identity, is_normal_vector, push_forward
from pyro_bmrs.structure.layers import is_point, peel


@singledispatch
def read_factors(guide: Any, run: GuideRun) -> list[Factor]:
    """
    The independent factors of a guide whose densities are known.

    This is the general case: each sample site of one run of the guide is a factor, but for those that are computed of
    others, as of an auxiliary one. A type of guide that knows more is registered with ``read_factors.register``, as in
    :func:`functools.singledispatch`, and that is all there is to do: reductions, their guides and the reductions of
    those go by the factors. Autoguides that draw one packed normal vector (subclasses of ``AutoContinuous`` whose
    ``get_posterior`` is normal) need no registration.

    :param guide: the guide, or a part of one.
    :param run: the guide as a whole, with its model and their arguments. Its traces are made when they are asked for.
    :return: the factors. A site in none of them is reduced by draws.

    Example::

        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_bmrs import reduce_model
        >>> from pyro_bmrs.posteriors import SiteFactor, read_factors
        >>> class LogScaleGuide:
        ...     "Draws the logarithm of a scale, of which the general case would only see that it sets the scale."
        ...     posterior = dist.Normal(0., 0.1)
        ...     def __call__(self):
        ...         log_scale = pyro.sample("log_scale", self.posterior, infer={"is_auxiliary": True})
        ...         return pyro.sample("scale", dist.Delta(log_scale.exp(), log_density=-log_scale))
        >>> @read_factors.register
        ... def _(guide: LogScaleGuide, run):
        ...     return [SiteFactor("scale", "log_scale", guide.posterior, torch.distributions.ExpTransform())]
        >>> def model():
        ...     return pyro.sample("scale", dist.LogNormal(0., 1.))
        >>> reduction = reduce_model(LogScaleGuide(), dist.LogNormal(0., 0.5), model=model, check=False)
        >>> reduction.method, reduction.delta_evidence
        ('exact', tensor(0.6784))
    """
    trace = run.traces[0] if guide is run.guide and first_run(guide) is None else None
    trace = trace or trace_guide(guide, run.args, run.kwargs)
    latent = latent_nodes(trace)
    computed = _computed(guide, latent, run)
    return [
        SiteFactor(name, name, site["fn"], traced=True)
        for name, site in latent.items()
        # A site set by another variable can be drawn, but its own density is not at hand.
        if name not in computed and not site["infer"].get("is_auxiliary")
    ]


def _computed(guide: Any, latent: Mapping[str, Any], run: GuideRun) -> frozenset[str]:
    """The sites that are no points, though drawn from one, but values computed of what was drawn."""
    points = {name: site["fn"] for name, site in latent.items() if is_point(site["fn"])}
    # Where there is a density, something was drawn, though not by a sample statement.
    computed = {name for name, point in points.items() if not _is_bare(point)}
    others = points.keys() - computed
    if others and any(site["infer"].get("is_auxiliary") for site in latent.values()):
        upstream = upstream_sites(track_guide(guide, run.args, run.kwargs), others)
        computed |= {name for name in others if upstream[name] & latent.keys()}
    return frozenset(computed)


def _is_bare(point: Distribution) -> bool:
    core: Any = peel(point).core
    return bool((core.log_density == 0).all())


_general: Callable[[Any, GuideRun], list[Factor]] = read_factors.dispatch(object)


@read_factors.register
def _(guide: AutoGuideList, run: GuideRun) -> list[Factor]:
    return [factor for part in guide for factor in read_factors(part, run)]


@read_factors.register
def _(guide: AutoNormal, run: GuideRun) -> list[Factor]:
    factors: list[Factor] = []
    prototype: Any = guide.prototype_trace
    for name, site in prototype.iter_stochastic_nodes():
        loc, scale = guide._get_loc_and_scale(name)
        normal = dist.Normal(loc, scale).to_event(guide._event_dims[name])
        transform = drop_identity(biject_to(site["fn"].support))
        factors.append(SiteFactor(name, f"{name}_unconstrained", normal, transform))
    return factors


@read_factors.register
def _(guide: AutoNormalMessenger, run: GuideRun) -> list[Factor]:
    if type(guide).get_posterior is not AutoNormalMessenger.get_posterior:
        return _general(guide, run)
    factors: list[Factor] = []
    for name, site in latent_nodes(run.traces[1]).items():
        transform = biject_to(site["fn"].support)
        normal = dist.Normal(*guide._get_params(name, site["fn"])).to_event(transform.domain.event_dim)
        factors.append(SiteFactor(name, name, push_forward(normal, drop_identity(transform))))
    return factors


@read_factors.register
def _(guide: AutoContinuous, run: GuideRun) -> list[Factor]:
    vector = guide.get_posterior(*run.args, **run.kwargs)
    statement, blocks = packed_statement(guide), _blocks(guide)
    if isinstance(vector, (MultivariateNormal, LowRankMultivariateNormal)):
        return [JointNormalFactor(statement, vector, blocks)]
    if not is_normal_vector(vector):
        return _general(guide, run)
    prototype: Any = guide.prototype_trace
    parts = []
    for block in blocks:
        site = prototype.nodes[block.name]
        event_dim = site["fn"].event_dim + len(block.shape) - site["value"].dim()
        normal = dist.Normal(block.take(vector.mean), block.take(vector.stddev)).to_event(event_dim)
        parts.append(SiteFactor(block.name, block.name, normal, block.transform))
    return [PackedFactor(statement, tuple(parts))]


def _blocks(guide: Any) -> tuple[Block, ...]:
    blocks, start = [], 0
    for name, site in guide.prototype_trace.iter_stochastic_nodes():
        shape = guide._unconstrained_shapes[name]
        transform = drop_identity(biject_to(site["fn"].support))
        blocks.append(Block(name, slice(start, start + shape.numel()), shape, transform))
        start += shape.numel()
    return tuple(blocks)


@read_factors.register
def _(guide: ReducedGuide, run: GuideRun) -> list[Factor]:
    """The factors of the guide that was reduced, with the reduced distributions in their statements."""
    inner, statements = guide.fitted_guide, guide.current_statements()
    if read_factors.dispatch(type(inner)) is _general:
        return _general(guide, run)
    factors = [(factor, statements.get(factor.statement)) for factor in read_factors(inner, run)]
    replaced = [factor if new is None else factor.with_statement(new) for factor, new in factors]
    # What is no longer of its factor's kind can still be drawn; a site put on a point has no density to go by.
    known = [factor for factor in replaced if factor is not None]
    covered = {name for factor in known for name in factor.sites}
    points = [(name, point) for name, point in statements.items() if is_point(point) and name in run.sites]
    return known + [SiteFactor(name, name, point) for name, point in points if name not in covered]
