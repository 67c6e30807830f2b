# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The change in log evidence and the reduced posterior of one triple of distributions, by the best method there is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from pyro.distributions import Delta, ImproperUniform, MaskedMixture
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence.accuracy import choose
from pyro_bmrs.evidence.importance import reduce_by_importance
from pyro_bmrs.evidence.numerics.precision import in_double
from pyro_bmrs.evidence.quadrature.reweighted import reduce_by_quadrature
from pyro_bmrs.evidence.registry import Reduced, find_rules
from pyro_bmrs.evidence.rules.normal_on_box import reduce_on_box
from pyro_bmrs.evidence.support import ROLES, is_discrete, support_interval
from pyro_bmrs.evidence.wrappers import Triple, shared_bijection, transform_posterior, unwrap
from pyro_bmrs.structure.layers import layers

METHODS = ("auto", "exact", "quadrature", "importance")
NUM_SAMPLES = 4096


def reduce(
    posterior: Distribution,
    prior: Distribution,
    reduced_prior: Distribution,
    *,
    method: str = "auto",
    num_samples: int = NUM_SAMPLES,
) -> Reduced:
    """
    Reduce a posterior: what it and the log evidence become when a reduced prior takes the place of the prior.

    With the posterior q, the prior p and the reduced prior r at a site, the change in log evidence is
    log E_q[r(x) / p(x)], and the reduced posterior is q(x) r(x) / p(x), normalised (Friston, Parr and Zeidman 2018,
    https://arxiv.org/abs/1805.07092).

    :param posterior: the posterior q that was fitted under ``prior``.
    :param prior: the prior p of the model that was fitted.
    :param reduced_prior: the prior r of the reduced model; it may be broader than p as long as the integral converges.
    :param method: ``"exact"`` takes a closed form or fails; ``"quadrature"`` integrates one-dimensional continuous
        elements numerically, to 1e-8; ``"importance"`` averages r/p over draws from q, with Pareto smoothing;
        ``"auto"`` takes the first of these that can be had.
        Under ``"auto"`` a joint normal whose reduced prior confines it to intervals is drawn from there.
    :param num_samples: how many draws ``"importance"`` takes.
    :return: the change in log evidence in nats, of the broadcast batch shape of the three; the reduced posterior; and
        how both were computed.
    :raises ReductionError: where shapes do not broadcast, parameters are NaN or infinite, the posterior has no
        density, a support leaves the prior's, the integral diverges, or the method cannot be had.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_bmrs.evidence import reduce
        >>> reduced = reduce(dist.Beta(8., 4.), dist.Beta(1., 1.), dist.Beta(10., 10.))
        >>> reduced.delta_evidence
        tensor(0.3237)
        >>> reduced.posterior.concentration1
        tensor(17.)
        >>> reduced.method
        'exact'
    """
    if method not in METHODS:
        raise ReductionError(f"method must be one of {', '.join(map(repr, METHODS))}, not {method!r}.")
    triple = (posterior, prior, reduced_prior)
    _check_shapes(triple)
    bare, layers = unwrap(*triple)
    _check_density(bare)
    try:
        reduced = _reduce_bare(bare, method, num_samples)
    except ReductionError:
        check_parameters(*bare)  # what a rule objects to may be a NaN: then that is the thing to say
        raise
    # A sum is finite only if all its terms are: one cheap pass over what is nearly always right.
    if not reduced.delta_evidence.detach().sum().isfinite():
        check_parameters(*bare)
        _check_defined(reduced.delta_evidence)
    return layers.put_back(reduced)


