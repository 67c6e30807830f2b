# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
A round of an iterated reduction, as a step from one state to the next: search, reduce, fit.

A point has no density to reduce again. So beside the reduced model and its guide stand a model in which the reduced
elements that are points have their full prior still, and a guide that gives them a density, independent of all else,
and every other element what the fit gave it. These are what a round reads; then the points are put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.posteriors.reading import read_guide
from pyro_bmrs.posteriors.reduced_guide import DrawsGuide
from pyro_bmrs.reduction.automatic import check_where_cheap
from pyro_bmrs.reduction.check import Check
from pyro_bmrs.reduction.priors import ReducedPriorLike, match_prior, read_reduced_priors, reduced_model
from pyro_bmrs.reduction.reduce_model import reduce_posterior
from pyro_bmrs.reduction.reduction import Reduction
from pyro_bmrs.refitting.refit import Refit, follow
from pyro_bmrs.refitting.training import Objective, Schedule, Training
from pyro_bmrs.refitting.unpinning import unpinned_guide
from pyro_bmrs.search.groups import Groups, GroupsLike, read_groups
from pyro_bmrs.search.model_space import ModelSpace
from pyro_bmrs.search.search_models import search_models
from pyro_bmrs.structure.layers import is_point
from pyro_bmrs.structure.mixtures import mix
from pyro_bmrs.structure.vectorised import set_seed


@dataclass(frozen=True, eq=False)
class Round:
    """
    One round of an iterated reduction.

    :param reduced: names of the groups that were reduced in it.
    :param refit: what the reduction said, and what refitting made of it.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs import reduce_iteratively
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([-0.2, 0.1, 0.4])
        >>> pyro.clear_param_store()
        >>> guide = AutoNormal(model, init_loc_fn=lambda site: torch.tensor(0.075), init_scale=0.5)
        >>> _ = guide(y)
        >>> result = reduce_iteratively(model, guide, {"mean": dist.Delta(torch.tensor(0.0))}, num_particles=20)
        >>> result.rounds[0].reduced
        ('mean',)
    """

    reduced: tuple[str, ...]
    refit: Refit


@dataclass(frozen=True, eq=False)
class Task:
    """
    What is asked of all rounds.

    :param stated: the reduced prior of each site, of the shapes of its prior.
    :param groups: what is reduced together.
    :param log_odds: prior log odds of each group's reduction, in nats, shape ``(num_groups,)``.
    :param schedule: how each round is fitted.
    """

    stated: Mapping[str, Distribution]
    groups: Groups
    log_odds: Tensor
    schedule: Schedule

    @cached_property
    def points(self) -> frozenset[str]:
        """The sites whose reduced prior is a point."""
        return frozenset(name for name, prior in self.stated.items() if is_point(prior))

    def names(self, chosen: Tensor) -> tuple[str, ...]:
        """The names of some groups, given as a boolean for each."""
        return tuple(self.groups.names[place] for place in chosen.nonzero().squeeze(-1).tolist())


@dataclass(frozen=True, eq=False)
class State:
    """
    What the rounds have come to.

    :param current: the reduced model, and the guide fitted to it.
    :param opened: the two with a density in the place of each point, read.
    :param reduced: which groups are reduced, shape ``(num_groups,)``, boolean.
    :param rounds: what was done in each round.
    """

    current: Objective
    opened: FittedGuide
    reduced: Tensor
    rounds: tuple[Round, ...] = ()


@dataclass(frozen=True, eq=False)
class Choice:
    """
    What to reduce next.

    :param groups: those to be reduced, shape ``(num_groups,)``, boolean.
    :param delta_evidence: what this promises, in nats.
    :param alone: what the reduction of each group alone promises, in nats, shape ``(num_groups,)``.
    """

    groups: Tensor
    delta_evidence: float
    alone: Tensor


def read_task(
    model: Callable[..., Any],
    guide: Any,
    reduced_prior: ReducedPriorLike,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    groups: GroupsLike,
    prior_log_odds: float | Tensor,
    schedule: Schedule,
) -> tuple[Task, State, ModelSpace]:
    """
    What the user states, the state before any round, and the space of models there.

    :raises ReductionError: for weighted draws as the guide, and whatever :func:`~pyro_bmrs.search_models` objects to.
    """
    if isinstance(guide, DrawsGuide):
        raise ReductionError("weighted draws cannot be fitted further; fit a guide to the reduced model first")
    fitted = read_guide(guide, model, args, kwargs)
    stated = read_reduced_priors(reduced_prior, fitted.latent, fitted.args, fitted.kwargs)
    # The search knows what is wrong with the question, so it comes first.
    space = search_models(
        guide,
        reduced_prior,
        model=model,
        args=args,
        kwargs=kwargs,
        groups=groups,
        strategy="greedy",
        prior_log_odds=prior_log_odds,
        refine=False,
    )
    shapes = {name: delta.shape for name, delta in space.delta_evidence.items()}
    device = next(iter(space.delta_evidence.values())).device
    switched = read_groups(groups, shapes, device)
    log_odds = torch.as_tensor(prior_log_odds, dtype=torch.double, device=device).expand(len(switched))
    priors = {name: match_prior(name, stated.at(name, {}), fitted.prior(name)) for name in sorted(stated.sites)}
    current = Objective(fitted.model, fitted.guide, schedule, fitted.args, fitted.kwargs)
    nothing = torch.zeros(len(switched), dtype=torch.bool, device=device)
    return Task(priors, switched, log_odds, schedule), State(current, fitted, nothing), space


