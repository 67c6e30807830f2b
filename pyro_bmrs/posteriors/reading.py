# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Whatever stands for the posterior of a model, read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoCallable,
    AutoGaussian,
    AutoGuide,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoNormalMessenger,
    AutoStructured,
)
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.mcmc.api import AbstractMCMC
from pyro.ops.hessian import hessian
from pyro.poutine.messenger import _bound_partial
from torch import Tensor

from pyro_bmrs import arviz_adapter
from pyro_bmrs.arviz_adapter import Drawn
from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.posteriors.fitted_draws import FittedDraws
from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.posteriors.guides.copies import copy_guide
from pyro_bmrs.posteriors.guides.joint_normals import as_multivariate_normal
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.posteriors.traces import accepts, check_no_nan, first_run, subsampled_plates
from pyro_bmrs.tables import LabelsLike, SiteLabels, counted, read_labels

PosteriorOfSites = TypeVar("PosteriorOfSites", bound=Posterior)

# Nats that one more step of Newton's method may gain where a mode was found.
_LARGEST_DECREMENT = 0.01


def read_posterior(
    source: Any,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Posterior:
    """
    Reads whatever stands for the posterior of a model: a fitted guide, a finished MCMC run, or an ArviZ posterior.

    :param source: what stands for the posterior; of draws by name too, along the first dimension, as ``Predictive``
        gives them.
    :param model: the model; an MCMC kernel and most guides know theirs.
    :param args: positional arguments of the model; an MCMC run and autoguides remember theirs.
    :param kwargs: keyword arguments of the model, remembered as those are.
    :raises ReductionError: for what cannot be read, with what is missing.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs.posteriors import read_posterior
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> def guide():
        ...     pyro.sample("x", dist.Normal(torch.ones(2), 0.5).to_event(1))
        >>> read_posterior(guide, model).sites
        frozenset({'x'})
        >>> read_posterior({"x": torch.randn(100, 2)}, model).noun
        'the set of draws'
    """
    args, kwargs = _arguments(args, kwargs)
    labels: dict[str, SiteLabels] = {}
    if isinstance(source, AbstractMCMC):
        run: Any = source
        samples = _samples(run)
        model = getattr(run.kernel, "model", None) if model is None else model
        if not args and not kwargs:
            args, kwargs = run._args or (), dict(run._kwargs or {})
    elif arviz_adapter.has_posterior(source) or is_mapping_of_draws(source):
        drawn = read_draws(source)
        samples = {name: torch.tensor(own.values) for name, own in drawn.items()}
        labels = {name: own.labels for name, own in drawn.items()}
    else:
        return read_guide(source, model, args, kwargs)
    if model is None:
        raise ReductionError("draws do not know the model that they come from; pass model=, or the priors as prior=")
    if not accepts(model, args, kwargs):
        raise ReductionError("the model cannot be called with the arguments given; pass its data as args=, kwargs=")
    return FittedDraws(samples, model, args, kwargs, labels)


def is_mapping_of_draws(source: object) -> bool:
    """Whether something is a mapping from name to array, as ``Predictive`` and samplers give their draws."""
    return isinstance(source, Mapping) and bool(source) and all(map(_is_array, source.values()))


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def read_draws(source: Any) -> dict[str, Drawn]:
    """
    The draws of each variable, out of ArviZ data or a mapping with the draws along the first dimension.

    :raises ReductionError: for draws that are none, or of no number that is the same for all.
    """
    if arviz_adapter.has_posterior(source):
        return arviz_adapter.posterior_draws(source)
    arrays = {
        name: np.asarray(torch.as_tensor(v).detach().cpu() if isinstance(v, Tensor) else v)
        for name, v in source.items()
    }
    return {
        name: Drawn(values[None], counted(name, values.shape[1:])) for name, values in arrays.items() if values.ndim
    }


def name_elements(fitted: PosteriorOfSites, labels: LabelsLike | None) -> PosteriorOfSites:
    """
    A posterior that knows what the elements of its sites are called.

    :param labels: the names that a user gives, beside those that come with ArviZ data.
    :raises ReductionError: as :func:`pyro_bmrs.tables.read_labels` does.
    """
    if labels:
        nodes: Any = fitted.trace.nodes
        shapes = {name: _whole_shape(nodes[name]) for name in fitted.sites}
        vars(fitted)["labels"] = {**fitted.labels, **read_labels(labels, shapes)}
    return fitted


def _whole_shape(site: Any) -> torch.Size:
    """The shape of a site, with all the elements of a plate that the model subsamples."""
    shape = list(site["fn"].batch_shape)
    for dim, _, size in subsampled_plates(site):
        shape[dim] = size
    event: torch.Size = site["fn"].event_shape
    return torch.Size([*shape, *event])


def _arguments(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The model's arguments, as they are given: a tuple and a mapping, and not the one argument itself."""
    if not isinstance(args, (tuple, list)):
        raise ReductionError(
            f"args is a {type(args).__name__}; give the model's positional arguments as a tuple, one alone as (x,)"
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ReductionError(f"kwargs is a {type(kwargs).__name__}; give a mapping from names to arguments")
    return tuple(args), dict(kwargs or {})


def _samples(mcmc: Any) -> dict[str, Tensor]:
    if getattr(mcmc, "_samples", None) is None:
        raise ReductionError(f"{type(mcmc).__name__} has no samples: call its run() first (a streaming run keeps none)")
    samples: dict[str, Tensor] = mcmc.get_samples(group_by_chain=True)
    return samples


def read_guide(
    guide: Any,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> FittedGuide:
    """
    Reads a fitted guide: its posterior, factor by factor, and the priors of the model that it was fitted to.

    :param guide: a Pyro autoguide, a GuideMessenger, or any callable with sample sites.
    :param model: the model, needed where the guide does not know it.
    :param args: positional arguments of the model and the guide; for autoguides those of the first fit by default.
    :param kwargs: keyword arguments of both, remembered as those are.
    :raises ReductionError: for a guide that is not fitted or has diverged, or whose model or arguments are not known.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs.posteriors import read_guide
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> def guide():
        ...     pyro.sample("x", dist.Normal(torch.ones(2), 0.5).to_event(1))
        >>> [factor.sites for factor in read_guide(guide, model).factors]
        [('x',)]
    """
    args, kwargs = _arguments(args, kwargs)
    if not callable(guide):
        raise ReductionError(
            f"guide is a {type(guide).__name__}; give an autoguide, a GuideMessenger, a callable with sample sites, a "
            "finished MCMC run, ArviZ data of a posterior, or a mapping from site to draws"
        )
    model = bare_model(_model_of(guide) if model is None else model)
    if model is None:
        raise ReductionError("a hand-written guide does not know its model; pass model=")
    _check_fitted(guide)
    if isinstance(guide, torch.nn.Module):
        for name, parameter in guide.named_parameters():
            check_no_nan(name.removesuffix("_unconstrained"), parameter)
    if not args and not kwargs:
        args, kwargs = _default_arguments(guide)
    if not accepts(model, args, kwargs):
        raise ReductionError(
            "the model cannot be called with the arguments given; pass those that SVI was run with as args=, kwargs="
        )
    return FittedGuide(_in_one_statement(guide, model, args, kwargs), model, args, kwargs, guide)


def _in_one_statement(guide: Any, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A guide that is a joint normal in other words as the autoguide that draws it at once; any other as it is."""
    if isinstance(guide, AutoLaplaceApproximation):
        return _approximate(_with_model(guide, model), args, kwargs)
    if isinstance(guide, (AutoGaussian, AutoStructured)):
        whole = _with_model(guide, model)
        normal = as_multivariate_normal(whole, whole.model, args, kwargs)
        return whole if normal is None else normal
    return guide


def _approximate(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """
    The Laplace approximation of a guide, at the mode that it should have found.

    :raises ReductionError: where the log density is not curved downwards in all directions.
    :warns ReductionWarning: where Newton's decrement says that the mode is elsewhere.
    """
    try:
        with torch.enable_grad():
            normal = guide.laplace_approximation(*args, **kwargs)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ReductionError(
            "the Laplace approximation does not exist where the guide is: the log density is not curved downwards in "
            f"all directions, least along site {_least_curved(guide, args, kwargs)!r}, so it is no mode; take more SVI "
            "steps, another start, or a guide that fits a scale, such as AutoNormal. A model of effects and of their "
            "scale may have no mode at all: give it standardised effects, which are multiplied by the scale"
        ) from error
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(_negative_log_density(guide, args, kwargs), guide.loc)
    root = normal.scale_tril.mT @ (normal.scale * slope)
    decrement = float(root.square().sum()) / 2
    if not decrement <= _LARGEST_DECREMENT:
        warnings.warn(
            f"The Laplace approximation was made away from the mode: a Newton step would gain {decrement:.2g} nats, "
            f"and more than {_LARGEST_DECREMENT} is too many. Take more SVI steps, with a smaller step at the end.",
            ReductionWarning,
            stacklevel=4,
        )
    return normal


def _negative_log_density(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(guide.model, trace=guide_trace)).get_trace(*args, **kwargs)
    loss: Any = guide_trace.log_prob_sum() - model_trace.log_prob_sum()
    total: Tensor = loss
    return total


def _least_curved(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The site along which the log density is curved downwards least, or not known to be."""
    with torch.enable_grad():
        curvature = hessian(_negative_log_density(guide, args, kwargs), guide.loc).detach().double()
    if curvature.isfinite().all():
        direction = torch.linalg.eigh(curvature).eigenvectors[:, 0]
    else:
        direction = (~curvature.isfinite()).sum(0)
    owners = [name for name, shape in guide._unconstrained_shapes.items() for _ in range(shape.numel())]
    return str(owners[int(direction.abs().argmax())])


def _has_lost_model(guide: Any) -> bool:
    return isinstance(guide, AutoGuide) and guide._model is None


def _model_of(guide: Any) -> Any:
    """The model that a guide knows; None where it knows none."""
    if _has_lost_model(guide):
        raise ReductionError(
            f"the {type(guide).__name__} does not know its model any more: autoguides, and the originals of copies "
            "too, drop it when they are saved, pickled or deep-copied; pass model="
        )
    return getattr(guide, "model", None)


def _with_model(guide: Any, model: Callable[..., Any]) -> Any:
    """An autoguide that knows its model: itself, or a copy of one that lost it."""
    if not _has_lost_model(guide):
        return guide
    twin = copy_guide(guide)
    object.__setattr__(twin, "_model", (model,))
    return twin


def _default_arguments(guide: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Those that a guide remembers: as ``default_arguments``, or, an autoguide, in the trace of its first run."""
    remembered: tuple[tuple[Any, ...], dict[str, Any]] | None = getattr(guide, "default_arguments", None)
    if remembered is not None:
        return remembered
    first: Any = first_run(guide)
    return ((), {}) if first is None else (first.nodes["_INPUT"]["args"], first.nodes["_INPUT"]["kwargs"])


def bare_model(model: Any) -> Any:
    """The user's model, out of the initialisation that autoguides wrap around it."""
    while isinstance(model, _bound_partial):
        # Out of a pickle it holds by itself what an inner one held before.
        handler, *inner = model.func.args if isinstance(model.func, partial) else model.args
        if not isinstance(handler, InitMessenger):
            break
        model = inner[0]
    return model


def _check_fitted(guide: Any) -> None:
    parts = list(guide) if isinstance(guide, AutoGuideList) else []
    unfitted = isinstance(guide, AutoGuide) and not isinstance(guide, AutoCallable) and guide.prototype_trace is None
    unfitted |= isinstance(guide, AutoNormalMessenger) and not hasattr(guide, "locs")
    if unfitted:
        raise ReductionError(f"{type(guide).__name__} has not been fitted; run SVI with it first")
    for part in parts:
        _check_fitted(part)
