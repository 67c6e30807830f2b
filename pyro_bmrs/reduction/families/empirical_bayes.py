# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Empirical Bayes: the reduced prior under which the data are most probable, found without refitting."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to
from torch.distributions.constraints import Constraint, real

from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.evidence.dispatch import NUM_SAMPLES
from pyro_bmrs.integration.stated_model import PriorLike, read_stated
from pyro_bmrs.posteriors.draws import Draws
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.reduction.priors import ReducedPriorLike
from pyro_bmrs.reduction.reduce_model import reduce_posterior
from pyro_bmrs.reduction.reduction import Reduction
from pyro_bmrs.structure.vectorised import TURN

_NEWTON_STEPS = 5
_LONGEST_NEWTON_STEP = 0.1  # in unconstrained coordinates; beyond, L-BFGS has not come near


@dataclass(frozen=True, eq=False)
class OptimizedPrior:
    """
    The hyperparameters that maximise the evidence. Made by :func:`optimize_reduced_prior`.

    :param hyperparameters: by name, at the optimum, of the shapes that they began with.
    :param standard_errors: of each, from the curvature of the log evidence there: standard deviations of the
        hyperparameters' posterior under a flat prior, in the normal approximation. NaN where the curvature does not
        bound them.
    :param covariance: of all hyperparameters, laid out flat one after the other; a square matrix.
    :param reduction: the reduction at the optimum.
    :param converged: whether this is a maximum inside the hyperparameters' domain, to numerical accuracy.
    :param num_evaluations: how often Delta F was computed on the way.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from torch.distributions import constraints
        >>> from pyro_bmrs import optimize_reduced_prior
        >>> def model():
        ...     pyro.sample("effects", dist.Normal(torch.zeros(4), 10.0).to_event(1))
        >>> def exact():
        ...     pyro.sample("effects", dist.Normal(torch.tensor([-1.5, -0.5, 0.8, 1.6]), 0.5).to_event(1))
        >>> def family(scale):
        ...     return {"effects": dist.Normal(0.0, scale)}
        >>> domain = {"scale": constraints.positive}
        >>> best = optimize_reduced_prior(exact, family, {"scale": 1.0}, model=model, constraints=domain)
        >>> round(best.hyperparameters["scale"].item(), 2), best.converged
        (1.09, True)
    """

    hyperparameters: dict[str, Tensor]
    standard_errors: dict[str, Tensor]
    covariance: Tensor
    reduction: Reduction
    converged: bool
    num_evaluations: int

    def __repr__(self) -> str:
        errors = self.standard_errors
        values = (
            f"{name} = {_words(value)}" + (f" ± {float(errors[name]):.2g}" if value.numel() == 1 else "")
            for name, value in self.hyperparameters.items()
        )
        state = "converged" if self.converged else "not converged"
        return f"OptimizedPrior({', '.join(values)}): ΔF = {float(self.reduction.delta_evidence):.2f} nats, {state}"


@torch.no_grad()
def _words(value: Tensor) -> str:
    if value.numel() == 1:
        return f"{float(value):.3g}"
    return f"{value.numel()} values from {float(value.min()):.3g} to {float(value.max()):.3g}"


