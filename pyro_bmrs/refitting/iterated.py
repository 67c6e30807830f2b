# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Iterated reduction: reduce, refit, and reduce again until nothing changes, by :func:`reduce_iteratively`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.posteriors.reading import read_guide
from pyro_bmrs.posteriors.reduced_guide import DrawsGuide, ReducedGuide
from pyro_bmrs.reduction.priors import ReducedPriorLike, match_prior, read_reduced_priors, reduced_model
from pyro_bmrs.reduction.reduction import Reduction, reduce_posterior
from pyro_bmrs.refitting.checkpoints import Checkpoint
from pyro_bmrs.refitting.refit import Refit, follow, warn_not_converged
from pyro_bmrs.refitting.training import Objective, Schedule, Training, own_random_numbers, set_seed
from pyro_bmrs.refitting.unpinning import unpinned_guide
from pyro_bmrs.search.groups import Groups, GroupsLike, read_groups
from pyro_bmrs.search.search_models import search_models
from pyro_bmrs.structure.layers import is_point
from pyro_bmrs.structure.mixtures import mix

if TYPE_CHECKING:
    import pandas as pd

_MOST_NAMED = 8


@dataclass(frozen=True, eq=False)
class Round:
    """
    One round of an iterated reduction.

    :param reduced: names of the groups that were reduced in it.
    :param refit: what the reduction said, and what refitting made of it.
    """

    reduced: tuple[str, ...]
    refit: Refit


@dataclass(frozen=True, eq=False)
class IteratedReduction:
    """
    A model whose groups were reduced in rounds, with a refit after each. Made by :func:`reduce_iteratively`.

    :param model: the reduced model.
    :param guide: the guide fitted to it.
    :param reduced: for each site, which of its elements took their reduced prior.
    :param kept: names of the groups that kept their full prior.
    :param rounds: what was done in each round.
    """

    model: Callable[..., Any]
    guide: Any
    reduced: dict[str, Tensor]
    kept: tuple[str, ...]
    rounds: tuple[Round, ...]

    @property
    def delta_evidence(self) -> float:
        """The changes in log evidence that the reductions promised, added up, in nats."""
        return sum(done.refit.delta_evidence for done in self.rounds)

    @property
    def delta_elbo(self) -> float:
        """ELBO of the guide under the reduced model less that of the first guide under the full model, in nats."""
        return sum(done.refit.delta_elbo for done in self.rounds)

    @property
    def converged(self) -> bool:
        """Whether every refit had converged."""
        return all(done.refit.converged for done in self.rounds)

    def __repr__(self) -> str:
        num_reduced = sum(len(done.reduced) for done in self.rounds)
        state = "" if self.converged else ", not converged"
        return (
            f"IteratedReduction({num_reduced:,} of {num_reduced + len(self.kept):,} groups reduced in "
            f"{len(self.rounds)} rounds{state}): "
            f"ΔF = {self.delta_evidence:.2f} nats, ΔELBO = {self.delta_elbo:.2f} nats"
        )

    def summary(self) -> pd.DataFrame:
        """
        A table of the rounds, one row each.

        ``reduced`` names the groups, ``delta_evidence`` and ``delta_elbo`` (with its ``standard_error``) are what the
        reduction and the refit changed, in nats, ``divergence`` is the largest of a site, ``num_steps`` those of SVI.
        """
        import pandas as pd

        rows = [
            {
                "reduced": _words(done.reduced),
                "num_reduced": len(done.reduced),
                "delta_evidence": done.refit.delta_evidence,
                "delta_elbo": done.refit.delta_elbo,
                "standard_error": done.refit.standard_error,
                "divergence": max(done.refit.divergence.values(), default=float("nan")),
                "num_steps": done.refit.num_steps,
                "converged": done.refit.converged,
            }
            for done in self.rounds
        ]
        columns = ["reduced", "num_reduced", "delta_evidence", "delta_elbo", "standard_error", "divergence"]
        index = pd.RangeIndex(1, len(rows) + 1, name="round")
        return pd.DataFrame(rows, index=index, columns=[*columns, "num_steps", "converged"])

    def _repr_html_(self) -> str:
        return f"<p><b>{type(self).__name__}</b>{repr(self)[len(type(self).__name__) :]}</p>{self.summary().to_html()}"


