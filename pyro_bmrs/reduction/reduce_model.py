# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The front door: :func:`reduce_model`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from pyro_bmrs.errors import ReductionError, ReductionWarning, name_of_unknown
from pyro_bmrs.evidence.dispatch import METHODS as METHODS_OF_EVIDENCE
from pyro_bmrs.evidence.dispatch import NUM_SAMPLES
from pyro_bmrs.integration.stated_model import LogDensity, PriorLike, check_density, read_stated
from pyro_bmrs.posteriors.draws import Draws
from pyro_bmrs.posteriors.guides.branches import read_branches
from pyro_bmrs.posteriors.posterior import FactoredPosterior, Posterior
from pyro_bmrs.reduction.automatic import check_where_cheap
from pyro_bmrs.reduction.factorwise import BranchedReduction, FactorwiseReduction
from pyro_bmrs.reduction.integrated import IntegratedReduction
from pyro_bmrs.reduction.priors import ReducedPriorLike, ReducedPriors, read_reduced_priors
from pyro_bmrs.reduction.reduction import Reduction
from pyro_bmrs.reduction.weighted import DrawnReduction
from pyro_bmrs.structure.layers import has_points, is_point
from pyro_bmrs.structure.vectorised import TURN
from pyro_bmrs.tables import LabelsLike

METHODS = (*METHODS_OF_EVIDENCE, "integration")