@torch.enable_grad()
def optimize_reduced_prior(
    guide: Any,
    family: Callable[..., ReducedPriorLike],
    init: Mapping[str, Tensor | float],
    *,
    constraints: Mapping[str, Constraint] | None = None,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    prior: PriorLike | None = None,
    method: str = "auto",
    num_samples: int = NUM_SAMPLES,
    max_steps: int = 100,
    progress: bool = False,
) -> OptimizedPrior:
    """
    The reduced prior, out of a family, that maximises the evidence.

    Type II maximum likelihood (D. J. C. MacKay (1992), *Bayesian interpolation*,
    https://doi.org/10.1162/neco.1992.4.3.415) from a single fit: the log evidence under the reduced prior is that of
    the model fitted plus Delta F, which is differentiable in the reduced prior's hyperparameters. They are sought by
    L-BFGS in unconstrained coordinates. As good as the guide is; where Delta F is an average over draws, the same draws
    serve throughout.

    :param guide: a fitted guide or draws from the posterior, as for :func:`~pyro_bmrs.reduce_model`.
    :param family: called as ``family(**hyperparameters)``; returns what :func:`~pyro_bmrs.reduce_model` takes as
        reduced prior: a distribution, a mapping from site to distribution, or a Pyro program.
    :param init: where to begin, by name of the hyperparameter: numbers, or tensors of any shape.
    :param constraints: what a hyperparameter has to satisfy, as in ``torch.distributions.constraints``; real numbers by
        default.
    :param model: the model, where the guide does not know it.
    :param args: positional arguments of model and guide; autoguides and an MCMC run remember theirs.
    :param kwargs: keyword arguments of both, remembered as those are.
    :param prior: the priors of draws that know no model, as for :func:`~pyro_bmrs.reduce_model`.
    :param method: how Delta F is computed, as for :func:`~pyro_bmrs.reduce_model`.
    :param num_samples: draws for importance sampling from a guide.
    :param max_steps: of L-BFGS.
    :param progress: whether to show a progress bar while drawing.
    :return: the :class:`OptimizedPrior`.
    :raises ReductionError: where ``init`` is empty, not finite or violates its constraint, where Delta F does not
        depend on a hyperparameter, where Delta F cannot be had at hyperparameters on the way, and whatever
        :func:`~pyro_bmrs.reduce_model` objects to.
    :warns ReductionWarning: where no maximum inside the domain was found, as when the evidence goes on rising while a
        scale goes to zero.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from torch.distributions import constraints
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import optimize_reduced_prior
        >>> def model():
        ...     pyro.sample("effects", dist.Normal(torch.zeros(4), 10.).to_event(1))
        >>> guide = AutoNormal(model, init_scale=0.5); _ = guide()
        >>> with torch.no_grad():
        ...     _ = guide.locs.effects.copy_(torch.tensor([-1.5, -0.5, 0.8, 1.6]))
        >>> optimize_reduced_prior(
        ...     guide,
        ...     lambda scale: {"effects": dist.Normal(0., scale)},
        ...     {"scale": 1.},
        ...     constraints={"scale": constraints.positive},
        ... )
        OptimizedPrior(scale = 1.09 ± 0.47): ΔF = 6.53 nats, converged
    """
    with TURN:
        fitted = read_stated(guide, model, args, kwargs, prior, None)
        coordinates, first = _Coordinates.read(init, constraints or {})
        objective = _Objective(fitted, family, coordinates, method, num_samples)
        first = objective.prepare(first, progress)
        best, covariance, converged = _polish(objective, _climb(objective, first, max_steps))
    if not converged:
        warnings.warn(
            "no maximum of the evidence was found inside the hyperparameters' domain: it may lie at the edge (a scale "
            "that goes to zero, or to infinity), or more max_steps are needed",
            ReductionWarning,
            stacklevel=3,  # over the decorator
        )
    slopes = torch.autograd.functional.jacobian(coordinates.flat_values, best)
    covariance = slopes @ covariance @ slopes.mT
    errors = coordinates.part(covariance.diagonal().sqrt())
    with torch.no_grad():
        values = coordinates.values(best)
    with TURN:
        reduction = objective.reduction(best)
    return OptimizedPrior(values, errors, covariance, reduction, converged, objective.num_evaluations)