def log_evidence_change(
    posterior: Distribution,
    prior: Distribution,
    reduced_prior: Distribution,
    *,
    method: str = "auto",
    num_samples: int = NUM_SAMPLES,
) -> Tensor:
    """
    The change in log evidence, in nats, when ``reduced_prior`` takes the place of ``prior``.

    Takes what :func:`reduce` takes, and returns only its ``delta_evidence``: positive where the reduced model explains
    the data better. Differentiable in all parameters.

    :return: in nats, of the broadcast batch shape of the three.
    :raises ReductionError: as :func:`reduce` does.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_bmrs.evidence import log_evidence_change
        >>> posterior = dist.Gamma(torch.tensor([3., 30.]), torch.tensor([2., 20.]))
        >>> log_evidence_change(posterior, dist.Gamma(1., 1.), dist.Gamma(5., 5.))
        tensor([0.2924, 0.4847])
    """
    return reduce(posterior, prior, reduced_prior, method=method, num_samples=num_samples).delta_evidence


def reduced_posterior(
    posterior: Distribution,
    prior: Distribution,
    reduced_prior: Distribution,
    *,
    method: str = "auto",
    num_samples: int = NUM_SAMPLES,
) -> Distribution:
    """
    The posterior under the reduced prior: proportional to posterior times reduced prior over prior.

    Takes what :func:`reduce` takes, and returns only its ``posterior``.

    :return: a distribution of the broadcast batch shape of the three, normalised.
    :raises ReductionError: as :func:`reduce` does.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_bmrs.evidence import reduced_posterior
        >>> reduced_posterior(dist.Gamma(3., 2.), dist.Gamma(1., 1.), dist.Exponential(4.))
        Gamma(concentration: 3.0, rate: 5.0)
    """
    return reduce(posterior, prior, reduced_prior, method=method, num_samples=num_samples).posterior


def _reduce_bare(triple: Triple, method: str, num_samples: int) -> Reduced:
    reduced = _reduce_by_form(triple, method, num_samples)
    if reduced is not None:
        return reduced
    if method == "exact":
        raise ReductionError(
            f"There is no exact rule for {_types(triple)}. Take method='quadrature' (one-dimensional continuous "
            "elements), method='importance', or give a rule with pyro_bmrs.evidence.register_reduction."
        )
    _check_comparable(triple)
    check_parameters(*triple)
    if method == "quadrature" or (method == "auto" and all(support_interval(d) is not None for d in triple)):
        return in_double(reduce_by_quadrature, *triple)
    boxed = in_double(partial(reduce_on_box, num_samples=num_samples), *triple) if method == "auto" else NotImplemented
    return reduce_by_importance(*triple, num_samples) if boxed is NotImplemented else boxed


def _reduce_by_form(triple: Triple, method: str, num_samples: int) -> Reduced | None:
    """By a rule, or side by side for a mixture, or as what a shared bijection was applied to; None for the rest."""
    if method in ("auto", "exact"):
        for rule in find_rules(*map(type, triple)):
            reduced = in_double(rule, *triple)
            if reduced is not NotImplemented:
                return reduced
    if isinstance(triple[2], MaskedMixture):
        return _reduce_to_mixture(*triple, method, num_samples)
    shared = shared_bijection(*triple)
    if shared is None:
        return None
    before, transforms = shared
    bare, layers = unwrap(*before)
    inner = _reduce_by_form(bare, method, num_samples)
    return None if inner is None else transform_posterior(layers.put_back(inner), transforms, triple)


def _reduce_to_mixture(
    posterior: Distribution, prior: Distribution, reduced_prior: Any, method: str, num_samples: int
) -> Reduced:
    """
    The reduction to the one component where the mask says so, and to the other elsewhere.

    Both components must be reduced priors for all elements, though each counts for some only.
    """
    mask = reduced_prior.mask
    off = reduce(posterior, prior, reduced_prior.component0, method=method, num_samples=num_samples)
    on = reduce(posterior, prior, reduced_prior.component1, method=method, num_samples=num_samples)
    return Reduced(
        torch.where(mask, on.delta_evidence, off.delta_evidence),
        lambda: MaskedMixture(mask, off.posterior, on.posterior),
        choose(mask, on.accuracy, off.accuracy),
    )


