# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The joint density of a model's data and latent sites, as a function on a plain vector space.

Each latent site goes to unconstrained coordinates by a bijection, whose Jacobian is counted. Coordinates that nothing
is integrated over (of a point prior, of masked elements) are left out. Many points are evaluated at once, by
:func:`torch.func.vmap`, where the model's code allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.integration.coordinates import Place, fixed_elements, is_standardisable, site_transform
from pyro_bmrs.integration.enumeration import SumProduct, enumerated
from pyro_bmrs.posteriors.traces import latent_nodes, subsampled_plates, track, upstream_sites
from pyro_bmrs.structure.layers import is_point
from pyro_bmrs.structure.vectorised import MOST_ELEMENTS, Vectorised, largest_tensor


class LogJoint:
    """
    The log density of a model's data and latent sites at points of an unconstrained space.

    Sites with finitely many values are summed out.

    :param model: the model.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    :param example: values of latent sites to look at the model at first; by default it draws them from its priors.
    :param standardised: whether the coordinates of sites whose prior has a location or a scale are relative to these.
    :raises ReductionError: for a model without a density at hand: one that draws subsamples, or latent sites with
        infinitely many discrete values.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> def model():
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     pyro.sample("y", dist.Normal(0.0, scale), obs=torch.tensor(1.0))
        >>> log_joint = LogJoint(model)
        >>> log_joint.dim, log_joint(torch.tensor([[0.0], [0.5]]))
        (1, tensor([-2.1447, -2.6878]))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        example: Mapping[str, Tensor] | None = None,
        standardised: bool = False,
    ) -> None:
        self.model, self._example, self._seen = model, dict(example or {}), _Standing(example or {})(model)
        self.arguments = args, dict(kwargs or {})
        self._args, self._kwargs = self.arguments
        self.standardised = standardised
        with _quiet():
            trace = poutine.trace(self._seen).get_trace(*self._args, **self._kwargs)
        nodes: dict[str, Any] = dict(trace.nodes)
        sites = latent_nodes(trace)
        _check(trace)
        discrete = [name for name, site in sites.items() if site["fn"].support.is_discrete]
        self.sites = [name for name in sites if name not in discrete]
        self.places: dict[str, Place] = {}
        self.dim = 0
        self._like: Tensor | None = None
        for name in self.sites:
            if not is_point(sites[name]["fn"]):
                self._add(name, sites[name])
        # One for each function: what cannot be done at once with one of them can be with the others.
        self._vectorised: dict[Any, Vectorised] = {}
        self._model = model
        self._total: Callable[[poutine.Trace], Tensor] = _sum_of_sites
        if discrete:
            nesting = _nesting(nodes)
            self._model = enumerated(model, nesting)
            with _quiet(), _Placing(self.places, torch.zeros(self.dim, dtype=self.dtype), standardised):
                whole = poutine.trace(self._model).get_trace(*self._args, **self._kwargs)
            self._total = SumProduct(whole, nesting).log_prob

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled is what it was made of: the model, by which it is made anew."""
        return _made_anew, (self.model, self._args, self._kwargs, self._example, self.standardised)

    def __deepcopy__(self, memo: dict[int, Any]) -> LogJoint:
        """Itself: nothing changes it, and the model that it knows is the user's."""
        return self

    def _add(self, name: str, site: Any) -> None:
        transform, fixed = site_transform(site["fn"], standardised=self.standardised), fixed_elements(site)
        shape = transform.inv(site["value"]).shape
        if fixed.any() and (transform.domain.event_dim or transform.codomain.event_dim):
            raise ReductionError(
                f"site {name!r} has elements that are fixed or masked beside others that depend on them"
            )
        free = None if not fixed.any() else ~fixed.expand(shape)
        size = shape.numel() if free is None else int(free.sum())
        self.places[name] = Place(slice(self.dim, self.dim + size), shape, free)
        self.dim += size
        if self._like is None:
            self._like = site["value"]

    @cached_property
    def has_hierarchy(self) -> bool:
        """Whether the location or scale of a site's prior depends on another site, so that standardising it matters."""
        with _quiet():
            tracked = track(self._seen, self._args, self._kwargs)
            upstream = upstream_sites(tracked, list(self.places))
        sites = latent_nodes(tracked)
        return any(is_standardisable(sites[name]["fn"]) and upstream[name] - {name} for name in self.places)

    @property
    def is_vectorised(self) -> bool:
        """Whether many points are evaluated at once: as long as the model's code has not failed so."""
        return self._at not in self._vectorised or self._vectorised[self._at].at_once

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model is evaluated."""
        return torch.get_default_dtype() if self._like is None else self._like.dtype

    def __call__(self, points: Tensor, *, progress: bool = False) -> Tensor:
        """
        The log density, in nats, with the Jacobian of the coordinates.

        :param points: shape ``(num_points, dim)``.
        :param progress: whether to show a progress bar where points are evaluated one by one.
        :return: shape ``(num_points,)``; minus infinity where the density is 0 or is not a number.
        """
        values = self._map(self._at, points.to(self.dtype), progress).to(points.dtype)
        return torch.where(values.isnan(), -torch.inf, values)

    def unknown_share(self, points: Tensor) -> float:
        """The share of points, of shape ``(num_points, dim)``, at which the density is not a number."""
        return float(self._map(self._at, points.to(self.dtype), False).isnan().double().mean())

    @cached_property
    def has_derivatives(self) -> bool:
        """Whether the model's code gives second derivatives, at many points at once."""
        try:
            self.derivatives(torch.zeros(2, self.dim, dtype=self.dtype))
        # Code may fail in many ways here: an operation without a derivative, without a rule for many points, .numpy().
        except Exception:
            return False
        return self._vectorised[self._slope_and_bend].at_once

    def gradient(self, points: Tensor) -> Tensor:
        """The first derivatives of the log density at points, of their shape ``(num_points, dim)``."""
        gradient: Tensor = self._map(self._slope, points.to(self.dtype), False)
        return gradient.to(points.dtype)

    def derivatives(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """
        The first and second derivatives of the log density.

        :param points: shape ``(num_points, dim)``.
        :return: shapes ``(num_points, dim)`` and ``(num_points, dim, dim)``.
        """
        gradient, hessian = self._map(self._slope_and_bend, points.to(self.dtype), False)
        hessian = hessian.to(points.dtype)
        return gradient.to(points.dtype), (hessian + hessian.mT) / 2

    def prior_points(self, num_points: int) -> Tensor:
        """
        Draws from the prior of the sites, shape ``(num_points, dim)``, from torch's global generator.

        A site whose prior cannot be drawn from stays at its example.
        """
        points: Tensor = self._map(self._prior_point, torch.zeros(num_points), False)
        return points

    def coordinates(self, values: Mapping[str, Tensor], *, progress: bool = False) -> Tensor:
        """
        The points at which sites have given values.

        :param values: of each latent site that has coordinates, the draws along the first dimension.
        :return: shape ``(num_draws, dim)``.
        """
        mine = {name: values[name] for name in self.places}
        if not mine:
            return torch.zeros(1, 0, dtype=self.dtype)
        coordinates: Tensor = self._map(self._coordinates_of, mine, progress)
        return coordinates

    def values(self, points: Tensor, *, progress: bool = False) -> dict[str, Tensor]:
        """
        The values of the sites at given points.

        :param points: shape ``(num_points, dim)``.
        :return: for each latent site but the discrete, its values along the first dimension.
        """
        values: dict[str, Tensor] = self._map(self._values_at, points.to(self.dtype), progress)
        return values

    def _at(self, point: Tensor) -> Tensor:
        with _Placing(self.places, point, self.standardised) as placing:
            trace = poutine.trace(self._model).get_trace(*self._args, **self._kwargs)
        return self._total(trace) + placing.log_jacobian

    def _slope(self, point: Tensor) -> Tensor:
        slope: Tensor = torch.func.grad(self._at)(point)
        return slope

    def _slope_and_bend(self, point: Tensor) -> tuple[Tensor, Tensor]:
        vjp: Any = torch.func.vjp
        gradient, along = vjp(self._slope, point)
        axes = torch.eye(self.dim, dtype=point.dtype, device=point.device)
        # So many rows of the Hessian at once that one point alone fits.
        (hessian,) = torch.func.vmap(along, chunk_size=self._rows_at_once)(axes)
        return gradient, hessian

    @cached_property
    def _rows_at_once(self) -> int:
        largest = largest_tensor(lambda: self._slope(torch.zeros(self.dim, dtype=self.dtype)))
        return min(max(1, MOST_ELEMENTS // largest), self.dim)

    def _prior_point(self, _: Tensor) -> Tensor:
        model = _Drawing(self._example)(self.model)
        sites = latent_nodes(poutine.trace(model).get_trace(*self._args, **self._kwargs))
        return self._coordinates_of({name: sites[name]["value"] for name in self.places})

    def _values_at(self, point: Tensor) -> dict[str, Tensor]:
        with _Placing(self.places, point, self.standardised):
            trace = poutine.trace(self._model).get_trace(*self._args, **self._kwargs)
        sites = latent_nodes(trace)
        return {name: sites[name]["value"] for name in self.sites}

    def _coordinates_of(self, values: Mapping[str, Tensor]) -> Tensor:
        with _Reading(self.places, values, self.standardised) as reading:
            self._model(*self._args, **self._kwargs)
        return torch.cat([reading.found[name] for name in self.places])

    def _map(self, function: Callable[[Any], Any], inputs: Any, progress: bool) -> Any:
        """A function of one point, of many: at once where the model's code allows it, else one by one."""
        vectorised = self._vectorised.setdefault(function, Vectorised("evaluating the model"))
        try:
            with _quiet():
                return vectorised(function, inputs, progress=progress)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ReductionError(
                f"the model cannot be evaluated at all draws around the posterior ({error}); add a little to the "
                "diagonal of the matrix that it factors, or give its sites priors that keep it positive definite"
            ) from error


def _made_anew(model: Any, args: Any, kwargs: Any, example: Mapping[str, Tensor], standardised: bool) -> LogJoint:
    return LogJoint(model, args, kwargs, example=example, standardised=standardised)


@contextmanager
def _quiet() -> Iterator[None]:
    """Runs of a model that nobody outside hears of, and that check nothing: checks read values."""
    with torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
        yield


def _sum_of_sites(trace: poutine.Trace) -> Tensor:
    total: Tensor = trace.log_prob_sum()  # type: ignore[assignment]
    return total


def _nesting(nodes: Mapping[str, Any]) -> int:
    """How deep a model's plates are nested."""
    sites = [site for site in nodes.values() if site["type"] == "sample"]
    return max((-frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.vectorized), default=0)


def _check(trace: poutine.Trace) -> None:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site) and subsampled_plates(site):
            raise ReductionError(
                f"the model draws a subsample around site {name!r}, so that its density changes from run to run; pass "
                "args= for which it subsamples nothing"
            )
    for name, site in latent_nodes(trace).items():
        if site["fn"].support.is_discrete and not site["fn"].has_enumerate_support:
            raise ReductionError(f"site {name!r} has infinitely many discrete values, which cannot be summed over")


class _Standing(Messenger):
    """Given values in the place of a model's own draws, but for points."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"] and not is_point(msg["fn"]):
            msg["value"] = self.values[msg["name"]]


class _Drawing(_Standing):
    """Given values in the place of those that a model's own priors cannot draw."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.values or msg["is_observed"]:
            return
        try:
            msg["value"] = msg["fn"].sample()
        except NotImplementedError:
            super()._pyro_sample(msg)


class _Placing(Messenger):
    """Values in the place of a model's own draws, from coordinates; collects the logarithm of their Jacobian."""

    def __init__(self, places: Mapping[str, Place], point: Tensor, standardised: bool) -> None:
        super().__init__()
        self.places, self.point, self.standardised = places, point, standardised
        self.log_jacobian: Tensor | float = 0.0

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        place = self.places.get(msg["name"])
        if place is None:
            if is_point(msg["fn"]):
                msg["value"] = msg["fn"].sample()
            return
        transform = site_transform(msg["fn"], standardised=self.standardised)
        own = self.point[place.positions]
        if place.free is None:
            unconstrained = own.reshape(place.shape)
            value = transform(unconstrained)
            self.log_jacobian = self.log_jacobian + transform.log_abs_det_jacobian(unconstrained, value).sum()
        else:
            order = (place.free.flatten().cumsum(0) - 1).clamp(min=0)
            unconstrained = own[order].reshape(place.shape)
            placed = transform(unconstrained)
            jacobian = transform.log_abs_det_jacobian(unconstrained, placed)
            value = torch.where(place.free, placed, msg["fn"].sample())
            self.log_jacobian = self.log_jacobian + torch.where(place.free, jacobian, 0.0).sum()
        msg["value"] = value
        msg["done"] = True


class _Reading(Messenger):
    """Given values in the place of a model's own draws; collects their free coordinates."""

    def __init__(self, places: Mapping[str, Place], values: Mapping[str, Tensor], standardised: bool) -> None:
        super().__init__()
        self.places, self.values, self.standardised = places, values, standardised
        self.found: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        place = self.places.get(msg["name"])
        if place is None or msg["is_observed"]:
            return
        value = self.values[msg["name"]]
        unconstrained = site_transform(msg["fn"], standardised=self.standardised).inv(value).flatten()
        self.found[msg["name"]] = unconstrained if place.free is None else unconstrained[place.free.flatten()]
        msg["value"] = value
        msg["done"] = True