def _words(names: Sequence[str]) -> str:
    hidden = len(names) - _MOST_NAMED
    return ", ".join(names if hidden <= 1 else [*names[:_MOST_NAMED], f"and {hidden:,} more"])


def reduce_iteratively(
    model: Callable[..., Any],
    guide: Any,
    reduced_prior: ReducedPriorLike,
    *,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    groups: GroupsLike = "element",
    prior_log_odds: float | Tensor = 0.0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **settings: Any,
) -> IteratedReduction:
    """
    Reduces all that the evidence lets go, refits, and reduces again, until there is nothing more to reduce.

    Each round takes the best model of :func:`~pyro_bmrs.search_models` over the groups not reduced yet, and fits it
    further as :func:`~pyro_bmrs.refit` does (Beckers et al. 2022, https://arxiv.org/abs/2210.09134). A refit
    corrects what a mean-field guide did not know about the reduction, so that the next round judges by a better fit.
    What is reduced stays so.

    An interrupted run with a ``checkpoint`` goes on from its last window of SVI steps when it is called again with the
    same arguments, and ends as if it had never been interrupted.

    :param model: the full model.
    :param guide: a guide fitted to it, whose posterior of the reduced sites is independent or jointly normal.
    :param reduced_prior: the reduced priors, as for :func:`~pyro_bmrs.search_models`.
    :param args: arguments of model and guide; autoguides remember those of their first run.
    :param kwargs: likewise.
    :param groups: what is reduced together: ``"element"``, ``"site"``, or named groups.
    :param prior_log_odds: prior log odds of a group's reduction, in nats, one number or one for each group.
    :param checkpoint: a file to keep the state in, after each window of SVI steps.
    :param progress: whether to show a progress bar.
    :param settings: ``loss``, ``learning_rates``, ``window``, ``tolerance``, ``max_steps`` (of each round),
        ``num_particles`` and ``seed``, as for :func:`~pyro_bmrs.refit`.
    :return: the :class:`IteratedReduction`. The guide given is left as it is.
    :raises ReductionError: for a checkpoint that is truncated, none, or of another task, which is left as it is, and
        for whatever :func:`~pyro_bmrs.search_models` or :func:`~pyro_bmrs.refit` object to.
    :warns ReductionWarning: where a refit had not converged.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import reduce_iteratively
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> x = torch.randn(50, 3)
        >>> y = x[:, 0] + 0.5 * torch.randn(50)
        >>> def model(x, y):
        ...     weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.).to_event(1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(x @ weights, 0.5), obs=y)
        >>> guide = AutoNormal(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        >>> for _ in range(300): loss = svi.step(x, y)
        >>> result = reduce_iteratively(model, guide, dist.Delta(torch.tensor(0.)), num_particles=50)
        >>> result.kept
        ('weights[0]',)
    """
    schedule = Schedule(**settings)
    store = Checkpoint(checkpoint)
    with own_random_numbers(), tqdm(desc="reducing iteratively", unit=" steps", disable=not progress) as bar:
        set_seed(schedule.seed)
        work = _Work.begin(model, guide, reduced_prior, args, kwargs, groups, prior_log_odds, schedule)
        task = work.task()
        state = store.read(task) or {"rounds": [], "training": None, "finished": False}
        for done in state["rounds"]:
            work.repeat(done)
        while not state["finished"]:
            chosen = work.choose()
            if chosen is None:
                state = {**state, "finished": True}
                store.write(task, state)
                break

            def keep(training: Training, state: dict[str, Any] = state) -> None:
                store.write(task, {**state, "training": training.state()})
                bar.update(training.num_steps - bar.n)

            bar.set_postfix(round=len(work.rounds) + 1, reduced=int(work.reduced.sum()))
            bar.reset()
            done = work.advance(chosen, keep, state["training"])
            state = {"rounds": [*state["rounds"], done], "training": None, "finished": False}
            store.write(task, state)
    for finished in work.rounds:
        if not finished.refit.converged:
            warn_not_converged(finished.refit.num_steps, stacklevel=3)
    return work.result()


