# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The front door to spaces of models: :func:`search_models`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs import evidence
from pyro_bmrs.errors import ReductionError, name_of_unknown, naming
from pyro_bmrs.evidence.registry import Reduced
from pyro_bmrs.integration.stated_model import LogDensity, PriorLike, read_stated
from pyro_bmrs.posteriors.factors import parted
from pyro_bmrs.posteriors.fitted_draws import FittedDraws
from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.posteriors.guides.of_draws import normal_of_draws
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.reduction.priors import ReducedPriorLike, ReducedPriors, match_prior, read_reduced_priors
from pyro_bmrs.search.averaging.model_average import AveragedPosterior, NormalPosterior, SwitchingPosterior
from pyro_bmrs.search.groups import Candidates, Groups, GroupsLike, read_groups, without
from pyro_bmrs.search.model_space import ModelSpace
from pyro_bmrs.search.observations import is_joint, read_normal_space
from pyro_bmrs.search.probabilities.model_prior import BetaBinomial, ModelPrior, read_model_prior
from pyro_bmrs.search.probabilities.models import ModelPosterior
from pyro_bmrs.search.refinement.refine import Refined, Refinement
from pyro_bmrs.search.strategies.independent_search import search_independent
from pyro_bmrs.search.strategies.normal_search import MAX_MODELS, STRATEGIES, search_normal
from pyro_bmrs.search.strategies.sampling import NUM_STEPS
from pyro_bmrs.structure.copies import with_own_tensors
from pyro_bmrs.structure.vectorised import TURN
from pyro_bmrs.tables import LabelsLike


