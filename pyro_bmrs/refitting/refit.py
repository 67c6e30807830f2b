# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A check of a reduction: :func:`refit` trains on from the reduced posterior and says what that changed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceTMC_ELBO
from pyro.infer.elbo import ELBO
from tqdm.auto import tqdm

from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.posteriors.guides.moment_guides import guide_at_moments
from pyro_bmrs.posteriors.guides.pickles import signature
from pyro_bmrs.posteriors.reading import bare_model
from pyro_bmrs.posteriors.reduced_guide import DrawsGuide, ReducedGuide
from pyro_bmrs.posteriors.traces import latent_nodes
from pyro_bmrs.reduction.reduction import Reduction
from pyro_bmrs.refitting.checkpoints import Checkpoint
from pyro_bmrs.refitting.divergence import Posteriors
from pyro_bmrs.refitting.training import Objective, Schedule, Training, mean_and_error
from pyro_bmrs.structure.packed import holds_draws
from pyro_bmrs.structure.vectorised import TURN, own_random_numbers, set_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

# Nats that more steps may gain with a guide that has been fitted.
_LARGEST_GAIN = 0.1
_MOMENT_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Refit:
    """
    A reduced model, fitted further from its reduced posterior. Made by :func:`refit`.

    :param model: the reduced model.
    :param guide: the refitted guide.
    :param reduced_sites: the sites whose prior was reduced.
    :param delta_evidence: what the reduction said: the change in log evidence in nats.
    :param delta_elbo: ELBO of the refitted guide under the reduced model less that of the fitted guide under the full
        model, in nats; where refitting gained anything, the latter was trained on as well, so that what the fit had
        left undone is on neither side.
    :param standard_error: of ``delta_elbo``, from the same random numbers on both sides.
    :param initial_delta_elbo: the same before the first step: of the reduced posterior, or of the guide begun with.
    :param initial_standard_error: of ``initial_delta_elbo``.
    :param divergence: of each site whose two densities are known, the Kullback-Leibler divergence (nats) of the reduced
        posterior, or what was begun with, from the refitted one: what is lost where the one stands for the other.
    :param divergence_error: the standard error of each; 0 where there is a closed form.
    :param num_steps: how many steps of SVI it took.
    :param converged: whether the ELBO had stopped improving.
    :param fit_gain: by how much more steps raised the ELBO of the fitted guide itself, in nats; 0 where it had
        converged.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs import reduce_model, refit
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> def exact(y):
        ...     pyro.sample("mean", dist.Normal(0.5, 0.5))
        >>> y = torch.tensor([0.4, 0.7, 0.9])
        >>> pyro.clear_param_store()
        >>> guide = AutoNormal(model, init_loc_fn=lambda site: torch.tensor(0.5), init_scale=0.5)
        >>> _ = guide(y)
        >>> check = refit(model, guide, reduce_model(guide, {"mean": dist.Normal(0.0, 0.5)}), num_particles=100)
        >>> abs(check.delta_elbo - check.delta_evidence) < 0.1, sorted(check.divergence)
        (True, ['mean'])
    """

    model: Callable[..., Any]
    guide: Any
    reduced_sites: tuple[str, ...]
    delta_evidence: float
    delta_elbo: float
    standard_error: float
    initial_delta_elbo: float
    initial_standard_error: float
    divergence: dict[str, float]
    divergence_error: dict[str, float]
    num_steps: int
    converged: bool
    fit_gain: float = 0.0

    @property
    def discrepancy(self) -> float:
        """By how much the change in ELBO exceeds the change in log evidence that the reduction promised, in nats."""
        return self.delta_elbo - self.delta_evidence

    def __repr__(self) -> str:
        return f"Refit({', '.join(self.reduced_sites)}): {self._headline()}"

    def _headline(self) -> str:
        state = "converged" if self.converged else "not converged"
        text = (
            f"ΔF = {self.delta_evidence:.2f} nats, ΔELBO = {self.delta_elbo:.2f} ± {self.standard_error:.2g} nats "
            f"after {self.num_steps} steps ({state})"
        )
        if self.fit_gain > _LARGEST_GAIN:
            text += f"; the fitted guide had not converged, by {self.fit_gain:.2g} nats"
        if not self.divergence:
            return text
        site = max(self.divergence, key=self.divergence.__getitem__)
        return f"{text}; the posterior moved most at {site!r}, by {self.divergence[site]:.2g} nats"

    def summary(self) -> pd.DataFrame:
        """A table of the sites: how far (nats) the refitted posterior is from the reduced one."""
        import pandas as pd

        columns = {"divergence": self.divergence, "standard_error": self.divergence_error}
        return pd.DataFrame(columns, dtype=float).rename_axis("site")