def reduce_model(
    guide: Any,
    reduced_prior: ReducedPriorLike,
    *,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    prior: PriorLike | None = None,
    log_density: LogDensity | None = None,
    method: str = "auto",
    num_samples: int = NUM_SAMPLES,
    check: bool | str = "auto",
    labels: LabelsLike | None = None,
    progress: bool = False,
) -> Reduction:
    """
    How the log evidence and the posterior change when some sites get another prior, without refitting.

    The guide stands for the posterior under the model's own priors. With q the posterior, p the prior and r the reduced
    prior of the sites named, the change in log evidence is log E_q[r(x) / p(x)], and the reduced posterior is
    q(x) r(x) / p(x), normalised (Friston, Parr and Zeidman 2018, https://arxiv.org/abs/1805.07092). It is as good as
    the guide is: exact if the guide is the posterior.

    :param guide: a fitted guide: any Pyro autoguide or GuideMessenger, or a callable with sample sites (then ``model``
        is needed); or draws from the posterior: a finished ``pyro.infer.MCMC``; or, with ``model`` or ``prior``, ArviZ
        data (an ``InferenceData`` or ``DataTree``, its posterior group, or what ``arviz.extract`` makes of it), or a
        mapping from name to draws along the first dimension, as ``Predictive`` gives them.
    :param reduced_prior: a distribution (where there is one latent site), a mapping from site name to distribution, or
        a Pyro program whose sample sites are the reduced priors. ``dist.Delta(x0)`` fixes a site at ``x0``.
    :param model: the model, where the guide does not know it.
    :param args: positional arguments of model and guide, as given to ``svi.step``; autoguides and an MCMC run remember
        theirs.
    :param kwargs: keyword arguments of both, remembered as those are.
    :param prior: in the place of ``model``, for draws of another language: the priors of the reduced sites, by site,
        or a Pyro program that samples them (where one depends on another). Other variables are left alone.
    :param log_density: beside ``prior``, the log joint density of data and sites under the full model, in torch, from a
        mapping of site to value: for what draws cannot tell, such as a point. ``prior`` then has all sites, or their
        supports (``torch.distributions.constraints``), in the coordinates of the draws.
    :param method: ``"auto"`` takes the exact rule where there is one, else quadrature for one-dimensional elements,
        else importance sampling, and where the draws are too few for that, or a point is asked for, the integrals of
        the model's density under both priors; ``"exact"``, ``"quadrature"``, ``"importance"`` and ``"integration"``
        insist on one. Integrals have no gradient.
    :param num_samples: draws for importance sampling from a guide; of draws that are there already, all are used.
    :param check: whether to hold the answer against the model at once, as :meth:`Reduction.check` does. ``"auto"``
        checks models so small that a check costs less than their fit: at most 20 coordinates, none of them discrete, a
        density that can be vectorised and makes no tensor of more than 5,000 numbers, and no reduced prior that a
        gradient is asked of. ``repr()`` says where that is not so. ``delta_evidence`` is the posterior's in any case;
        the model's is ``checked.delta_evidence``. ``pyro.settings.set(bmrs_automatic_check=False)`` makes False of it.
    :param labels: names of a site's elements, for tables, figures and ArviZ: for each site that has any, a list of
        names along its one dimension, or a mapping from the name of each dimension to the names along it. ArviZ data
        bring their own.
    :param progress: whether to show a progress bar while drawing.
    :return: the :class:`Reduction`.
    :raises ReductionError: for what the caller can mend: an unknown site, shapes that do not fit, a reduced prior
        outside the prior's support or so broad that the integral diverges, a guide that is not fitted or has no
        density, draws that are not finite or not of the model's sites.
    :warns ReductionWarning: where the importance weights' Pareto k is above 0.7; and of what is checked, where the
        model does not say what the posterior does, or its integrals are not to be trusted; with ``check=True`` also
        where the guide is far from the posterior: where the Pareto k of its own weights is above 0.7.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import reduce_model
        >>> def model(x, y):
        ...     slope = pyro.sample("slope", dist.Normal(0., 1.))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.), obs=y)
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> x = torch.linspace(-2., 2., 50)
        >>> guide = AutoNormal(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        >>> for _ in range(500): loss = svi.step(x, torch.sin(x))
        >>> reduction = reduce_model(guide, dist.HalfNormal(1.))  # is the slope positive?
        >>> reduction.delta_evidence
        tensor(0.6931, grad_fn=<SumBackward0>)
        >>> reduction.checked.agrees
        True
    """
    if method not in METHODS:
        raise ReductionError(f"method must be one of {', '.join(map(repr, METHODS))}, not {method!r}")
    if check not in (True, False, "auto"):
        raise ReductionError(f"check must be 'auto', True or False, not {check!r}")
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ReductionError(f"num_samples must be a positive integer, not {num_samples!r}")
    with TURN:
        fitted = read_stated(guide, model, args, kwargs, prior, log_density, labels)
        reduction = reduce_posterior(fitted, reduced_prior, method, num_samples, progress)
        found = (
            check_where_cheap(reduction) if check == "auto" else reduction.check(progress=progress) if check else None
        )
    # Who asks for a check hears of a small error and of a bad fit, too; else no right answer is doubted.
    if found is not None and found.advice is not None and (check != "auto" or found.misleads):
        warnings.warn(f"{found.words()}. {found.advice}.", ReductionWarning, stacklevel=2)
    return reduction