class _Work:
    """
    The state between rounds.

    A point has no density to reduce again. So beside the reduced model and its guide stand a model in which the reduced
    elements that are points have their full prior still, and a guide that gives them a density, independent of all
    else, and every other element what the fit gave it. These are what a round reads; then the points are put back.
    """

    def __init__(
        self, fitted: FittedGuide, stated: Mapping[str, Distribution], groups: Groups, log_odds: Tensor, how: Schedule
    ) -> None:
        self._open, self._stated, self._groups, self._log_odds, self._schedule = fitted, stated, groups, log_odds, how
        self._points = {name for name, prior in stated.items() if is_point(prior)}
        self.current = Objective(fitted.model, fitted.guide, how, fitted.args, fitted.kwargs)
        self.reduced = torch.zeros(len(groups), dtype=torch.bool, device=log_odds.device)
        self.rounds: list[Round] = []

    @staticmethod
    def begin(
        model: Callable[..., Any],
        guide: Any,
        reduced_prior: ReducedPriorLike,
        args: tuple,
        kwargs: Mapping[str, Any] | None,
        groups: GroupsLike,
        prior_log_odds: float | Tensor,
        schedule: Schedule,
    ) -> _Work:
        """Reads what the user states."""
        if isinstance(guide, DrawsGuide):
            raise ReductionError("weighted draws cannot be fitted further; fit a guide to the reduced model first")
        fitted = read_guide(guide, model, args, kwargs)
        stated = read_reduced_priors(reduced_prior, fitted.latent, fitted.args, fitted.kwargs)
        # A search of the whole space first, since it knows what is wrong with the question.
        space = search_models(
            guide, reduced_prior, model=model, args=args, kwargs=kwargs, groups=groups, prior_log_odds=prior_log_odds
        )
        shapes = {name: delta.shape for name, delta in space.delta_evidence.items()}
        device = next(iter(space.delta_evidence.values())).device
        chosen = read_groups(groups, shapes, device)
        log_odds = torch.as_tensor(prior_log_odds, dtype=torch.double, device=device).expand(len(chosen))
        priors = {name: match_prior(name, stated.at(name, {}), fitted.prior(name)) for name in sorted(stated.sites)}
        work = _Work(fitted, priors, chosen, log_odds, schedule)
        work._first = space.delta_evidence
        return work

    _first: dict[str, Tensor]

    def task(self) -> dict[str, Any]:
        """What tells this task from another: its groups and settings, and what they give at first."""
        settings = {f.name: getattr(self._schedule, f.name) for f in fields(self._schedule) if f.name != "loss"}
        return {
            "settings": {**settings, "learning_rates": list(self._schedule.learning_rates)},
            "groups": list(self._groups.names),
            "prior log odds": self._log_odds,
            "loss": type(self._schedule.loss).__name__,
            "model, guide or reduced priors": torch.cat([delta.double().reshape(-1) for delta in self._first.values()]),
            "model, guide or arguments": torch.from_numpy(self.current.elbos(2)),
        }

    def choose(self) -> Tensor | None:
        """Which groups the best model reduces beyond those that are reduced; None where there are none."""
        left = (~self.reduced).nonzero().squeeze(-1)
        if not len(left):
            return None
        numbers = torch.full((len(self._groups) + 1,), -1, device=left.device)
        numbers[left] = torch.arange(len(left), device=left.device)
        labels = {name: numbers[label] for name, label in self._groups.labels.items() if (numbers[label] >= 0).any()}
        space = search_models(
            self._open.guide,
            {name: self._stated[name] for name in labels},
            model=self._open.model,
            args=self._open.args,
            kwargs=self._open.kwargs,
            groups=Groups(tuple(self._groups.names[place] for place in left.tolist()), labels),
            prior_log_odds=self._log_odds[left],
        )
        best = space.top(1)
        self._delta_evidence = float(best.delta_evidence)
        chosen = torch.zeros_like(self.reduced)
        chosen[left] = best.reduced[0]
        return chosen if chosen.any() else None

    _delta_evidence: float

    def advance(
        self, chosen: Tensor, tell: Callable[[Training], Any], state: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Does a round, and returns what :meth:`repeat` needs to do it again without the fit."""
        set_seed(self._schedule.seed)
        after, reduction = self._reduce(chosen)
        sites = {name: self._groups.spread(chosen, False)[name] for name in self._stated}
        names = tuple(name for name, reduced in sites.items() if reduced.any())
        refitted = follow(self.current, after, self._delta_evidence, names, self._open, tell, state)
        self._finish(chosen, after, reduction, refitted)
        numbers = {f.name: getattr(refitted, f.name) for f in fields(Refit) if f.name not in ("model", "guide")}
        parameters = [value.detach().clone() for value in after.parameters()]
        return {"chosen": chosen, "parameters": parameters, "refit": numbers}

    def repeat(self, done: Mapping[str, Any]) -> None:
        """Does a round again that a checkpoint tells of."""
        after, reduction = self._reduce(done["chosen"])
        with torch.no_grad():
            for parameter, value in zip(after.parameters(), done["parameters"], strict=True):
                parameter.copy_(value)
        refitted = Refit(**{**done["refit"], "model": after.model, "guide": after.guide})
        self._finish(done["chosen"], after, reduction, refitted)

    def _reduce(self, chosen: Tensor) -> tuple[Objective, Reduction]:
        """The reduction of the groups chosen, with the points that there are already."""
        now, all_of_them = (self._groups.spread(groups, False) for groups in (chosen, chosen | self.reduced))
        reduced = {name: all_of_them[name] if name in self._points else now[name] for name in self._stated}
        fitted = self._open
        stated = {
            name: mix(fitted.prior(name), self._stated[name], elements)
            for name, elements in reduced.items()
            if elements.any()
        }
        reduction = reduce_posterior(fitted, stated)
        return Objective(reduction.model, reduction.new_guide(), self._schedule, fitted.args, fitted.kwargs), reduction

    def _finish(self, chosen: Tensor, after: Objective, reduction: Reduction, refitted: Refit) -> None:
        priors = reduction.reduced_priors
        open_model = self._open.model
        if priors.sites - self._points:
            free = {name: partial(priors.at, name) for name in priors.sites - self._points}
            stated = {name: at({}) for name, at in free.items()}
            open_model = reduced_model(open_model, read_reduced_priors(stated, list(stated), (), {}))
        guide: ReducedGuide = after.guide
        self._open = read_guide(
            unpinned_guide(guide, self._open, open_model), open_model, after.args, dict(after.kwargs)
        )
        self.current, self.reduced = after, self.reduced | chosen
        names = tuple(self._groups.names[place] for place in chosen.nonzero().squeeze(-1).tolist())
        self.rounds.append(Round(names, refitted))

    def result(self) -> IteratedReduction:
        """What it has come to."""
        kept = tuple(self._groups.names[place] for place in (~self.reduced).nonzero().squeeze(-1).tolist())
        reduced = self._groups.spread(self.reduced, False)
        return IteratedReduction(self.current.model, self.current.guide, reduced, kept, tuple(self.rounds))