def search_models(
    guide: Any,
    reduced_prior: ReducedPriorLike,
    *,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    prior: PriorLike | None = None,
    log_density: LogDensity | None = None,
    groups: GroupsLike = "element",
    strategy: str = "auto",
    always: str | Sequence[str] = (),
    prior_log_odds: float | Tensor = 0.0,
    model_prior: BetaBinomial | None = None,
    heredity: Mapping[str, str | Sequence[str]] | None = None,
    max_models: int = MAX_MODELS,
    num_steps: int = NUM_STEPS,
    check: int = 0,
    refine: bool | str = "auto",
    labels: LabelsLike | None = None,
    progress: bool = False,
) -> ModelSpace:
    """
    All the models in which some elements take a reduced prior and the others keep their own, from one fit.

    With n groups of elements there are 2^n models. Where the guide's posterior is independent between elements, the
    best model and the probabilities of all follow from the elements alone. Where it is jointly normal
    (``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal``, ``AutoLaplaceApproximation``), the models are
    counted through as long as they are no more than ``max_models``, and beyond drawn from their posterior by several
    walks, which tell by how they differ how far to trust them. The reduced priors then have to be normals narrower than
    the prior (in unconstrained coordinates), or points.

    Draws are searched as the joint normal of their moments, in unconstrained coordinates.

    All of one fit, as K. Friston and W. Penny (2011), *Post hoc Bayesian model selection*,
    https://doi.org/10.1016/j.neuroimage.2011.03.062, have it.

    :param guide: a fitted guide, or draws from the posterior, as for :func:`~pyro_bmrs.reduce_model`.
    :param reduced_prior: the reduced priors, as for :func:`~pyro_bmrs.reduce_model`. ``dist.Delta(x0)`` fixes an
        element at ``x0``.
    :param model: the model, where the guide does not know it.
    :param args: positional arguments of model and guide; autoguides remember those of their first run.
    :param kwargs: keyword arguments of both, remembered as those are.
    :param prior: the priors of draws that know no model, as for :func:`~pyro_bmrs.reduce_model`.
    :param log_density: the log joint density of such draws, as for :func:`~pyro_bmrs.reduce_model`.
    :param groups: what switches together: ``"element"`` (each element by itself), ``"site"`` (each site as a whole), or
        a mapping from the name of a group to what is in it: a site, several sites, or a mapping from site to an index
        of its elements, or their names. Elements in no group keep their prior.
    :param strategy: ``"exhaustive"`` insists on all models, ``"sample"`` on models at random; ``"greedy"`` climbs to
        the best model, from several starts, by single flips and by pairs, and knows those around it. ``"auto"`` decides
        by ``max_models``, and climbs where there are more than 400 elements. An independent posterior needs none of
        them where the prior of models is independent, too.
    :param always: names of groups (of elements: ``"weights[0]"``) that keep their full prior in all models.
    :param prior_log_odds: prior log odds of a group's reduction, in nats, one number or one for each group; positive
        favours small models. 0 gives all models the same prior probability.
    :param model_prior: a prior over the number of groups kept, :func:`~pyro_bmrs.search.beta_binomial`, beside the
        odds.
    :param heredity: for the name of a group, the group or groups without which no model keeps it: for an interaction,
        its main effects.
    :param max_models: how many models may be counted through.
    :param num_steps: of each of the sixteen walks by which models are drawn.
    :param check: how many of the most probable models to hold against the model; see :meth:`ModelSpace.check`.
    :param refine: whether to take the evidence of each model from the model's own density, as
        :meth:`ModelSpace.refine` does. ``"auto"`` does where that costs less than fitting did: with a guide that is a
        joint normal of all sites, in models of up to some fifty coordinates, and with any other as with ``check`` of
        :func:`~pyro_bmrs.reduce_model`, in models small enough to be integrated. ``source`` and ``summary()`` say what
        inclusion probabilities go by, ``repr()`` and ``unrefined`` why. ``True`` insists.
        ``pyro.settings.set(bmrs_automatic_check=False)`` makes False of it.
    :param labels: names of a site's elements, as for :func:`~pyro_bmrs.reduce_model`.
    :param progress: whether to show a progress bar.
    :return: the :class:`ModelSpace`.
    :raises ReductionError: for what the caller can mend: unknown, empty or overlapping groups, a space too large to be
        counted through, a posterior of no known density, priors that depend on other sites or are not normal, and
        whatever :func:`~pyro_bmrs.reduce_model` objects to.
    :warns ReductionWarning: of the models checked, where the model says something else of their evidence or of their
        order, or its integrals are not to be trusted; of draws that are far from normal, or have not mixed; where the
        walks through the models do not agree; and where inclusion probabilities are off, by the model's density.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import search_models
        >>> def model():
        ...     pyro.sample("weights", dist.Normal(torch.zeros(3), 1.).to_event(1))
        >>> pyro.clear_param_store()
        >>> guide = AutoNormal(model, init_scale=0.1); _ = guide()
        >>> with torch.no_grad():
        ...     _ = guide.locs.weights.copy_(torch.tensor([0.02, 0.2, 2.0]))
        >>> space = search_models(guide, dist.Delta(torch.tensor(0.)))
        >>> space
        ModelSpace(3 groups, 8 models, factorised):
        the best reduces weights[0], weights[1]; ΔF = 2.59 nats, probability 0.522 (of the guide, not checked against
        the model; inclusion probabilities may be off: not refined, as the model has no data)
        >>> space.inclusion_probability["weights"]
        tensor([0.0926, 0.4249, 1.0000], dtype=torch.float64)
    """
    if strategy not in STRATEGIES:
        raise ReductionError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}, not {strategy!r}")
    if not isinstance(num_steps, int) or num_steps < 2:
        raise ReductionError(f"num_steps must be how many steps a walk takes, at least 2, not {num_steps!r}")
    if not isinstance(check, int) or check < 0:
        raise ReductionError(f"check must be how many of the models to hold against the model, not {check!r}")
    if refine not in (True, False, "auto"):
        raise ReductionError(f"refine must be 'auto', True or False, not {refine!r}")
    over_models = _StatedPrior(always, prior_log_odds, model_prior, heredity)
    how = _How(strategy, max_models, num_steps, progress)
    with TURN:
        fitted = read_stated(guide, model, args, kwargs, prior, log_density, labels)
        found = _search(fitted, reduced_prior, groups, over_models, how)
        space, refined = _refined_where_cheap(found) if refine == "auto" else (ModelSpace(*found), None)
        if refine is True:
            space = space.refine()
        if check:
            space.check(check, progress=progress)
    if refined is not None:
        refined.warn(found.candidates.fitted.noun, stacklevel=3)
    return space


@dataclass(frozen=True)
class _StatedPrior:
    """What the user says of the prior of models."""

    always: str | Sequence[str]
    log_odds: float | Tensor
    by_size: BetaBinomial | None
    heredity: Mapping[str, str | Sequence[str]] | None

    def groups(self, groups: GroupsLike, shapes: Mapping[str, torch.Size], candidates: Candidates) -> Groups:
        """Those that switch."""
        whole = read_groups(groups, shapes, candidates.example.device, candidates.fitted.labels)
        return without(whole, self.always) if self.always else whole

    def read(self, groups: Groups, like: Tensor) -> ModelPrior:
        """The prior of models; ``like`` is a number for each group."""
        return read_model_prior(groups, _read_log_odds(self.log_odds, like), self.by_size, self.heredity)


class _How(NamedTuple):
    """How to go through the models."""

    strategy: str
    max_models: int
    num_steps: int
    progress: bool


class _Found(NamedTuple):
    """What a search has found: what a :class:`ModelSpace` is made of."""

    candidates: Candidates
    groups: Groups
    models: ModelPosterior
    posterior: AveragedPosterior
    strategy: str


@torch.no_grad()
def _refined_where_cheap(found: _Found) -> tuple[ModelSpace, Refined | None]:
    """With the evidence of the model's density, where that is cheap; else it says why not."""
    refined, why_not = Refinement(found.candidates, found.groups, found.posterior, found.models).where_cheap()
    if refined is None:
        space = ModelSpace(*found)
        space.unrefined = why_not
        return space, None
    models, posterior, agreement, _ = refined
    return ModelSpace(found.candidates, found.groups, models, posterior, "refined", agreement), refined


