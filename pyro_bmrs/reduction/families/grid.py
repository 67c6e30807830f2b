# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Grids of priors of a site: a parameter of its prior over a range, a family of its own, or priors by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.posteriors.draws import log_density
from pyro_bmrs.reduction.priors import match_prior
from pyro_bmrs.structure.parameters import map_parameters, tensor_of

FamilyLike: TypeAlias = str | Callable[[Tensor], Distribution] | Mapping[str, Distribution]

NUM_PRIORS = 100
# How far a parameter goes by default: by this factor either way, or, a location, by so many standard deviations.
_FACTOR, _DEVIATIONS = 10.0, 3.0


@dataclass(frozen=True)
class Grid:
    """
    Priors of a site, along a number that they depend on, or by name.

    :param site: the site.
    :param prior: its prior in the model that was fitted.
    :param label: what the number is, or that they are priors.
    :param values: the numbers, shape ``(num_priors,)``; None where the priors have names.
    :param named: the priors by name; empty where they have numbers.
    :param family: the prior for a number, or for many along the first dimension.
    :param fitted_value: the number of the model's own prior; None where it has none.
    """

    site: str
    prior: Distribution
    label: str
    values: Tensor | None
    named: Mapping[str, Distribution]
    family: Callable[[Tensor], Distribution] | None = None
    fitted_value: float | None = None

    @property
    def places(self) -> list[Any]:
        """What each of the priors is told by: a number or a name."""
        return list(self.named) if self.values is None else self.values.tolist()

    def frozen(self) -> Grid:
        """Itself, without a function that gives further priors."""
        return replace(self, family=None)

    def priors(self, values: Tensor | None = None) -> list[Distribution]:
        """
        The priors, each of the shapes of the model's own.

        :param values: other numbers than those of the grid.
        """
        if self.family is None:
            return list(self.named.values())
        chosen = self._numbers(values)
        return [self._matched(self.family(value), self.prior) for value in chosen]

    def batch(self, values: Tensor | None = None) -> Distribution | None:
        """All of them in one distribution, along its first batch dimension; None where the family does not allow it."""
        if self.family is None:
            return None
        chosen = self._numbers(values)
        dims = len(self.prior.batch_shape + self.prior.event_shape)
        whole = self.prior.expand(torch.Size([len(chosen), *self.prior.batch_shape]))
        # A family is anybody's code: what cannot take many numbers takes them one by one.
        try:
            batch = self._matched(self.family(chosen.reshape((-1,) + (1,) * dims)), whole)
            return batch if self._is_the_same(batch, chosen) else None
        except Exception:
            return None

    def _numbers(self, values: Tensor | None) -> Tensor:
        assert self.values is not None
        like = tensor_of(self.prior)
        chosen = self.values if values is None else values
        return chosen if like is None else chosen.to(like)

    def _matched(self, stated: Any, prior: Distribution) -> Distribution:
        if not isinstance(stated, Distribution):
            raise ReductionError(
                f"the family of priors of site {self.site!r} gives a {type(stated).__name__}; give a function from a "
                "number to a distribution"
            )
        return match_prior(self.site, stated, prior)

    @torch.no_grad()
    def _is_the_same(self, batch: Distribution, values: Tensor) -> bool:
        """Whether the family takes many numbers as it takes one: at both ends, at values of the model's prior."""
        assert self.family is not None
        some = self.prior.sample()
        together = batch.log_prob(some.expand((len(values),) + some.shape))
        ends = [log_density(self._matched(self.family(values[at]), self.prior), some) for at in (0, -1)]
        return all(
            torch.allclose(_total(one), _total(together[at]), rtol=1e-4, equal_nan=True)
            for at, one in zip((0, -1), ends)
        )


def _total(log_prob: Tensor) -> Tensor:
    return log_prob.sum()


