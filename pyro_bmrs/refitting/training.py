# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Stochastic variational inference that can be stopped after any window of steps, and says when it is done.

A reduced posterior may be a thousand times narrower than the posterior that it came from, and Adam moves every
parameter by about its learning rate, which is then many widths of the narrow element at each step. So parameters are
moved in units of their own: one over the square root of their Fisher information under the guide that training begins
with. That of a normal's location is its standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from pyro.infer.util import zero_grads
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.posteriors.traces import latent_nodes, replay_whole
from pyro_bmrs.structure.vectorised import Vectorised, set_seed

_CHECK_PARTICLES = 50  # draws on which the ELBO is compared from window to window
_FISHER_DRAWS = 32
_WINDOW_SEEDS = 2**24  # seeds of the windows lie beyond those of the draws that the ELBO is evaluated on


@dataclass(frozen=True)
class Schedule:
    """
    How long to train, and how. The parameters are those of :func:`pyro_bmrs.refit`.

    :raises ReductionError: if the loss is no ELBO, there are no learning rates or one is not positive and finite,
        ``window`` or ``max_steps`` is no integer of at least 1, ``num_particles`` none of at least 2, the seed is
        negative or no integer, or the tolerance is negative.
    """

    loss: Any = field(default_factory=Trace_ELBO)
    learning_rates: Sequence[float] = (0.1, 0.01)
    window: int = 100
    tolerance: float = 0.02
    max_steps: int = 10_000
    num_particles: int = 500
    seed: int = 0

    def signature(self) -> dict[str, Any]:
        """What tells it from another, in numbers and names."""
        settings = {f.name: getattr(self, f.name) for f in fields(Schedule) if f.name != "loss"}
        return {
            "settings": {**settings, "learning_rates": list(self.learning_rates)},
            "loss": type(self.loss).__name__,
        }

    def __post_init__(self) -> None:
        rates = self.learning_rates
        if not isinstance(rates, Sequence) or not rates or not all(rate > 0 and math.isfinite(rate) for rate in rates):
            raise ReductionError(f"learning_rates must be positive numbers, at least one, not {self.learning_rates!r}")
        for name, least in (("window", 1), ("max_steps", 1), ("num_particles", 2), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ReductionError(f"{name} must be an integer, at least {least}, not {value!r}")
        if not self.tolerance >= 0:
            raise ReductionError(f"tolerance must be a number of nats, not negative, not {self.tolerance!r}")
        if not isinstance(self.loss, ELBO):
            raise ReductionError(f"loss must be an ELBO, such as Trace_ELBO(), not a {type(self.loss).__name__}")


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of independent values and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


class _Detach(Messenger):
    """Cuts what is drawn loose from the parameters it was drawn with, so that densities show those alone."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["value"] is not None and not msg["is_observed"]:
            msg["value"] = msg["value"].detach()


def unconstrained_parameters(trace: Any) -> dict[str, Tensor]:
    """The parameters in a trace, by name, as the optimiser sees them."""
    return {name: site["value"].unconstrained() for name, site in trace.nodes.items() if site["type"] == "param"}


@dataclass(frozen=True)
class Objective:
    """
    The ELBO of a guide under a model.

    :param model: the model.
    :param guide: the guide.
    :param schedule: says which ELBO.
    :param args: positional arguments that model and guide are run with.
    :param kwargs: keyword arguments that they are run with.
    """

    model: Callable[..., Any]
    guide: Any
    schedule: Schedule
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def elbos(self, num_particles: int) -> np.ndarray:
        """The ELBO, particle by particle, from the seed: on the same draws for whatever is compared."""
        set_seed(self.schedule.seed)
        loss = self.schedule.loss
        is_plain = type(loss) is Trace_ELBO and loss.num_particles == 1
        elbos = Vectorised("evaluating the ELBO")
        # What another loss reads from its traces, vmap does not let it read.
        elbos.at_once = is_plain
        values: np.ndarray = (
            elbos(self._plain_elbo if is_plain else self._elbo, torch.arange(num_particles)).double().cpu().numpy()
        )
        if not np.isfinite(values).all():
            raise ReductionError(
                f"the ELBO is NaN or infinite at {int((~np.isfinite(values)).sum())} of {num_particles} draws of the "
                "guide: it draws where the model has no density, or it has diverged; try smaller learning_rates"
            )
        return values

    def _elbo(self, _: Tensor) -> Tensor:
        return torch.tensor(-self.schedule.loss.loss(self.model, self.guide, *self.args, **self.kwargs)).double()

    def _plain_elbo(self, _: Tensor) -> Tensor:
        drawn = poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        replayed = poutine.trace(poutine.replay(self.model, trace=drawn)).get_trace(*self.args, **self.kwargs)
        elbo: Tensor = replayed.log_prob_sum() - drawn.log_prob_sum()
        return elbo

    def parameters(self) -> list[Tensor]:
        """The guide's own parameters, unconstrained, in the order of a run; without those of the model."""
        own = self._parameters(self.guide)
        # At the guide's values: not every prior can be drawn from.
        with torch.no_grad():
            drawn = poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        models = self._parameters(poutine.block(replay_whole(self.model, drawn), hide_types=["sample"]))
        return [value for name, value in own.items() if name not in models and value.requires_grad]

    def _parameters(self, program: Callable[..., Any]) -> dict[str, Tensor]:
        set_seed(self.schedule.seed)
        with torch.no_grad():
            trace = poutine.trace(program, param_only=True).get_trace(*self.args, **self.kwargs)
        return unconstrained_parameters(trace)

    def backward(self) -> float:
        """One estimate of the loss, with its gradient left in the parameters."""
        loss: float = self.schedule.loss.loss_and_grads(self.model, self.guide, *self.args, **self.kwargs)
        return loss

    def units(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """
        One over the square root of the Fisher information of each parameter, from draws of the guide.

        1 where the density of the draws does not depend on it, but for rounding.
        """
        information = [torch.zeros_like(parameter) for parameter in parameters]
        for index in range(_FISHER_DRAWS):
            set_seed(self.schedule.seed + index)
            with _Detach(), poutine.trace() as captured:
                self.guide(*self.args, **self.kwargs)
            sites = latent_nodes(captured.trace).values()
            density = sum(site["fn"].log_prob(site["value"]).sum() for site in sites)
            if not isinstance(density, Tensor) or not density.requires_grad:
                continue
            scores = torch.autograd.grad(density, parameters, allow_unused=True)
            for total, score in zip(information, scores):
                total += 0.0 if score is None else score.square()
        information = [total / _FISHER_DRAWS for total in information]
        return [torch.where(mean > torch.finfo(mean.dtype).eps, mean.rsqrt(), 1.0) for mean in information]


class Training:
    """
    Adam on the parameters of a guide, in windows of steps, each with random numbers of its own.

    A window is judged by the mean of its iterates, on the same random numbers as the one before. Where that raises the
    ELBO by less than the tolerance, or than two standard errors of the difference, Adam goes on from the best so far at
    the next learning rate.

    :param objective: what to maximise.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective, self._schedule = objective, objective.schedule
        self._parameters = objective.parameters()
        self._origin = [parameter.detach().clone() for parameter in self._parameters]
        self._units = objective.units(self._parameters) if self._parameters else []
        self._best = [torch.zeros_like(value) for value in self._origin]
        self._best_elbos = self._check(self._best)
        self.num_steps, self._stage = 0, 0
        self._begin()

    @property
    def converged(self) -> bool:
        """Whether no learning rate improves the ELBO any more."""
        return not self._parameters or self._stage == len(self._schedule.learning_rates)

    @property
    def has_gained(self) -> bool:
        """Whether any window has raised the ELBO."""
        return any(bool(place.any()) for place in self._best)

    @property
    def finished(self) -> bool:
        """Whether it has converged, or has taken all the steps that it may."""
        return self.converged or self.num_steps >= self._schedule.max_steps

    def _begin(self) -> None:
        """Sets out from the best so far, at the learning rate of the stage."""
        self._place = [best.clone().requires_grad_() for best in self._best]
        if not self.converged:
            self._optimizer = torch.optim.Adam(self._place, lr=self._schedule.learning_rates[self._stage])

    @torch.no_grad()
    def _put(self, place: Sequence[Tensor]) -> None:
        for parameter, origin, unit, coordinate in zip(self._parameters, self._origin, self._units, place):
            parameter.copy_(origin + unit * coordinate)

    def _check(self, place: Sequence[Tensor]) -> Tensor:
        self._put(place)
        return torch.from_numpy(self._objective.elbos(_CHECK_PARTICLES))

    def advance(self) -> int:
        """Takes the steps of one window, and leaves the guide at the best so far. Returns how many."""
        num_steps = min(self._schedule.window, self._schedule.max_steps - self.num_steps)
        set_seed(self._schedule.seed + _WINDOW_SEEDS + self.num_steps)
        mean = [torch.zeros_like(value) for value in self._best]
        for _ in range(num_steps):
            self._step()
            for total, value in zip(mean, self._place):
                total += value.detach() / num_steps
        self.num_steps += num_steps
        elbos = self._check(mean)
        gain, noise = mean_and_error((elbos - self._best_elbos).numpy())
        if gain >= max(self._schedule.tolerance, 2 * noise):
            self._best, self._best_elbos = mean, elbos
        else:
            self._stage += 1
            self._begin()
        self._put(self._best)
        return num_steps

    def _step(self) -> None:
        self._put(self._place)
        with poutine.trace(param_only=True) as captured:
            self._objective.backward()
        for coordinate, unit, parameter in zip(self._place, self._units, self._parameters):
            coordinate.grad = None if parameter.grad is None else unit * parameter.grad
        # Those of the model, too, which is not trained.
        zero_grads(unconstrained_parameters(captured.trace).values())
        self._optimizer.step()

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from here, in plain containers of tensors and numbers."""
        return {
            "num_steps": self.num_steps,
            "stage": self._stage,
            "best_elbos": self._best_elbos,
            "origin": self._origin,
            "units": self._units,
            "best": self._best,
            "place": [value.detach() for value in self._place],
            "optimizer": {} if self.converged else self._optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state that :meth:`state` told of."""
        self.num_steps, self._stage, self._best_elbos = (state[key] for key in ("num_steps", "stage", "best_elbos"))
        self._origin, self._units, self._best = state["origin"], state["units"], state["best"]
        self._begin()
        with torch.no_grad():
            for value, stored in zip(self._place, state["place"]):
                value.copy_(stored)
        if not self.converged:
            self._optimizer.load_state_dict(state["optimizer"])
        self._put(self._best)