def refit(
    model: Callable[..., Any],
    guide: Any,
    reduction: Reduction,
    *,
    start: Any = None,
    loss: ELBO | None = None,
    learning_rates: Sequence[float] = (0.1, 0.01),
    window: int = 100,
    tolerance: float = 0.02,
    max_steps: int = 10_000,
    num_particles: int = 500,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Refit:
    """
    Fits the reduced model further by SVI, from the reduced posterior, and compares with what the reduction said.

    Where refitting gains anything, a copy of the fitted guide is trained on under the full model as well: a fit that
    had not converged gains under any prior, its own too, and says nothing of the reduction.

    Refitting can only raise the ELBO of the reduced model. Where it ends close to Delta F with the posterior where it
    was, the reduction was right; where it moves far, the fitted guide (a mean-field one, say) did not know what the
    reduction asked of it. Parameters of the model itself stay as they were fitted, as they do in the reduction, and so
    does the fitted guide.

    The ELBO is compared on the same random numbers from one window of steps to the next. Where it improves by less than
    ``tolerance``, or than can be told from noise, Adam goes on from the best so far at the next learning rate, and has
    converged after the last.

    After importance sampling, the reduced posterior, or a part of it, is weighted draws, which SVI cannot train. Then a
    new guide of the fitted one's kind begins at their moments (``AutoNormal``, ``AutoDiagonalNormal`` and
    ``AutoMultivariateNormal``), or the one given as ``start``.

    :param model: the full model.
    :param guide: the guide that was fitted to it.
    :param reduction: what :func:`~pyro_bmrs.reduce_model` made of them.
    :param start: a guide for ``reduction.model`` to begin with, which is trained in place; the reduced posterior by
        default.
    :param loss: the ELBO, both to train and to compare; ``Trace_ELBO()`` by default. Enumerated sites need
        ``TraceEnum_ELBO``.
    :param learning_rates: of Adam, one after the other, in units of each parameter's standard error (of a normal's
        location: its standard deviation).
    :param window: steps between comparisons.
    :param tolerance: smallest improvement of the ELBO in a window, in nats, that is worth going on for.
    :param max_steps: after which to stop in any case.
    :param num_particles: draws for the ELBOs that are reported.
    :param seed: of all random numbers; the global generators are left as they are.
    :param checkpoint: a file to keep the state in, after each window of steps. An interrupted refit goes on from there
        when it is called again with the same arguments (``start``, where it is given, as it was then), and ends as if
        it had never been interrupted.
    :param progress: whether to show a progress bar.
    :return: the :class:`Refit`.
    :raises ReductionError: for another guide or model than the reduction's, a reduction of draws that no guide was
        fitted to, a guide that cannot be begun at weighted draws, a loss that is no ELBO, learning rates that are not
        positive, a window, ``max_steps``, ``num_particles`` or a seed that is no integer or too small, a negative
        tolerance, an ELBO that is not finite, or a checkpoint that is truncated, another kind of file, or of
        another task, which is left as it is.
    :warns ReductionWarning: where ``max_steps`` were not enough, and where the fitted guide had not converged.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import reduce_model, refit
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0., 1.))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.), obs=y)
        >>> y = torch.tensor([0.3, -0.2, 0.4, 0.1])
        >>> guide = AutoNormal(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        >>> for _ in range(500): loss = svi.step(y)
        >>> check = refit(model, guide, reduce_model(guide, dist.Normal(0., 0.3)), num_particles=1000)
        >>> abs(check.discrepancy) < 0.1
        True
    """
    if loss is None:
        loss = Trace_ELBO()
    schedule = Schedule(loss, learning_rates, window, tolerance, max_steps, num_particles, seed)
    store = Checkpoint(checkpoint, "refit")
    with TURN, own_random_numbers(), torch.enable_grad():
        full = _read(model, guide, reduction)
        _check_loss(full, loss)
        set_seed(seed)
        begun = _start(reduction) if start is None else start
        # One of its own, since it may be trained.
        whole = full.with_statements({}, full.model)
        before = Objective(full.model, whole, schedule, full.args, full.kwargs)
        after = Objective(reduction.model, begun, schedule, full.args, full.kwargs)
        origin = reduction.fitted if start is None and isinstance(reduction.fitted, FittedGuide) else None
        task = {} if checkpoint is None else _signature(before, after, reduction)
        kept = store.read(task)

        def tell(training: Training) -> None:
            store.write(task, {"training": training.state()})
            bar.update(training.num_steps - bar.n)

        with tqdm(total=max_steps, desc="refitting", disable=not progress, leave=False) as bar:
            result = follow(
                before,
                after,
                float(reduction.delta_evidence.detach()),
                reduction.reduced_sites,
                origin,
                tell,
                None if kept is None else kept["training"],
                settle=True,
            )
    if result.fit_gain > _LARGEST_GAIN:
        warnings.warn(
            f"the fitted guide had not converged: more steps raise its own ELBO by {result.fit_gain:.2g} nats, so that "
            "what was read off it is in doubt; fit it further, and reduce again",
            ReductionWarning,
            stacklevel=2,
        )
    if not result.converged:
        warn_not_converged(result.num_steps, stacklevel=3)
    return result


def _signature(before: Objective, after: Objective, reduction: Reduction) -> dict[str, Any]:
    """What tells a refit from another: its settings, and what they give at first."""
    return {
        **after.schedule.signature(),
        "reduced sites": list(reduction.reduced_sites),
        "reduced priors": reduction.delta_evidence.detach().double(),
        "model, guide or arguments": torch.from_numpy(before.elbos(2)),
        "start, or reduced posterior": torch.from_numpy(after.elbos(2)),
    }


def warn_not_converged(num_steps: int, stacklevel: int) -> None:
    """Warns that more steps are needed."""
    message = f"the refit had not converged after {num_steps} steps; raise max_steps="
    warnings.warn(message, ReductionWarning, stacklevel=stacklevel)


def _read(model: Callable[..., Any], guide: Any, reduction: Reduction) -> FittedGuide:
    """The fitted guide and the model, with the arguments that they were reduced with."""
    if not isinstance(reduction, Reduction):
        raise ReductionError(f"reduction is a {type(reduction).__name__}; pass what reduce_model returns")
    reduced = reduction.fitted
    if not isinstance(reduced, FittedGuide):
        raise ReductionError(
            "this is a reduction of draws, which have no ELBO to compare with; fit a guide and reduce that, or compare "
            "with another MCMC run"
        )
    given = reduced.guide if reduced.given is None else reduced.given
    # The guide that comes out of a pickle is a copy, to be known by its kind.
    if not (signature(guide) == reduced.signature if reduced.restored else _is_same(guide, given)):
        raise ReductionError("this is a reduction of another guide; pass the one that reduce_model was given")
    full = FittedGuide(reduced.unreduced_guide, bare_model(model), reduced.args, reduced.kwargs)
    with own_random_numbers():
        if full.latent != reduced.latent:
            raise ReductionError(
                f"the model has the latent sites {sorted(full.latent)}, and the one that was reduced has "
                f"{sorted(reduced.latent)}; pass the model that the guide was fitted to"
            )
    return full


def _check_loss(full: FittedGuide, loss: ELBO) -> None:
    """Whether an ELBO sums over the discrete sites that the guide leaves to be summed."""
    nodes = latent_nodes(full.traces[1])
    summed = sorted(name for name in full.latent - full.sites if nodes[name]["fn"].has_enumerate_support)
    if summed and not isinstance(loss, (TraceEnum_ELBO, TraceTMC_ELBO)):
        raise ReductionError(
            f"the guide leaves the discrete sites {summed} to be summed out, and {type(loss).__name__} draws them from "
            "their priors, so that its ELBO is another; pass loss=TraceEnum_ELBO(), or the one that the guide was "
            "fitted with"
        )


def _is_same(guide: Any, other: Any) -> bool:
    """Whether two guides are one; a method is another object each time that it is asked for."""
    is_method = isinstance(guide, MethodType) and isinstance(other, MethodType)
    if is_method:
        return guide.__self__ is other.__self__ and guide.__func__ is other.__func__
    return guide is other


def _start(reduction: Reduction) -> Any:
    """A guide of its own at the reduced posterior."""
    guide, fitted, model = reduction.new_guide(), reduction.fitted, reduction.model
    if isinstance(guide, ReducedGuide) and any(map(holds_draws, guide.current_statements().values())):
        values = FittedGuide(guide, model, fitted.args, fitted.kwargs).draw((), _MOMENT_DRAWS).values
        guide = DrawsGuide(model, values, next(iter(values.values())).new_zeros(_MOMENT_DRAWS))
    if isinstance(guide, DrawsGuide):
        return guide_at_moments(fitted.guide, model, guide, fitted.args, fitted.kwargs)
    return guide


def follow(
    before: Objective,
    after: Objective,
    delta_evidence: float,
    reduced_sites: tuple[str, ...],
    origin: FittedGuide | None,
    tell: Callable[[Training], Any],
    state: Mapping[str, Any] | None = None,
    *,
    settle: bool = False,
) -> Refit:
    """
    Trains the guide of ``after`` and says what that changed. To be called with random numbers of one's own.

    :param before: the full model and its guide.
    :param after: the reduced model and the guide to be trained.
    :param delta_evidence: what the reduction of the one to the other said, in nats.
    :param reduced_sites: the sites whose prior was reduced.
    :param origin: the guide that the one to be trained was made from, where that tells what its points are.
    :param tell: called after each window.
    :param state: where an earlier training had come to.
    :param settle: whether the guide of ``before`` is trained, too, where that of ``after`` gains anything.
    """
    num_particles = after.schedule.num_particles
    elbos, first = before.elbos(num_particles), after.elbos(num_particles)
    begun = Posteriors.of(after, origin)
    training = Training(after)
    if state is not None:
        training.restore(state)
    while not training.finished:
        training.advance()
        tell(training)
    divergence = Posteriors.of(after, origin).divergences_from(begun)
    settled = _settled(before, elbos) if settle and training.has_gained else elbos
    return Refit(
        after.model,
        after.guide,
        reduced_sites,
        delta_evidence,
        *mean_and_error(after.elbos(num_particles) - settled),
        *mean_and_error(first - elbos),
        {name: value for name, (value, _) in divergence.items()},
        {name: error for name, (_, error) in divergence.items()},
        training.num_steps,
        training.converged,
        float((settled - elbos).mean()),
    )


def _settled(objective: Objective, elbos: np.ndarray) -> np.ndarray:
    """The ELBOs of a guide once it is trained for as long as it gains by that."""
    training = Training(objective)
    while not training.finished:
        training.advance()
    return objective.elbos(len(elbos)) if training.has_gained else elbos
