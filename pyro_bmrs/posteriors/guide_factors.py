# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The independent factors of a guide, by the type of the guide."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import pyro.distributions as dist
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuide,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from torch.distributions import biject_to

from pyro_bmrs.posteriors.factors import Factor, JointNormalFactor, PackedFactor, SiteFactor
from pyro_bmrs.posteriors.reduced_guide import ReducedGuide, packed_statement
from pyro_bmrs.posteriors.traces import GuideRun, latent_nodes, trace_guide
from pyro_bmrs.structure.coordinates import Block, drop_identity, push_forward
from pyro_bmrs.structure.layers import is_point


def _prototype(guide: AutoGuide) -> Any:
    return guide.prototype_trace


@singledispatch
def read_factors(guide: Any, run: GuideRun) -> list[Factor]:
    """The independent factors of a guide; this, the general case, reads them off a run of it."""
    trace = run.traces[0] if guide is run.guide and not isinstance(guide, AutoGuide) else None
    trace = trace or trace_guide(guide, run.args, run.kwargs)
    latent = latent_nodes(trace)
    auxiliary = any(site["infer"].get("is_auxiliary") for site in latent.values())
    return [
        SiteFactor(name, name, site["fn"], traced=True)
        for name, site in latent.items()
        # A site set by an auxiliary variable can be drawn, but its own density is not at hand.
        if not (auxiliary and is_point(site["fn"])) and not site["infer"].get("is_auxiliary")
    ]


@read_factors.register
def _(guide: AutoGuideList, run: GuideRun) -> list[Factor]:
    return [factor for part in guide for factor in read_factors(part, run)]


@read_factors.register
def _(guide: AutoNormal, run: GuideRun) -> list[Factor]:
    factors: list[Factor] = []
    for name, site in _prototype(guide).iter_stochastic_nodes():
        loc, scale = guide._get_loc_and_scale(name)
        normal = dist.Normal(loc, scale).to_event(guide._event_dims[name])
        transform = drop_identity(biject_to(site["fn"].support))
        factors.append(SiteFactor(name, f"{name}_unconstrained", normal, transform))
    return factors


@read_factors.register
def _(guide: AutoNormalMessenger, run: GuideRun) -> list[Factor]:
    if type(guide).get_posterior is not AutoNormalMessenger.get_posterior:
        return read_factors.dispatch(object)(guide, run)
    factors: list[Factor] = []
    for name, site in latent_nodes(run.traces[1]).items():
        transform = biject_to(site["fn"].support)
        normal = dist.Normal(*guide._get_params(name, site["fn"])).to_event(transform.domain.event_dim)
        factors.append(SiteFactor(name, name, push_forward(normal, drop_identity(transform))))
    return factors


def _blocks(guide: AutoGuide) -> list[Block]:
    blocks, start = [], 0
    for name, site in _prototype(guide).iter_stochastic_nodes():
        shape = guide._unconstrained_shapes[name]
        transform = drop_identity(biject_to(site["fn"].support))
        blocks.append(Block(name, slice(start, start + shape.numel()), shape, transform))
        start += shape.numel()
    return blocks


@read_factors.register
def _(guide: AutoDiagonalNormal, run: GuideRun) -> list[Factor]:
    parts = []
    loc, scale = guide._loc_scale()
    for block in _blocks(guide):
        site = _prototype(guide).nodes[block.name]
        event_dim = site["fn"].event_dim + len(block.shape) - site["value"].dim()
        normal = dist.Normal(block.take(loc), block.take(scale)).to_event(event_dim)
        parts.append(SiteFactor(block.name, block.name, normal, block.transform))
    return [PackedFactor(packed_statement(guide), tuple(parts))]


@read_factors.register(AutoMultivariateNormal)
@read_factors.register(AutoLowRankMultivariateNormal)
def _(guide: AutoGuide, run: GuideRun) -> list[Factor]:
    return [JointNormalFactor(packed_statement(guide), guide.get_posterior(), tuple(_blocks(guide)))]


@read_factors.register
def _(guide: ReducedGuide, run: GuideRun) -> list[Factor]:
    """The factors of the guide that was reduced, with the reduced distributions in their statements."""
    inner, statements = guide.fitted_guide, guide.current_statements()
    if not isinstance(inner, (AutoGuide, AutoNormalMessenger)):
        return read_factors.dispatch(object)(guide, run)
    factors = [(factor, statements.get(factor.statement)) for factor in read_factors(inner, run)]
    replaced = [factor if new is None else factor.with_statement(new) for factor, new in factors]
    # What is no longer of its factor's kind can still be drawn; a site put on a point has no density to go by.
    known = [factor for factor in replaced if factor is not None]
    covered = {name for factor in known for name in factor.sites}
    points = [(name, point) for name, point in statements.items() if is_point(point) and name in run.sites]
    return known + [SiteFactor(name, name, point) for name, point in points if name not in covered]
