# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""New guides at the moments of weighted draws, where a reduction by draws is to be fitted further."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal, init_to_value
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.posteriors.guides.copies import StoreEntries
from pyro_bmrs.posteriors.reduced_guide import DrawsGuide

_serial = itertools.count(1)


def guide_at_moments(
    original: Any, model: Callable[..., Any], draws: DrawsGuide, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """
    A guide of the original's kind at the mean and the spread of weighted draws, in unconstrained coordinates.

    :param original: the guide that the draws came from.
    :param model: the model that the new guide is to be fitted to.
    :param draws: the weighted draws.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :raises ReductionError: for a kind of guide that moments do not determine, and for draws too few to give any.
    """
    kind = type(original)
    # A subclass may be another family, or made of other arguments: it registers itself.
    if kind not in place.registry:
        raise ReductionError(
            f"a {type(original).__name__} cannot be begun at weighted draws, whose moments do not determine it; pass "
            "start=, a guide of your own for reduction.model"
        )
    like = next(values for values in draws.draws.values() if values.is_floating_point())
    weights = (draws.log_weights - draws.log_weights.logsumexp(0)).exp().to(like)
    means = {name: torch.tensordot(weights, values.to(weights), 1).to(values) for name, values in draws.draws.items()}
    # Sites that were not drawn (those summed out) are not the new guide's, either.
    shown = poutine.block(model, hide_fn=lambda msg: _is_latent(msg) and msg["name"] not in draws.draws)
    guide = kind(shown, init_loc_fn=init_to_value(values=means))
    # Of guides of one name, the last to come into the parameter store would take the others' parameters.
    guide._pyro_name = f"moment_guide_{next(_serial)}"
    guide._entries = StoreEntries(guide._pyro_name)
    guide(*args, **kwargs)
    unconstrained = {}
    for name, site in guide.prototype_trace.iter_stochastic_nodes():
        values = biject_to(site["fn"].support).inv(draws.draws[name])
        unconstrained[name] = values.reshape(len(values), -1)
    with torch.no_grad():
        place(guide, unconstrained, weights)
    return guide


def _is_latent(msg: Any) -> bool:
    return msg["type"] == "sample" and not msg["is_observed"]


@singledispatch
def place(guide: Any, draws: Mapping[str, Tensor], weights: Tensor) -> None:
    """
    Puts a guide at the moments of draws.

    Another kind is registered with ``place.register``, as in :func:`functools.singledispatch`. New guides of it are
    made by ``kind(model, init_loc_fn=...)``.

    :param guide: a new guide, which has run once.
    :param draws: the unconstrained values of each site, flat, shape ``(num_draws, size)``.
    :param weights: normalised, shape ``(num_draws,)``.
    """
    raise NotImplementedError(f"no moments determine a {type(guide).__name__}")


@place.register
def _(guide: AutoNormal, draws: Mapping[str, Tensor], weights: Tensor) -> None:
    for name, values in draws.items():
        shape, event_dim = guide._get_loc_and_scale(name)[0].shape, guide._event_dims[name]
        loc, scale = _moments(values, weights)
        deep_setattr(guide.locs, name, PyroParam(loc.reshape(shape), constraints.real, event_dim))
        deep_setattr(guide.scales, name, PyroParam(scale.reshape(shape), guide.scale_constraint, event_dim))


@place.register
def _(guide: AutoDiagonalNormal, draws: Mapping[str, Tensor], weights: Tensor) -> None:
    loc, scale = _moments(torch.cat(list(draws.values()), -1), weights)
    guide.loc.copy_(loc)
    # A value for the parameter of that name, which it has declared.
    declared: Any = guide
    declared.scale = scale


@place.register
def _(guide: AutoMultivariateNormal, draws: Mapping[str, Tensor], weights: Tensor) -> None:
    values = torch.cat(list(draws.values()), -1)
    loc, scale = _moments(values, weights)
    centred = (values - loc) / scale
    factor, failed = torch.linalg.cholesky_ex((centred * weights.unsqueeze(-1)).mT @ centred)
    if failed:
        raise ReductionError(
            f"the weighted draws are too few for the covariance of {len(loc)} coordinates; draw more with num_samples="
        )
    guide.loc.copy_(loc)
    # The guide's own factor has ones on its diagonal.
    guide.scale = scale * factor.diagonal()
    guide.scale_tril = factor / factor.diagonal().unsqueeze(-1)


def _moments(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    mean = weights @ values
    deviation = (weights @ (values - mean).square()).sqrt()
    if not (deviation > 0).all():
        raise ReductionError("the weighted draws have no spread: all the weight is on one; draw more with num_samples=")
    return mean, deviation
