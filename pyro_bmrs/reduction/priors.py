# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduced priors as the user states them, and the model that carries them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.errors import ReductionError, name_of_unknown
from pyro_bmrs.posteriors.traces import accepts, latent_nodes, track, upstream_sites
from pyro_bmrs.structure.coordinates import elements
from pyro_bmrs.structure.copies import with_own_tensors
from pyro_bmrs.structure.layers import layers, peel, to_event
from pyro_bmrs.structure.parameters import map_parameters, tensor_of

ReducedPriorLike: TypeAlias = Distribution | Mapping[str, Distribution] | Callable[..., Any]


def describe_shape(distribution: Distribution) -> str:
    """The shapes of a distribution, in words fit for an error message."""
    return f"batch shape {tuple(distribution.batch_shape)}, event shape {tuple(distribution.event_shape)}"


def match_prior(name: str, reduced_prior: Distribution, prior: Distribution) -> Distribution:
    """
    A reduced prior brought to the batch and event dimensions of the prior whose place it takes.

    A scalar distribution serves a site of any shape. Where elements are independent, the reduced prior is expanded, and
    its dimensions are declared dependent (``.to_event``) as the prior's are, however they were.

    Where the prior is masked, so is the reduced prior.

    :raises ReductionError: where the shapes do not fit, where one of the two is discrete and the other continuous, for
        a reduced prior with a NaN in it, and for a prior that is improper, or masked in all elements, which comes to
        the same.
    """
    _check_proper(name, prior)
    _check_numbers(name, reduced_prior)
    _check_kind(name, reduced_prior, prior)
    fitted = reduced_prior if _has_shapes_of(reduced_prior, prior) else _expanded(reduced_prior, prior)
    if fitted is None:
        raise ReductionError(
            f"the reduced prior of site {name!r} has {describe_shape(reduced_prior)}, which does not broadcast to the "
            f"prior's {describe_shape(prior)}; give it a shape that does, or a scalar distribution for all elements"
        )
    return _masked_like(name, _at_home(fitted, prior), prior)


def _has_shapes_of(one: Distribution, other: Distribution) -> bool:
    return one.batch_shape == other.batch_shape and one.event_shape == other.event_shape


def _expanded(reduced_prior: Distribution, prior: Distribution) -> Distribution | None:
    """
    A reduced prior expanded to the shapes of a prior; None where they do not fit.

    Which dimensions are declared dependent is a spelling where elements are independent.
    """
    event_dims = len(prior.event_shape)
    parted = elements(reduced_prior)
    dims = event_dims if parted is not None else event_dims - len(reduced_prior.event_shape)
    bare = reduced_prior if parted is None else parted
    shape = prior.batch_shape + prior.event_shape[: max(dims, 0)]
    if dims < 0 or bare.event_shape != prior.event_shape[dims:]:
        return None
    try:
        fits = torch.broadcast_shapes(bare.batch_shape, shape) == shape
    except RuntimeError:
        fits = False
    return to_event(bare.expand(shape), dims) if fits else None


def _check_proper(name: str, prior: Distribution) -> None:
    peeled = peel(prior)
    if isinstance(peeled.core, dist.ImproperUniform):
        raise ReductionError(
            f"the prior of site {name!r} is improper, so that evidence under it is arbitrary; give the model a proper "
            "prior there"
        )
    if peeled.mask is not True and not torch.as_tensor(peeled.mask).any():
        raise ReductionError(
            f"the prior of site {name!r} is switched off (masked in all elements), so that it is improper and evidence "
            "under it is arbitrary; take the mask off, or reduce other sites"
        )


def _check_numbers(name: str, reduced_prior: Distribution) -> None:
    # Where nothing is validated many values may be looked at at once, and none can be read.
    if not Distribution._validate_args:
        return
    for layer in layers(reduced_prior):
        for parameter in layer.arg_constraints:
            value = vars(layer).get(parameter)
            if isinstance(value, Tensor) and (wrong := value.isnan()).any():
                raise ReductionError(
                    f"the reduced prior of site {name!r} has a NaN in its {parameter}, at {int(wrong.sum())} of "
                    f"{wrong.numel()} elements; give a number"
                )