def reduce_posterior(
    fitted: Posterior,
    reduced_prior: ReducedPriorLike,
    method: str = "auto",
    num_samples: int = NUM_SAMPLES,
    progress: bool = False,
    draws: Draws | None = None,
) -> Reduction:
    """
    What :func:`reduce_model` does once the posterior has been read.

    Factor by factor where posterior, prior and reduced prior of each reduced site have a density of their own; branch
    by branch where they have one at each value of the discrete sites that they depend on; else by draws.

    :param fitted: the posterior, read.
    :param reduced_prior: as for :func:`reduce_model`, as are ``method``, ``num_samples`` and ``progress``.
    :param draws: draws from it to use where importance sampling has to be, rather than new ones.
    :raises ReductionError: as :func:`reduce_model` does.
    """
    priors = read_reduced_priors(reduced_prior, fitted.latent, fitted.args, fitted.kwargs)
    upstream = upstream_of(fitted, priors)
    fitted.keep()
    factored = fitted.factored
    if method != "integration" and factored is not None and not any(map(factored.is_weighted, priors.sites)):
        how = {"method": method, "num_samples": num_samples}
        if all(name in factored.factor_of and not upstream[name] for name in priors.sites):
            return Reduction(fitted, priors, FactorwiseReduction(factored, priors, how))
        branches = None if method == "importance" else read_branches(factored, priors.sites, priors.upstream)
        if branches is not None:
            return Reduction(fitted, priors, BranchedReduction(factored, priors, branches, how))
    if method == "integration" or (method == "auto" and _has_points(fitted, priors)):
        return _integrated(fitted, priors, progress)
    if method not in ("auto", "importance"):
        raise ReductionError(
            f"method={method!r} cannot be had: the posterior or the prior of a reduced site depends on other sites, or "
            "has no density of its own; take method='auto' or 'importance'"
        )
    if factored is not None:
        check_not_a_point(factored, priors)
    given = draws is not None
    draws = fitted.draw(sorted(priors.sites), num_samples, progress) if draws is None else draws
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReductionWarning)
        drawn = DrawnReduction(draws, priors, (fitted.args, fitted.kwargs))
    if caught and method == "auto" and not given and not drawn.delta_evidence.requires_grad:
        # Where the posterior has too few draws, the model can still be asked.
        try:
            return _integrated(fitted, priors, progress)
        except ReductionError:
            pass  # a model without a density at hand
    for warning in caught:
        warnings.warn(warning.message, stacklevel=3)
    return Reduction(fitted, priors, drawn)


def _integrated(fitted: Posterior, priors: ReducedPriors, progress: bool) -> Reduction:
    check_density(fitted.model, f"the reduction of {sorted(priors.sites)} to a point, or by integration,")
    result = IntegratedReduction(fitted, priors, progress=progress)
    ends = [name for name, end in (("full", result.full), ("reduced", result.reduced)) if not end.trusted]
    if ends:
        warnings.warn(
            f"The change in log evidence of {sorted(priors.sites)} is not to be trusted: the integral of the "
            f"{' and of the '.join(ends)} model has not converged. Fit the reduced model as well, and compare.",
            ReductionWarning,
            stacklevel=4,
        )
    return Reduction(fitted, priors, result)


def _has_points(fitted: Posterior, priors: ReducedPriors) -> bool:
    """Whether a reduced prior has its mass at points, at which no draw of a continuous posterior lies."""
    drawn = fitted.draw(sorted(priors.sites), 1)
    values = {name: values[0] for name, values in drawn.values.items()}
    continuous = [name for name, prior in drawn.priors.items() if not prior.example.support.is_discrete]  # type: ignore[union-attr]
    return any(has_points(priors.at(name, values)) for name in continuous)


def check_not_a_point(fitted: FactoredPosterior, priors: ReducedPriors) -> None:
    """
    That no posterior of a reduced site is a point, which has no density.

    :raises ReductionError: with what to fit instead.
    """
    for name in sorted(priors.sites & fitted.factor_of.keys()):
        if is_point(fitted.factor_of[name].posterior(name)):
            raise ReductionError(
                f"the posterior of site {name!r} is a point (Delta) and has no density, so no evidence can be had from "
                "it; fit a guide with a density, such as AutoNormal, in place of AutoDelta, or take "
                "method='integration', which asks the model"
            )


def upstream_of(fitted: Posterior, priors: ReducedPriors) -> dict[str, frozenset[str]]:
    """For each reduced site, the sites that its posterior, its prior or its reduced prior depends on."""
    for name in priors.sites - fitted.sites:
        raise name_of_unknown(name, fitted.sites, fitted.noun)
    upstream = fitted.upstream(priors.sites)
    for name, sites in upstream.items():
        if missing := sorted((sites & fitted.latent) - fitted.sites):
            raise ReductionError(
                f"the prior of site {name!r} depends on {missing}, which {fitted.noun} does not "
                "hold (enumerated sites are summed out); reduce other sites, or have these drawn too"
            )
    return {name: sites | priors.upstream[name] for name, sites in upstream.items()}
