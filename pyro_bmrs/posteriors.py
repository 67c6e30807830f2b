# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a fitted guide says: the priors of its model's latent sites, and the independent factors of its posterior."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial, singledispatch
from math import prod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoCallable,
    AutoDiagonalNormal,
    AutoGuide,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import _bound_partial
from torch import Tensor
from torch.distributions import Distribution, biject_to
from torch.distributions.constraints import Constraint

from .coordinates import Block, drop_identity, is_point, push_forward
from .dependencies import track, upstream_sites
from .distributions.parameters import map_parameters
from .errors import ReductionError
from .factors import Factor, JointNormalFactor, PackedFactor, SiteFactor
from .guides import DrawsGuide, ReducedGuide, packed_statement
from .priors import accepts, latent_nodes


class FittedGuide:
    """
    A fitted guide, read.

    :param guide: the guide, with a Laplace approximation carried out.
    :param model: the model, without what an autoguide wraps around it.
    :param args: the arguments that model and guide are run with.
    :param kwargs: likewise.
    """

    noun = "the guide"

    def __init__(self, guide: Any, model: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
        self.guide, self.model, self.args, self.kwargs = guide, model, args, kwargs

    @cached_property
    def traces(self) -> tuple[Any, Any]:
        """A trace of the guide, or of the values that an autoguide began with, and of the model upon its values."""
        return _run(self.guide, self.model, self.args, self.kwargs)

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The guide's independent factors, as far as their densities are known."""
        return tuple(read_factors(self.guide, self))

    @cached_property
    def factor_of(self) -> dict[str, Factor]:
        """The factor that determines each site whose density is known."""
        return {name: factor for factor in self.factors for name in factor.sites}

    @cached_property
    def latent(self) -> frozenset[str]:
        """All the model's latent sites."""
        return frozenset(latent_nodes(self.traces[1]))

    @cached_property
    def sites(self) -> frozenset[str]:
        """The model's latent sites that the guide draws."""
        return self.latent & frozenset(latent_nodes(self.traces[0]))

    def prior(self, name: str) -> Distribution:
        """The prior of a site, at the size of the whole data where the guide's posterior is."""
        site: Any = self.traces[1].nodes[name]
        plates = subsampled_plates(site)
        return site["fn"] if not plates or self.is_local(name) else _widen(name, site["fn"], plates)

    def is_local(self, name: str) -> bool:
        """Whether the guide knows the site on the plates' current subsample alone."""
        factor = self.factor_of.get(name)
        return isinstance(factor, SiteFactor) and factor.traced and self.scale(name) != 1.0

    def scale(self, name: str) -> float:
        """How many elements each element of a subsampled site stands for: plate size over subsample size."""
        return prod(size / subsample for _, subsample, size in subsampled_plates(self.traces[1].nodes[name]))

    def upstream(self, names: Collection[str]) -> dict[str, frozenset[str]]:
        """For each site, the other latent sites that its prior, or its posterior in a traced guide, depends on."""
        tracked = track(_replay(self.model, self.traces[0]), self.args, self.kwargs)
        latent = frozenset(latent_nodes(tracked))
        posterior = self.posterior_upstream(names)
        return {name: (sites | posterior[name]) & latent for name, sites in upstream_sites(tracked, names).items()}

    def posterior_upstream(self, names: Collection[str]) -> dict[str, frozenset[str]]:
        """For each site, the other sites that its posterior depends on, which happens in a traced guide."""
        found: dict[str, frozenset[str]] = dict.fromkeys(names, frozenset())
        traced = [name for name in names if getattr(self.factor_of.get(name), "traced", False)]
        if traced:
            found.update(upstream_sites(_track_guide(self.guide, self.args, self.kwargs), traced))
        return found


def read_guide(
    guide: Any, model: Callable[..., Any] | None = None, args: tuple = (), kwargs: Mapping[str, Any] | None = None
) -> FittedGuide:
    """
    Reads a fitted guide: its posterior, factor by factor, and the priors of the model that it was fitted to.

    :param guide: a Pyro autoguide, a GuideMessenger, or any callable with sample sites.
    :param model: the model, needed where the guide does not know it.
    :param args: arguments of the model and the guide; for autoguides those of the first fit by default.
    :param kwargs: likewise.
    :raises ReductionError: for a guide that is not fitted, or whose model or arguments are not known.
    """
    if not callable(guide):
        raise ReductionError(
            f"guide is a {type(guide).__name__}; give an autoguide, a GuideMessenger, a callable with sample sites, a "
            "finished MCMC run, or an ArviZ posterior with the dimensions chain and draw"
        )
    model = bare_model(getattr(guide, "model", None) if model is None else model)
    if model is None:
        raise ReductionError("a hand-written guide does not know its model; pass model=")
    _check_fitted(guide)
    if not args and not kwargs:
        args, kwargs = _default_arguments(guide)
    kwargs = dict(kwargs or {})
    if not accepts(model, args, kwargs):
        raise ReductionError(
            "the model cannot be called with the arguments given; pass those that SVI was run with as args=, kwargs="
        )
    if isinstance(guide, AutoLaplaceApproximation):
        guide = guide.laplace_approximation(*args, **kwargs)
    return FittedGuide(guide, model, args, kwargs)


def _default_arguments(guide: Any) -> tuple[tuple, dict[str, Any]]:
    if isinstance(guide, (ReducedGuide, DrawsGuide)):
        return guide.default_arguments
    if isinstance(guide, AutoGuide) and guide.prototype_trace is not None:
        first = guide.prototype_trace.nodes["_INPUT"]
        return first["args"], first["kwargs"]
    return (), {}


def bare_model(model: Any) -> Any:
    """The user's model, out of the initialisation that autoguides wrap around it."""
    while isinstance(model, _bound_partial) and isinstance(model.func, partial):
        handler = model.func.args[0]
        if not isinstance(handler, InitMessenger):
            break
        model = model.func.args[1]
    return model


def _check_fitted(guide: Any) -> None:
    parts = list(guide) if isinstance(guide, AutoGuideList) else []
    unfitted = isinstance(guide, AutoGuide) and not isinstance(guide, AutoCallable) and guide.prototype_trace is None
    unfitted |= isinstance(guide, AutoNormalMessenger) and not hasattr(guide, "locs")
    if unfitted:
        raise ReductionError(f"{type(guide).__name__} has not been fitted; run SVI with it first")
    for part in parts:
        _check_fitted(part)


def _run(
    guide: Any, model: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
) -> tuple[poutine.Trace, poutine.Trace]:
    # A structured guide empties its prototype once it has read it.
    if isinstance(guide, AutoGuide) and guide.prototype_trace is not None and not isinstance(guide, AutoStructured):
        guide_trace = guide.prototype_trace
    else:
        guide_trace = _trace_guide(guide, args, kwargs)
        if isinstance(guide, GuideMessenger):
            return guide_trace, guide.get_traces()[0]
    return guide_trace, poutine.trace(_replay(model, guide_trace)).get_trace(*args, **kwargs)


def _replay(model: Callable[..., Any], guide_trace: Any) -> Callable[..., Any]:
    """The model at the guide's values, but for those of one subsample, where the model may take another."""
    values = guide_trace.copy()
    for name, site in latent_nodes(guide_trace).items():
        if subsampled_plates(site):
            values.remove_node(name)
    return poutine.replay(model, trace=values)


def _trace_guide(guide: Any, args: tuple, kwargs: dict[str, Any]) -> poutine.Trace:
    """A trace of a guide; a function whose parameters come to be only now has not been fitted."""
    store = pyro.get_param_store()
    before = set(store.keys())
    trace = poutine.trace(guide).get_trace(*args, **kwargs)
    created = sorted(set(store.keys()) - before)
    if created and not isinstance(guide, torch.nn.Module):
        for name in created:
            del store[name]
        raise ReductionError(
            f"the guide has not been fitted: its parameters {created} did not exist; run SVI with it first"
        )
    return guide.get_traces()[1] if isinstance(guide, GuideMessenger) else trace


def _track_guide(guide: Any, args: tuple, kwargs: dict[str, Any]) -> poutine.Trace:
    tracked = track(guide, args, kwargs)
    return guide.get_traces()[1] if isinstance(guide, GuideMessenger) else tracked


def subsampled_plates(site: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """The subsampled plates around a site: batch dimension, subsample size and size of each."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    return [(f.dim, f.size, f.full_size) for f in frames if f.full_size and f.full_size != f.size]


def _widen(name: str, prior: Distribution, plates: Sequence[tuple[int, int, int]]) -> Distribution:
    """A prior seen on a subsample, at the size of the whole plate: it must be the same for all elements seen."""

    def widen(path: str, value: Tensor, constraint: Constraint, event_dim: int) -> Tensor:
        for plate_dim, subsample_size, size in plates:
            dim = plate_dim - event_dim
            if value.dim() < -dim or value.shape[dim] != subsample_size:
                continue
            if not (value == value.narrow(dim, 0, 1)).all():
                raise ReductionError(
                    f"the prior of site {name!r} differs between the elements of a subsampled plate, and only those of "
                    "one subsample are seen; pass args= for which the model subsamples nothing"
                )
            value = value.narrow(dim, 0, 1).expand(value.shape[:dim] + (size,) + value.shape[value.dim() + dim + 1 :])
        return value

    return map_parameters(prior, widen)


def _prototype(guide: AutoGuide) -> Any:
    return guide.prototype_trace


@singledispatch
def read_factors(guide: Any, fitted: FittedGuide) -> list[Factor]:
    """The independent factors of a guide; this, the general case, reads them off a run of it."""
    trace = fitted.traces[0] if guide is fitted.guide and not isinstance(guide, AutoGuide) else None
    trace = trace or _trace_guide(guide, fitted.args, fitted.kwargs)
    latent = latent_nodes(trace)
    auxiliary = any(site["infer"].get("is_auxiliary") for site in latent.values())
    return [
        SiteFactor(name, name, site["fn"], traced=True)
        for name, site in latent.items()
        # A site set by an auxiliary variable can be drawn, but its own density is not at hand.
        if not (auxiliary and is_point(site["fn"])) and not site["infer"].get("is_auxiliary")
    ]


@read_factors.register
def _(guide: AutoGuideList, fitted: FittedGuide) -> list[Factor]:
    return [factor for part in guide for factor in read_factors(part, fitted)]


@read_factors.register
def _(guide: AutoNormal, fitted: FittedGuide) -> list[Factor]:
    factors: list[Factor] = []
    for name, site in _prototype(guide).iter_stochastic_nodes():
        loc, scale = guide._get_loc_and_scale(name)
        normal = dist.Normal(loc, scale).to_event(guide._event_dims[name])
        transform = drop_identity(biject_to(site["fn"].support))
        factors.append(SiteFactor(name, f"{name}_unconstrained", normal, transform))
    return factors


@read_factors.register
def _(guide: AutoNormalMessenger, fitted: FittedGuide) -> list[Factor]:
    if type(guide).get_posterior is not AutoNormalMessenger.get_posterior:
        return read_factors.dispatch(object)(guide, fitted)
    factors: list[Factor] = []
    for name, site in latent_nodes(fitted.traces[1]).items():
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
def _(guide: AutoDiagonalNormal, fitted: FittedGuide) -> list[Factor]:
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
def _(guide: AutoGuide, fitted: FittedGuide) -> list[Factor]:
    return [JointNormalFactor(packed_statement(guide), guide.get_posterior(), tuple(_blocks(guide)))]


@read_factors.register
def _(guide: ReducedGuide, fitted: FittedGuide) -> list[Factor]:
    """The factors of the guide that was reduced, with the reduced distributions in their statements."""
    inner, statements = guide.fitted_guide, guide.current_statements()
    if not isinstance(inner, (AutoGuide, AutoNormalMessenger)):
        return read_factors.dispatch(object)(guide, fitted)
    factors = [(factor, statements.get(factor.statement)) for factor in read_factors(inner, fitted)]
    replaced = [factor if new is None else factor.with_statement(new) for factor, new in factors]
    # What is no longer of its factor's kind can still be drawn; a site put on a point has no density to go by.
    known = [factor for factor in replaced if factor is not None]
    covered = {name for factor in known for name in factor.sites}
    points = [(name, point) for name, point in statements.items() if is_point(point) and name in fitted.sites]
    return known + [SiteFactor(name, name, point) for name, point in points if name not in covered]