def search(task: Task, state: State) -> ModelSpace | None:
    """The models in which groups not reduced yet are reduced, too; None where there are no such groups."""
    left = (~state.reduced).nonzero().squeeze(-1)
    if not len(left):
        return None
    numbers = torch.full((len(task.groups) + 1,), -1, device=left.device)
    numbers[left] = torch.arange(len(left), device=left.device)
    labels = {name: numbers[label] for name, label in task.groups.labels.items() if (numbers[label] >= 0).any()}
    fitted = state.opened
    return search_models(
        fitted.guide,
        {name: task.stated[name] for name in labels},
        model=fitted.model,
        args=fitted.args,
        kwargs=fitted.kwargs,
        groups=Groups(task.names(~state.reduced), labels),
        strategy="greedy",
        prior_log_odds=task.log_odds[left],
        refine=False,
    )


def choose(state: State, space: ModelSpace | None) -> Choice | None:
    """
    What the best model reduces beyond what is reduced already; None where it is nothing.

    :param space: the models in which groups not reduced yet are reduced, too.
    """
    if space is None:
        return None
    best = space.top(1)
    chosen = torch.zeros_like(state.reduced)
    chosen[~state.reduced] = best.reduced[0]
    alone = torch.zeros_like(state.reduced, dtype=torch.double)
    alone[~state.reduced] = space.alone.to(alone)
    return Choice(chosen, float(best.delta_evidence), alone) if chosen.any() else None


def confirm(task: Task, first: State, state: State, choice: Choice) -> Choice | None:
    """
    What the model itself bears out of a choice, where it is small enough to be asked; None where it is nothing.

    A guide that is too sure of what is correlated promises too much. Where the model's evidence is less with the choice
    than without, the half of it goes that promises least.

    :param first: the state before any round: evidence is compared with that of the full model.
    """
    before = check(task, first, state.reduced)
    while choice.groups.any():
        found = check(task, first, state.reduced | choice.groups)
        if found is None or before is None or not (found.trusted and before.trusted):
            return choice
        gain = found.delta_evidence - before.delta_evidence
        odds = float(task.log_odds[choice.groups].sum())
        if gain + odds >= -2 * math.hypot(found.reduced.standard_error, before.reduced.standard_error):
            return Choice(choice.groups, gain, choice.alone)
        count = int(choice.groups.sum()) // 2
        promising = choice.alone + task.log_odds
        kept = torch.where(choice.groups, promising, -torch.inf).topk(count).indices
        groups = torch.zeros_like(choice.groups)
        groups[kept] = True
        choice = Choice(groups, choice.delta_evidence, choice.alone)
    return None


def check(task: Task, first: State, reduced: Tensor) -> Check | None:
    """
    What the model says of the reduction of some groups of the full model; None where it is too large to be asked.

    :param first: the state before any round.
    :param reduced: the groups, shape ``(num_groups,)``, boolean.
    """
    return check_where_cheap(_reduce(task, first, reduced))


def advance(
    task: Task, state: State, choice: Choice, tell: Callable[[Training], Any], training: Mapping[str, Any] | None
) -> tuple[State, dict[str, Any]]:
    """
    The state after one more round, and what :func:`repeat` needs to come to it again without the fit.

    :param tell: called after each window of steps.
    :param training: where an earlier training of this round had come to.
    """
    set_seed(task.schedule.seed)
    reduction = _reduce(task, state, choice.groups)
    after = _objective(task, reduction)
    sites = task.groups.spread(choice.groups, False)
    names = tuple(name for name in task.stated if sites[name].any())
    refit = follow(state.current, after, choice.delta_evidence, names, state.opened, tell, training)
    numbers = {f.name: getattr(refit, f.name) for f in fields(Refit) if f.name not in ("model", "guide")}
    parameters = [value.detach().clone() for value in after.parameters()]
    done = {"chosen": choice.groups, "parameters": parameters, "refit": numbers}
    return _finish(task, state, choice.groups, after, reduction, refit), done


def repeat(task: Task, state: State, done: Mapping[str, Any]) -> State:
    """The state after a round that was done before, as :func:`advance` tells of it."""
    reduction = _reduce(task, state, done["chosen"])
    after = _objective(task, reduction)
    with torch.no_grad():
        for parameter, value in zip(after.parameters(), done["parameters"], strict=True):
            parameter.copy_(value)
    refit = Refit(**{**done["refit"], "model": after.model, "guide": after.guide})
    return _finish(task, state, done["chosen"], after, reduction, refit)


def _reduce(task: Task, state: State, chosen: Tensor) -> Reduction:
    """The reduction of the groups chosen, and of the points that there are already."""
    now = task.groups.spread(chosen, False)
    in_all = task.groups.spread(chosen | state.reduced, False)
    reduced = {name: in_all[name] if name in task.points else now[name] for name in task.stated}
    fitted, in_any = state.opened, any(elements.any() for elements in reduced.values())
    stated = {
        name: mix(fitted.prior(name), task.stated[name], elements)
        for name, elements in reduced.items()
        if elements.any() or not in_any
    }
    return reduce_posterior(fitted, stated)


def _objective(task: Task, reduction: Reduction) -> Objective:
    """The reduced model, and a guide of its own at the reduced posterior."""
    fitted = reduction.fitted
    return Objective(reduction.model, reduction.new_guide(), task.schedule, fitted.args, fitted.kwargs)


def _finish(task: Task, state: State, chosen: Tensor, after: Objective, reduction: Reduction, refit: Refit) -> State:
    model = state.opened.model
    free = reduction.reduced_priors.sites - task.points
    if free:
        stated = {name: reduction.reduced_priors.at(name, {}) for name in free}
        model = reduced_model(model, read_reduced_priors(stated, list(stated), (), {}))
    guide = unpinned_guide(after.guide, state.opened, model)
    opened = read_guide(guide, model, after.args, dict(after.kwargs))
    return State(after, opened, state.reduced | chosen, (*state.rounds, Round(task.names(chosen), refit)))