def _types(triple: Triple) -> str:
    return ", ".join(f"{type(d).__name__} as {role}" for d, role in zip(triple, ROLES))


def _check_shapes(triple: Triple) -> None:
    for distribution, role in zip(triple, ROLES):
        if not isinstance(distribution, Distribution):
            raise ReductionError(f"The {role} must be a distribution, not {type(distribution).__name__}.")
    posterior, prior, reduced_prior = triple
    if not posterior.event_shape == prior.event_shape == reduced_prior.event_shape:
        shapes = ", ".join(f"{tuple(d.event_shape)} of the {role}" for d, role in zip(triple, ROLES))
        raise ReductionError(
            f"Event shapes differ: {shapes}. Use .expand() and .to_event() to give all three the same event shape."
        )
    if not posterior.batch_shape == prior.batch_shape == reduced_prior.batch_shape:
        try:
            torch.broadcast_shapes(*(d.batch_shape for d in triple))
        except RuntimeError as error:
            shapes = ", ".join(f"{tuple(d.batch_shape)} of the {role}" for d, role in zip(triple, ROLES))
            raise ReductionError(f"Batch shapes do not broadcast: {shapes}.") from error


def _check_density(triple: Triple) -> None:
    for distribution, role in zip(triple[:2], ROLES):
        if isinstance(distribution, Delta):
            raise ReductionError(
                f"The {role} is a point (Delta) and has no density, so no evidence can be had from it. Fit a guide "
                "with a density, such as AutoNormal, in place of AutoDelta."
            )


def _check_comparable(triple: Triple) -> None:
    posterior, prior, reduced_prior = triple
    if isinstance(reduced_prior, Delta):
        raise ReductionError("A point (Delta) as the reduced prior has an exact rule only. Take method='exact'.")
    for distribution, role in zip(triple[1:], ROLES[1:]):
        if isinstance(distribution, ImproperUniform):
            raise ReductionError(f"The {role} is improper, so evidence under it is arbitrary. Give a proper prior.")
    if len(set(map(is_discrete, triple))) > 1:
        kinds = ", ".join(
            f"the {role} ({type(d).__name__}) is {'discrete' if is_discrete(d) else 'continuous'}"
            for d, role in zip(triple, ROLES)
        )
        raise ReductionError(f"Discrete and continuous distributions cannot be compared: {kinds}.")


def _check_defined(delta_evidence: Tensor) -> None:
    # Minus infinity is an answer: the reduced prior has no mass where the posterior has any
    wrong = torch.isnan(delta_evidence) | (delta_evidence == torch.inf)
    if wrong.any():
        raise ReductionError(
            f"The change in log evidence is NaN or infinite at {int(wrong.sum())} of {wrong.numel()} elements: there "
            "the posterior or the reduced prior has mass where the prior has none."
        )


def check_parameters(posterior: Distribution, prior: Distribution, reduced_prior: Distribution) -> None:
    """
    Find NaN parameters, and infinite ones where no bound or log-probability may be meant.

    :raises ReductionError: with their number, the parameter's name and the role of its distribution.
    """
    for distribution, role in zip((posterior, prior, reduced_prior), ROLES):
        for name, value in _parameters(distribution):
            allowed = name in ("low", "high", "logits")
            wrong = torch.isnan(value) if allowed else ~torch.isfinite(value)
            if wrong.any():
                kind = "NaN" if torch.isnan(value).any() else "infinite"
                raise ReductionError(
                    f"The {role}'s {name} is {kind} at {int(wrong.sum())} of {wrong.numel()} elements "
                    f"({type(distribution).__name__}). A guide that has diverged or was not fitted does this."
                )


def _parameters(distribution: Distribution) -> Iterator[tuple[str, Tensor]]:
    for layer in reversed(list(layers(distribution))):
        for name in layer.arg_constraints:
            value = vars(layer).get(name)
            if isinstance(value, Tensor) and value.is_floating_point():
                yield name, value
