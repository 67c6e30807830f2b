# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Checks that nobody asked for: of models so small that a check costs less than fitting them did.

What the fit did cost is not known. But no fit is had for less than some hundred runs of the model with its gradient,
one after the other, and where one run can be vectorised over some thousand draws, a check takes a few dozen runs. So a
reduction is checked unasked where the model has at most 20 coordinates and no discrete sites, where its density can be
vectorised, and where no tensor in one evaluation has more than 5,000 numbers (:data:`CHECK`); and as long as all such
checks of one fit together have evaluated the density at most :data:`MOST_EVALUATIONS` times, so that a loop over many
reduced priors does not come to cost more than the fit either. This is counted, never timed: the same program gets the
same answer anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.integration.fits import fit_of
from pyro_bmrs.integration.log_joint import LogJoint
from pyro_bmrs.integration.stated_model import StatedModel
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.posteriors.traces import latent_nodes, subsampled_plates
from pyro_bmrs.reduction.check import Check
from pyro_bmrs.reduction.reduction import Reduction
from pyro_bmrs.structure.layers import layers
from pyro_bmrs.structure.vectorised import largest_tensor, own_parameters, own_random_numbers, set_seed

Found = TypeVar("Found")


class Limits(NamedTuple):
    """
    Of the models of which something is asked unasked.

    :param coordinates: the most.
    :param numbers: the most in the largest tensor of one evaluation of the density.
    """

    coordinates: float
    numbers: float


CHECK = Limits(20, 5_000)
MOST_EVALUATIONS = 400_000

# In the coordinates of the density.
_FAR_APART = 3.0

AUTOMATIC = True
pyro.settings.register("bmrs_automatic_check", __name__, "AUTOMATIC")


def check_where_cheap(reduction: Reduction) -> Check | None:
    """
    Checks a reduction if that costs less than fitting the model did; else it says why not.

    Its random numbers are its own.

    :param reduction: the reduction; its ``checked`` or its ``unchecked`` is set.
    :return: what :meth:`pyro_bmrs.Reduction.check` found; None where it is not checked.
    """
    if reduction.method == "integration":
        return None  # integrals are the model's own answer
    priors = reduction.reduced_priors

    def stated(values: dict[str, Tensor]) -> list[Distribution]:
        return [priors.at(name, values) for name in priors.sites]

    found, reduction.unchecked = where_cheap(reduction.fitted, stated, lambda: _check(reduction))
    return found


def where_cheap(
    fitted: Posterior,
    stated: Callable[[dict[str, Tensor]], list[Distribution]],
    check: Callable[[], Found],
    limits: Limits = CHECK,
) -> tuple[Found | None, str | None]:
    """
    Does a check of a fit, if that costs less than fitting the model did.

    :param fitted: the posterior.
    :param stated: the reduced priors, given values of the sites.
    :param check: does it, with random numbers of its own.
    :param limits: of models for which that is cheap; by default those of an integral.
    :return: what it found, or None and why it was not done; None and None where nothing is to be checked unasked.
    """
    if not AUTOMATIC:
        return None, None
    with own_random_numbers(), own_parameters():
        set_seed(0)
        # What nobody asked for breaks nothing: whatever a model does at draws that no fit took it to, is said instead.
        try:
            why_not = _objection(fitted, stated, limits)
            return (check(), None) if why_not is None else (None, why_not)
        except ReductionError as error:
            return None, str(error)
        except Exception as error:
            return None, f"that could not be done ({type(error).__name__}: {error})"


def _check(reduction: Reduction) -> Check:
    fit = fit_of(reduction.fitted)
    is_known = None in fit.evidence
    found = reduction.check()
    ends = [found.reduced] if is_known else [found.full, found.reduced]
    fit.num_evaluations += sum(end.integral.num_evaluations for end in ends)
    return found


def _objection(
    fitted: Posterior, stated: Callable[[dict[str, Tensor]], list[Distribution]], limits: Limits
) -> str | None:
    """Why a fit is not checked unasked; what is told without running the model comes first."""
    if torch._C._get_tracing_state() is not None or torch.compiler.is_compiling():
        return "it is being traced"
    if isinstance(fitted.model, StatedModel) and fitted.model.log_density is None:
        return "no more than priors is known of it"
    nodes = fitted.trace.nodes
    sites = {name: site for name, site in nodes.items() if site["type"] == "sample"}
    if any(map(subsampled_plates, sites.values())):
        return "it subsamples"
    latent = latent_nodes(fitted.trace)
    if any(site["fn"].support.is_discrete for site in latent.values()):
        return "it has discrete sites"
    count = sum(site["value"].numel() for site in latent.values())
    if count > limits.coordinates:
        return f"it has {count:,} coordinates"
    if max(torch.as_tensor(site["value"]).numel() for site in sites.values()) > limits.numbers:
        return "it has many data"
    values = {name: site["value"].detach() for name, site in latent.items()}
    if any(tensor.requires_grad for prior in stated(values) for tensor in _tensors(prior)):
        return "its reduced prior is being optimised"
    if fit_of(fitted).num_evaluations >= MOST_EVALUATIONS:
        return "checks of this fit have cost enough"
    joint = LogJoint(fitted.model, fitted.args, fitted.kwargs, example=values)
    return _objection_to_density(joint, values, limits)


def _objection_to_density(log_joint: LogJoint, values: dict[str, Tensor], limits: Limits) -> str | None:
    point = log_joint.coordinates({name: value.unsqueeze(0) for name, value in values.items()})
    if largest_tensor(lambda: log_joint(point)) > limits.numbers:
        return "one evaluation of its density is long"
    again = log_joint(point.expand(8, -1))
    # A branch that all draws take alike is taken at once: far from each other, they do not.
    log_joint(point + _FAR_APART * torch.randn(16, log_joint.dim, dtype=point.dtype))
    if not log_joint.is_vectorised:
        return "its code is run one draw at a time"
    return None if torch.allclose(again, again[0], equal_nan=True) else "its density is random"


def _tensors(distribution: Distribution) -> Iterator[Tensor]:
    """All the tensors that a distribution is made of."""
    for layer in layers(distribution):
        inner = vars(layer).items()
        yield from _tensors_among(value for name, value in inner if name != "base_dist")


def _tensors_among(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Distribution):
            yield from _tensors(value)
        elif isinstance(value, Transform):
            yield from _tensors_among(vars(value).values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors_among(value)