def _check_kind(name: str, reduced_prior: Distribution, prior: Distribution) -> None:
    discrete = _is_discrete(prior)
    if discrete is not None and _is_discrete(reduced_prior) == (not discrete):
        one, other = ("continuous", "discrete") if discrete else ("discrete", "continuous")
        raise ReductionError(
            f"the reduced prior of site {name!r} is {one} and the site is {other}, so that neither has mass where the "
            f"other has; give a {other} distribution, or dist.Delta(value) for a point"
        )


def _is_discrete(distribution: Distribution) -> bool | None:
    """Whether values are discrete; None for a point, which may be one of either, and where it is not known."""
    core: Any = peel(distribution).core
    if isinstance(core, dist.MaskedMixture):
        sides = {_is_discrete(side) for side in (core.component0, core.component1)} - {None}
        return sides.pop() if len(sides) == 1 else None
    if isinstance(core, (dist.Delta, dist.Empirical)):
        return None
    try:
        return bool(core.support.is_discrete)
    except NotImplementedError:
        return None


def _masked_like(name: str, reduced_prior: Distribution, prior: Distribution) -> Distribution:
    """The reduced prior, masked where the prior is."""
    peeled = peel(prior)
    if peeled.mask is True or peel(reduced_prior).mask is not True:
        return reduced_prior
    mask = torch.as_tensor(peeled.mask).expand(peeled.shape)
    parted: Any = elements(reduced_prior) if peeled.event_dims == len(prior.event_shape) else None
    if parted is not None:
        return to_event(parted.mask(mask), len(prior.event_shape))
    rows = mask.reshape(prior.batch_shape + (-1,))
    if not torch.equal(rows.any(-1), rows.all(-1)):
        raise ReductionError(
            f"elements of site {name!r} are masked within an event over which the reduced prior is joint; give one "
            "that is independent between elements"
        )
    whole: Any = reduced_prior
    masked: Distribution = whole.mask(rows.any(-1))
    return masked


def _at_home(reduced_prior: Distribution, prior: Distribution) -> Distribution:
    """The reduced prior in the dtype and on the device of the prior, as a number in a formula would be."""
    own, like = tensor_of(reduced_prior), tensor_of(prior)
    if own is None or like is None or (own.dtype == like.dtype and own.device == like.device):
        return reduced_prior

    def move(path: str, value: Tensor, *_: Any) -> Tensor:
        return value.to(like) if value.is_floating_point() else value.to(like.device)

    return map_parameters(reduced_prior, move)