def _search(
    posterior: Posterior, reduced_prior: ReducedPriorLike, groups: GroupsLike, prior: _StatedPrior, how: _How
) -> _Found:
    with torch.no_grad():
        stated = read_reduced_priors(reduced_prior, posterior.latent, posterior.args, posterior.kwargs)
        fitted: Any = normal_of_draws(posterior, stated.sites) if isinstance(posterior, FittedDraws) else posterior
        _check_searchable(fitted, stated)
        fitted.keep()
        priors = {name: with_own_tensors(fitted.prior(name)) for name in sorted(stated.sites)}
        reduced_priors = {name: match_prior(name, stated.at(name, {}), own) for name, own in priors.items()}
        candidates = Candidates(fitted, priors, reduced_priors)
        if any(is_joint(fitted.factor_of[name]) for name in priors):
            return _search_joint(candidates, groups, prior, how)
        return _factorise(candidates, groups, prior, how)


def _search_joint(candidates: Candidates, groups: GroupsLike, stated: _StatedPrior, how: _How) -> _Found:
    fitted, priors, reduced_priors = candidates
    shapes = {name: prior.batch_shape + prior.event_shape for name, prior in priors.items()}
    chosen = stated.groups(groups, shapes, candidates)
    factors = list(dict.fromkeys(fitted.factor_of[name] for name in priors))
    space = read_normal_space(factors, priors, reduced_priors, chosen)
    prior = stated.read(chosen, space.constants)
    models, strategy = search_normal(space, prior, how.strategy, how.max_models, how.progress, how.num_steps)
    return _Found(candidates, chosen, models, NormalPosterior(space, candidates.example.dtype), strategy)


def _factorise(candidates: Candidates, groups: GroupsLike, stated: _StatedPrior, how: _How) -> _Found:
    fitted, priors, reduced_priors = candidates
    switched = {
        name: _switched(name, fitted.factor_of[name].posterior(name), prior, reduced_priors[name])
        for name, prior in priors.items()
    }
    delta_evidence = {name: reduced.delta_evidence for name, (_, reduced) in switched.items()}
    shapes = {name: values.shape for name, values in delta_evidence.items()}
    chosen = stated.groups(groups, shapes, candidates)
    alone = chosen.total(delta_evidence)
    prior = stated.read(chosen, alone)
    models, strategy = search_independent(alone, prior, how.strategy, how.max_models, how.progress, how.num_steps)
    sides = {name: (full, reduced.posterior) for name, (full, reduced) in switched.items()}
    return _Found(candidates, chosen, models, SwitchingPosterior(sides, chosen), strategy)


def _check_searchable(fitted: FittedGuide, stated: ReducedPriors) -> None:
    """Each reduced site must have a posterior, a prior and a reduced prior that depend on no other site."""
    for name in stated.sites - fitted.sites:
        raise name_of_unknown(name, fitted.sites, "the guide")
    upstream = fitted.upstream(stated.sites)
    for name in sorted(stated.sites):
        if name not in fitted.factor_of:
            raise ReductionError(
                f"the guide's posterior of site {name!r} has no known density, so its models cannot be searched; use "
                "reduce_model, which samples, or a guide such as AutoMultivariateNormal"
            )
        others = sorted(upstream[name] | stated.upstream[name])
        if others:
            raise ReductionError(
                f"the posterior, the prior or the reduced prior of site {name!r} depends on {others}, so the evidence "
                "of its elements has no closed form; use reduce_model, which samples"
            )
        if fitted.multiplicity(name) != 1.0:
            raise ReductionError(
                f"the guide knows site {name!r} on a subsample of its plate alone; pass args= for which nothing is "
                "subsampled"
            )


def _switched(
    name: str, posterior: Distribution, prior: Distribution, reduced_prior: Distribution
) -> tuple[Distribution, Reduced]:
    """A site's posterior and its reduction, element by element where its elements can be parted."""
    q, p, r = parted(posterior, prior, reduced_prior)
    with naming(name):
        reduced = evidence.reduce(q, p, r)
    return q.expand(reduced.delta_evidence.shape), reduced


def _read_log_odds(prior_log_odds: float | Tensor, groups: Tensor) -> Tensor:
    """Prior log odds for each of the groups, along which ``groups`` lies."""
    log_odds = torch.as_tensor(prior_log_odds).to(groups)
    if log_odds.shape not in ((), groups.shape):
        raise ReductionError(
            f"prior_log_odds has shape {tuple(log_odds.shape)}; give one number, or one for each of the {len(groups)} "
            "groups"
        )
    if not log_odds.isfinite().all():
        raise ReductionError("prior_log_odds must be finite; name in always= what is to keep its prior for sure")
    return log_odds.expand(groups.shape)
