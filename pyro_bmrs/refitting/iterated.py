# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Iterated reduction: reduce, refit, and reduce again until nothing changes, by :func:`reduce_iteratively`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_bmrs.reduction.check import Check
from pyro_bmrs.reduction.priors import ReducedPriorLike
from pyro_bmrs.refitting.checkpoints import Checkpoint
from pyro_bmrs.refitting.refit import warn_not_converged
from pyro_bmrs.refitting.rounds import Round, State, Task, advance, check, choose, confirm, read_task, repeat, search
from pyro_bmrs.refitting.training import Schedule, Training
from pyro_bmrs.search.groups import GroupsLike
from pyro_bmrs.search.model_space import ModelSpace
from pyro_bmrs.structure.vectorised import TURN, own_random_numbers, set_seed

if TYPE_CHECKING:
    import pandas as pd

_MOST_NAMED = 8


@dataclass(frozen=True, eq=False)
class IteratedReduction:
    """
    A model whose groups were reduced in rounds, with a refit after each. Made by :func:`reduce_iteratively`.

    :param model: the reduced model.
    :param guide: the guide fitted to it.
    :param reduced: for each site, which of its elements took their reduced prior.
    :param kept: names of the groups that kept their full prior.
    :param rounds: what was done in each round.
    :param checked: what the model says of all the reductions together; None where it is too large to be asked unasked.

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
        >>> result.reduced, result.kept, len(result.rounds)
        ({'mean': tensor(True)}, (), 1)
    """

    model: Callable[..., Any]
    guide: Any
    reduced: dict[str, Tensor]
    kept: tuple[str, ...]
    rounds: tuple[Round, ...]
    checked: Check | None = None

    @property
    def delta_evidence(self) -> float:
        """
        The changes in log evidence of the rounds, added up, in nats: as the model has them where it was asked, else as
        the guides promised.
        """
        return sum(done.refit.delta_evidence for done in self.rounds)

    @property
    def delta_elbo(self) -> float:
        """
        ELBO of the guide under the reduced model less that of the first guide under the full model, in nats.

        An ELBO is a lower bound of the evidence, and of a mean-field guide a loose one where coefficients are
        correlated. Where the reduction takes the correlation away, this grows by more than the evidence does.
        """
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
            f"{len(self.rounds)} rounds{state}): {self._evidence()}, ΔELBO = {self.delta_elbo:.2f} nats"
        )

    def _evidence(self) -> str:
        if self.checked is None:
            return f"ΔF = {self.delta_evidence:.2f} nats (of the guides, not checked against the model)"
        doubt = "" if self.checked.trusted else ", not to be trusted: an integral has not converged"
        return f"ΔF = {self.checked.delta_evidence:.2f} ± {self.checked.standard_error:.2g} nats by the model{doubt}"

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
    args: tuple[Any, ...] = (),
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
    What is reduced stays so. Where the model is so small that ``check="auto"`` of :func:`~pyro_bmrs.reduce_model` asks
    it, each round's choice is held against it: what its evidence does not bear out is not reduced.

    An interrupted run with a ``checkpoint`` goes on from its last window of SVI steps when it is called again with the
    same arguments, and ends as if it had never been interrupted.

    :param model: the full model.
    :param guide: a guide fitted to it, whose posterior of the reduced sites is independent or jointly normal.
    :param reduced_prior: the reduced priors, as for :func:`~pyro_bmrs.search_models`.
    :param args: positional arguments of model and guide; autoguides remember those of their first run.
    :param kwargs: keyword arguments of both, remembered as those are.
    :param groups: what is reduced together: ``"element"``, ``"site"``, or named groups.
    :param prior_log_odds: prior log odds of a group's reduction, in nats, one number or one for each group.
    :param checkpoint: a file to keep the state in, after each window of SVI steps.
    :param progress: whether to show a progress bar.
    :param settings: ``loss``, ``learning_rates``, ``window``, ``tolerance``, ``max_steps`` (of each round),
        ``num_particles`` and ``seed``, as for :func:`~pyro_bmrs.refit`.
    :return: the :class:`IteratedReduction`. The guide given is left as it is.
    :raises ReductionError: for a checkpoint that is truncated, another kind of file, or of another task, which is left
        as it is, and for whatever :func:`~pyro_bmrs.search_models` or :func:`~pyro_bmrs.refit` object to.
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
    bar = tqdm(desc="reducing iteratively", unit=" steps", disable=not progress)
    with TURN, bar, own_random_numbers(), torch.enable_grad():
        set_seed(schedule.seed)
        task, state, space = read_task(model, guide, reduced_prior, args, kwargs, groups, prior_log_odds, schedule)
        signature = _signature(task, state, space)
        first = state
        kept = store.read(signature) or {"rounds": [], "training": None, "finished": False}
        for done in kept["rounds"]:
            state = repeat(task, state, done)
        while not kept["finished"]:
            choice = choose(state, search(task, state) if state.rounds else space)
            choice = None if choice is None else confirm(task, first, state, choice)
            if choice is None:
                kept = {**kept, "finished": True}
                store.write(signature, kept)
                break

            def keep(training: Training, kept: dict[str, Any] = kept) -> None:
                store.write(signature, {**kept, "training": training.state()})
                bar.update(training.num_steps - bar.n)

            bar.set_postfix(round=len(state.rounds) + 1, reduced=int(state.reduced.sum()))
            bar.reset()
            state, done = advance(task, state, choice, keep, kept["training"])
            kept = {"rounds": [*kept["rounds"], done], "training": None, "finished": False}
            store.write(signature, kept)
        checked = check(task, first, state.reduced)
    for finished in state.rounds:
        if not finished.refit.converged:
            warn_not_converged(finished.refit.num_steps, stacklevel=3)
    return IteratedReduction(
        state.current.model,
        state.current.guide,
        task.groups.spread(state.reduced, False),
        task.names(~state.reduced),
        state.rounds,
        checked,
    )


def _signature(task: Task, first: State, space: ModelSpace) -> dict[str, Any]:
    """What tells a task from another: its groups and settings, and what they give at first."""
    changes = [delta.double().reshape(-1) for delta in space.delta_evidence.values()]
    return {
        **task.schedule.signature(),
        "groups": list(task.groups.names),
        "prior log odds": task.log_odds,
        "bmrs_automatic_check": bool(pyro.settings.get("bmrs_automatic_check")),
        "model, guide or reduced priors": torch.cat(changes),
        "model, guide or arguments": torch.from_numpy(first.current.elbos(2)),
    }