class ReducedPriors(Messenger):
    """
    The reduced priors of a model, and the effect that puts them in place.

    As an effect handler it replaces the prior at each reduced site, at the shapes that the site has as the model runs.

    :param upstream: for each reduced site, the sites that its reduced prior depends on.
    :param at: the reduced prior of a site, given the values of the sites drawn before it.
    """

    def __init__(
        self, upstream: Mapping[str, frozenset[str]], at: Callable[[str, Mapping[str, Tensor]], Distribution]
    ) -> None:
        super().__init__()
        self.upstream = upstream
        self.sites = frozenset(upstream)
        self.at = at
        self._values: dict[str, Tensor] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(sorted(self.sites))})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the values of a run, which are none of theirs."""
        return ReducedPriors, (self.upstream, self.at)

    def __deepcopy__(self, memo: dict[int, Any]) -> ReducedPriors:
        """One that runs beside this one, of the same priors."""
        return ReducedPriors(self.upstream, self.at)

    def __enter__(self) -> ReducedPriors:
        self._values = {}
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites and not msg["is_observed"] and not site_is_subsample(msg):
            msg["fn"] = match_prior(msg["name"], self.at(msg["name"], self._values), msg["fn"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            self._values[msg["name"]] = msg["value"]


def read_reduced_priors(
    reduced_prior: ReducedPriorLike, latent: Collection[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ReducedPriors:
    """
    The reduced priors that a user states: a distribution, a mapping from site to distribution, or a Pyro program.

    :param reduced_prior: a distribution where there is one latent site, a mapping, or a Pyro program whose latent
        sample sites are the reduced priors (called with the model's arguments where it takes any).
    :param latent: names of the model's latent sites.
    :raises ReductionError: for an ambiguous or unknown site, or anything that is no distribution.
    """
    if isinstance(reduced_prior, Distribution):
        if len(latent) != 1:
            raise ReductionError(
                f"a single reduced prior fits a model with one latent site, and this one has {sorted(latent)}; "
                "give a mapping from site name to reduced prior"
            )
        return read_reduced_priors({next(iter(latent)): reduced_prior}, latent, args, kwargs)
    if isinstance(reduced_prior, Mapping):
        if not reduced_prior:
            raise ReductionError("the mapping of reduced priors is empty; name at least one site")
        for name, distribution in reduced_prior.items():
            if name not in latent:
                raise name_of_unknown(name, latent, "the model")
            if not isinstance(distribution, Distribution):
                raise ReductionError(
                    f"the reduced prior of site {name!r} is a {type(distribution).__name__}; give a distribution "
                    "(dist.Delta(value) fixes the site at a value)"
                )
        # What becomes of the tensors that these were made of is no matter of the reduction.
        fixed = {name: with_own_tensors(distribution) for name, distribution in reduced_prior.items()}
        return ReducedPriors(dict.fromkeys(fixed, frozenset()), _Fixed(fixed))
    if callable(reduced_prior):
        return _read_program(reduced_prior, latent, args, kwargs)
    raise ReductionError(
        f"reduced_prior is a {type(reduced_prior).__name__}; give a distribution, a mapping from site name to "
        "distribution, or a Pyro program that samples the reduced sites"
    )


@dataclass(frozen=True)
class _Fixed:
    """Reduced priors that depend on nothing."""

    priors: Mapping[str, Distribution]

    def __call__(self, name: str, values: Mapping[str, Tensor]) -> Distribution:
        return self.priors[name]


@dataclass(frozen=True)
class _Program:
    """Reduced priors that a program samples, with the arguments that it is called with."""

    program: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def trace(self, values: Mapping[str, Tensor]) -> Any:
        """A run with given values in some sites."""
        # The program's plates and random draws are its own: nothing of them reaches the handlers of a running model.
        conditioned = poutine.condition(self.program, data=dict(values))
        with poutine.block(), _no_plates():
            return poutine.trace(conditioned).get_trace(*self.args, **self.kwargs)

    def __call__(self, name: str, values: Mapping[str, Tensor]) -> Distribution:
        prior: Distribution = self.trace(values).nodes[name]["fn"]
        return prior


def _read_program(
    program: Callable[..., Any], latent: Collection[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ReducedPriors:
    if not accepts(program, args, kwargs):
        args, kwargs = (), {}
    stated = _Program(program, args, kwargs)
    sites = latent_nodes(stated.trace({}))
    if not sites:
        raise ReductionError("the reduced prior program has no latent sample site; sample each site to be reduced")
    for name in sites:
        if name not in latent:
            raise name_of_unknown(name, latent, "the model")
    return ReducedPriors(upstream_sites(track(program, args, kwargs), sites), stated)


@contextmanager
def _no_plates() -> Iterator[None]:
    """Lets a program open plates of the names and dimensions that the model around it has open."""
    stack, _DIM_ALLOCATOR._stack = _DIM_ALLOCATOR._stack, []
    try:
        yield
    finally:
        _DIM_ALLOCATOR._stack = stack


def reduced_model(model: Callable[..., Any], priors: ReducedPriors) -> Callable[..., Any]:
    """The model with the reduced priors in place of its own: a Pyro program as the model is."""
    return priors(model)