@dataclass(frozen=True)
class _Coordinates:
    """Hyperparameters as one vector of unconstrained coordinates."""

    shapes: Mapping[str, torch.Size]  # of the unconstrained values
    constraints: Mapping[str, Constraint]
    value_shapes: Mapping[str, torch.Size]

    @staticmethod
    def read(init: Mapping[str, Tensor | float], constraints: Mapping[str, Constraint]) -> tuple[_Coordinates, Tensor]:
        if not init:
            raise ReductionError("init names no hyperparameter; give where to begin, as in {'scale': 1.0}")
        for name in constraints:
            if name not in init:
                raise ReductionError(f"constraints names {name!r}, which is not in init ({sorted(init)})")
        values = {name: torch.as_tensor(value) for name, value in init.items()}
        for name, value in values.items():
            if not value.is_floating_point():
                values[name] = value.to(torch.get_default_dtype())
        stated = {name: constraints.get(name, real) for name in values}
        unconstrained = {}
        for name, value in values.items():
            inside = stated[name].check(value)
            coordinates = transform_to(stated[name]).inv(value.detach())
            if not value.isfinite().all() or not inside.all() or not coordinates.isfinite().all():
                raise ReductionError(f"init of {name!r} is not finite, or not inside its constraint {stated[name]}")
            unconstrained[name] = coordinates
        shapes = {name: value.shape for name, value in unconstrained.items()}
        value_shapes = {name: value.shape for name, value in values.items()}
        flat = torch.cat([value.reshape(-1) for value in unconstrained.values()])
        return _Coordinates(shapes, stated, value_shapes), flat

    def values(self, flat: Tensor) -> dict[str, Tensor]:
        """The hyperparameters at a vector of coordinates."""
        parts = _split(flat, self.shapes)
        return {name: transform_to(self.constraints[name])(part) for name, part in parts.items()}

    def flat_values(self, flat: Tensor) -> Tensor:
        """The same, laid out flat one after the other."""
        return torch.cat([value.reshape(-1) for value in self.values(flat).values()])

    def part(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector that has an entry for each value of the hyperparameters, by hyperparameter."""
        return _split(flat, self.value_shapes)


def _split(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    pieces = flat.split([shape.numel() for shape in shapes.values()])
    return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces)}


class _Objective:
    """Minus Delta F as a function of the hyperparameters' coordinates, upon the same draws where it takes any."""

    def __init__(
        self,
        fitted: Posterior,
        family: Callable[..., ReducedPriorLike],
        coordinates: _Coordinates,
        method: str,
        num_samples: int,
    ) -> None:
        self._fitted, self._family, self._coordinates = fitted, family, coordinates
        self._method, self._num_samples = method, num_samples
        self._draws: Draws | None = None
        self.num_evaluations = 0

    def prepare(self, first: Tensor, progress: bool) -> Tensor:
        """Draws what is to be drawn, and brings the coordinates to the dtype and device of Delta F."""
        with torch.no_grad():
            # Read without gradients: only those of the hyperparameters are wanted.
            _ = self._fitted.factored
        first = first.requires_grad_()
        reduction = self._reduce(first, progress)
        self._draws = reduction.draws
        first = first.detach().to(reduction.delta_evidence).requires_grad_()
        self._check_dependence(first)
        return first.detach()

    def _check_dependence(self, first: Tensor) -> None:
        values = {name: value.detach().requires_grad_() for name, value in self._coordinates.values(first).items()}
        change = self._reduce_at(values).delta_evidence
        slopes = torch.autograd.grad(change, list(values.values()), allow_unused=True) if change.requires_grad else ()
        for name, slope in zip(values, slopes or [None] * len(values)):
            if slope is None:
                raise ReductionError(f"the change in log evidence does not depend on the hyperparameter {name!r}")

    def reduction(self, flat: Tensor) -> Reduction:
        """The reduction at a vector of coordinates."""
        with torch.no_grad():
            return self._reduce(flat)

    def _reduce(self, flat: Tensor, progress: bool = False) -> Reduction:
        return self._reduce_at(self._coordinates.values(flat), progress)

    def _reduce_at(self, values: dict[str, Tensor], progress: bool = False) -> Reduction:
        self.num_evaluations += 1
        try:
            return reduce_posterior(
                self._fitted, self._family(**values), self._method, self._num_samples, progress, self._draws
            )
        except ReductionError as error:
            here = ", ".join(f"{name} = {_words(value)}" for name, value in values.items())
            raise ReductionError(
                f"at {here}: {error} (if the search went astray, bound it with constraints=)"
            ) from error

    def loss(self, flat: Tensor) -> Tensor:
        """Minus Delta F. What is wrong with an estimate is told of the last one only."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReductionWarning)
            return -self._reduce(flat).delta_evidence


def _climb(objective: _Objective, first: Tensor, max_steps: int) -> Tensor:
    """L-BFGS, with a line search that satisfies the strong Wolfe conditions, down to the noise of the dtype."""
    flat = first.clone().requires_grad_()
    noise = torch.finfo(flat.dtype).eps
    optimizer = torch.optim.LBFGS(
        [flat], max_iter=max_steps, tolerance_grad=noise**0.6, tolerance_change=noise, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective.loss(flat)
        (flat.grad,) = torch.autograd.grad(loss, flat)
        return loss

    optimizer.step(closure)
    return flat.detach()


def _inverse(hessian: Tensor) -> Tensor:
    """Of a positive definite matrix; NaN where it is not."""
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if failed or not hessian.isfinite().all():
        return torch.full_like(hessian, math.nan)
    return torch.cholesky_inverse(factor)


def _polish(objective: _Objective, flat: Tensor) -> tuple[Tensor, Tensor, bool]:
    """
    The optimum to the last digits, the inverse of the curvature there, and whether it is a maximum.

    Newton's method goes by the gradient, which has digits left where differences of Delta F have none. It also tells a
    maximum from the foot of a slope that flattens without end (a scale that goes to zero): there the gradient vanishes,
    but so does the curvature, and Newton's step does not.
    """
    accuracy = torch.finfo(flat.dtype).eps ** (1 / 3)
    for _ in range(_NEWTON_STEPS):
        gradient = torch.autograd.functional.jacobian(objective.loss, flat)
        covariance = _inverse(torch.autograd.functional.hessian(objective.loss, flat))
        step = covariance @ gradient
        close = bool((step.abs() <= accuracy * (1 + flat.abs())).all())
        if close or not (step.abs() <= _LONGEST_NEWTON_STEP).all():
            break
        flat = flat - step
    return flat - step if close else flat, covariance, close