def read_grid(site: str, prior: Distribution, family: FamilyLike | None, grid: Any) -> Grid:
    """
    The priors of a site that a user states.

    :param site: the site.
    :param prior: its prior in the model.
    :param family: the name of a parameter of the prior, which varies; a function from a number to a prior; or priors by
        name. By default the prior's ``scale``, or its only parameter that is positive.
    :param grid: the numbers; by default a hundred from a tenth of the parameter to ten times it, evenly on the
        logarithm, or, of a parameter that may be negative, within three standard deviations of the prior around it.
    :raises ReductionError: for a parameter that the prior does not have or that differs between elements, numbers that
        are none or too few, and priors that do not fit the site.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_bmrs.reduction.families.grid import read_grid
        >>> grid = read_grid("slope", dist.Normal(0.0, 2.0), None, None)
        >>> grid.label, len(grid.values), grid.values[[0, -1]].tolist()
        ('scale', 100, [0.2, 20.0])
        >>> grid.batch().scale[:2]
        tensor([0.2000, 0.2095])
    """
    if isinstance(family, Mapping):
        if grid is not None or not family:
            raise ReductionError("priors by name are a grid by themselves: give at least one, and leave grid= out")
        return Grid(site, prior, "prior", None, {name: _one(site, name, r, prior) for name, r in family.items()})
    if callable(family):
        if grid is None:
            raise ReductionError("a function from numbers to priors needs the numbers; give them as grid=")
        return Grid(site, prior, _name_of(family), _read_numbers(grid), {}, family)
    parameters = _parameters(prior)
    name = _default_parameter(site, parameters) if family is None else family
    if name not in parameters:
        raise ReductionError(
            f"the prior of site {site!r} has no parameter {name!r} that could vary; it has {sorted(parameters)}: name "
            "one of them, or give family= as a function from a number to a prior"
        )
    value, constraint = parameters[name]
    if (value != value.reshape(-1)[0]).any():
        raise ReductionError(
            f"the {name} of the prior of site {site!r} differs between elements; give family= as a function from a "
            "number to a prior"
        )
    own = float(value.reshape(-1)[0])
    numbers = _around(own, constraint, prior) if grid is None else _read_numbers(grid)
    if not constraint.check(numbers).all():
        raise ReductionError(f"a {name} of the grid is outside of its constraint, {constraint}")
    return Grid(site, prior, name, numbers, {}, _Varied(prior, name), own)


def _one(site: str, name: str, stated: Any, prior: Distribution) -> Distribution:
    if not isinstance(stated, Distribution):
        raise ReductionError(f"the prior {name!r} of site {site!r} is a {type(stated).__name__}; give a distribution")
    return match_prior(site, stated, prior)


def _name_of(family: Any) -> str:
    """What the number is called: the parameter of the function, where that is all it takes."""
    code = getattr(family, "__code__", None)
    return str(code.co_varnames[0]) if code is not None and code.co_argcount == 1 else "value"


def _parameters(prior: Distribution) -> dict[str, tuple[Tensor, Any]]:
    """The parameters of a prior that are numbers, or one for each element, by name."""
    found: dict[str, tuple[Tensor, Any]] = {}

    def note(path: str, value: Tensor, constraint: Any, event_dim: int) -> Tensor:
        if value.is_floating_point() and value.numel() and constraint.event_dim == 0:
            found[path] = value.detach(), constraint
        return value

    try:
        map_parameters(prior, note)
    except NotImplementedError as error:
        raise ReductionError(f"{error}; give family= as a function from a number to a prior") from error
    return found


def _default_parameter(site: str, parameters: Mapping[str, tuple[Tensor, Any]]) -> str:
    positive = [name for name, (_, constraint) in parameters.items() if _is_positive(constraint)]
    if "scale" in positive or len(positive) == 1:
        return "scale" if "scale" in positive else positive[0]
    raise ReductionError(
        f"the prior of site {site!r} has no scale; say what varies: family= one of its parameters "
        f"{sorted(parameters)}, or a function from a number to a prior"
    )


def _is_positive(constraint: Any) -> bool:
    return isinstance(constraint, (constraints.greater_than, constraints.greater_than_eq)) and not torch.is_tensor(
        constraint.lower_bound
    )


def _around(own: float, constraint: Any, prior: Distribution) -> Tensor:
    if _is_positive(constraint):
        factors = torch.linspace(-1.0, 1.0, NUM_PRIORS, dtype=torch.double)
        return own * _FACTOR**factors
    try:
        deviation = float(prior.stddev.reshape(-1)[0])
    except NotImplementedError:
        deviation = float("nan")
    if not 0 < deviation < float("inf"):
        raise ReductionError("the prior has no standard deviation to go by; give the numbers as grid=")
    numbers = torch.linspace(-_DEVIATIONS, _DEVIATIONS, NUM_PRIORS, dtype=torch.double)
    return own + deviation * numbers


def _read_numbers(grid: Any) -> Tensor:
    try:
        numbers = torch.as_tensor(grid if isinstance(grid, Sequence) else grid, dtype=torch.double).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ReductionError(f"grid is {grid!r}; give numbers") from error
    if numbers.dim() != 1 or not len(numbers) or not numbers.isfinite().all():
        raise ReductionError(f"grid has shape {tuple(numbers.shape)}; give a list of finite numbers, at least one")
    if len(numbers.unique()) < len(numbers):
        raise ReductionError("grid has a number twice; give each once")
    return numbers.sort().values


@dataclass(frozen=True)
class _Varied:
    """The prior of a site with one of its parameters set to a number, or to many along the first dimension."""

    prior: Distribution
    parameter: str

    def __call__(self, value: Tensor) -> Distribution:
        def vary(path: str, own: Tensor, *_: Any) -> Tensor:
            if path != self.parameter:
                return own
            return value.reshape(value.shape[:1] + (1,) * own.dim()).expand(value.shape[:1] + own.shape)

        return map_parameters(self.prior, vary)
