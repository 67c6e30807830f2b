# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What has been integrated of a fit, kept for all the questions that are asked of it.

Each reduction of a fit has the same full model at one end. A fit is known by what it says: the values that the
posterior gives under a fixed seed, and the density that the model has there, site by site. More steps of SVI, other
data or other parameters of the model make it another. It is forgotten with its model.
"""

from __future__ import annotations

import hashlib
import math
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_bmrs.errors import ReductionWarning
from pyro_bmrs.evidence.importance import importance_estimate
from pyro_bmrs.integration.ends import LogEvidence
from pyro_bmrs.integration.log_evidence import integrate
from pyro_bmrs.integration.log_joint import LogJoint
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.structure.vectorised import own_random_numbers, set_seed

_MOST_FITS = 4  # of one model, the last that were asked about
_ALIKE = 0.05  # nats, within which weights have no tail
_FAR = 1.0  # standard deviations, between means that are not of the same posterior
_FEW = 400  # draws of a guide that tell its mean
_WEIGHTS = 1000  # draws of a guide that say how far it is from the posterior


@dataclass
class Fit:
    """
    What is known of one fit.

    :param evidence: the log evidence of the full model, by the number of draws that was asked for.
    :param tails: the Pareto k of the guide's own weights, once it has been asked for.
    :param num_evaluations: of the model's density, in checks that nobody asked for.
    """

    evidence: dict[int | None, _Kept] = field(default_factory=dict)
    tails: list[float | None] = field(default_factory=list)
    num_evaluations: int = 0


@dataclass(frozen=True)
class _Kept:
    """A log evidence without its model, which would never be forgotten otherwise."""

    evidence: LogEvidence
    example: dict[str, Tensor]
    standardised: bool


# By the identity of the model, or of the object whose method it is.
_fits: dict[int, OrderedDict[bytes, Fit]] = {}


def fit_of(fitted: Posterior) -> Fit:
    """What is known of a fit; all who ask about the same get the same."""
    model = fitted.model
    anchor = model.__self__ if isinstance(model, MethodType) else model
    if id(anchor) not in _fits:
        try:
            forget = weakref.finalize(anchor, _fits.pop, id(anchor), None)
        except TypeError:
            return Fit()  # nobody tells when such a model is gone
        forget.atexit = False
        _fits[id(anchor)] = OrderedDict()
    fits, name = _fits[id(anchor)], _fingerprint(fitted)
    fit = fits.setdefault(name, Fit())
    fits.move_to_end(name)
    while len(fits) > _MOST_FITS:
        fits.popitem(last=False)
    return fit


def full_evidence(fitted: Posterior, *, num_draws: int | None = None, progress: bool = False) -> LogEvidence:
    """
    The log evidence of the model that was fitted, integrated when it is first asked for.

    :param fitted: the posterior, read.
    :param num_draws: draws a round of the integral.
    :param progress: whether to show a progress bar while drawing from a guide.
    """
    fit = fit_of(fitted)
    kept = fit.evidence.get(num_draws)
    if kept is None:
        evidence = integrate(fitted, num_draws=num_draws, progress=progress)
        likeliest = evidence.integral.log_weights.argmax()
        example = {n: v[0] for n, v in evidence.log_joint.values(evidence.integral.points[likeliest, None]).items()}
        no_model: Any = None
        bare = replace(evidence, log_joint=no_model)
        fit.evidence[num_draws] = _Kept(bare, example, evidence.log_joint.standardised)
        return evidence
    joint = LogJoint(fitted.model, fitted.args, fitted.kwargs, example=kept.example, standardised=kept.standardised)
    return replace(kept.evidence, log_joint=joint)


class Shift(NamedTuple):
    """
    Where a posterior lies beside the model's.

    :param site: whose mean is farthest from that under the model, in unconstrained coordinates.
    :param deviations: how far, in standard deviations of the wider of the two.
    """

    site: str
    deviations: float

    @property
    def is_far(self) -> bool:
        """Whether it is the posterior of something else: of other data, another model, or of a fit that never came."""
        return self.deviations > _FAR

    def words(self, noun: str) -> str:
        """In a sentence, of something called so."""
        return (
            f"{noun} is not the posterior of this model and these data: the mean of site {self.site!r} is "
            f"{self.deviations:.2g} standard deviations from the model's"
        )


def mean_shift(fitted: Posterior, full: LogEvidence) -> Shift | None:
    """
    How far the mean of a posterior is from that of the model, as it was integrated.

    :param fitted: the posterior.
    :param full: its model, integrated.
    :return: None where the integral is not to be trusted, or over nothing.
    """
    joint = full.log_joint
    if not full.trusted or not joint.dim:
        return None
    drawn = joint.coordinates(fitted.draw((), _FEW).values).double()
    loc, covariance = full.integral.moments()
    unit = torch.maximum(covariance.diagonal().sqrt(), drawn.std(0))
    deviations = ((drawn.mean(0) - loc).abs() / unit).nan_to_num(math.inf)
    place = int(deviations.argmax())
    site = next(name for name, at in joint.places.items() if at.positions.start <= place < at.positions.stop)
    return Shift(site, float(deviations[place]))


def guide_tail(fitted: Posterior) -> float | None:
    """
    The Pareto k of a guide's own weights p(data, x) / q(x): above 0.7 it is far from the posterior.

    It says more of a fit than the ELBO does (Y. Yao, A. Vehtari, D. Simpson and A. Gelman (2018), *Yes, but did it
    work?*, https://arxiv.org/abs/1802.02538). None where there is no guide, or a density is not known.
    """
    fit = fit_of(fitted)
    if not fit.tails:
        log_weights = fitted.log_weights(_WEIGHTS)
        fit.tails.append(None if log_weights is None else _tail(log_weights))
    return fit.tails[0]


def _tail(log_weights: Tensor) -> float:
    if log_weights.max() - log_weights.min() < _ALIKE:
        return -math.inf  # nothing to fit a tail to
    with warnings.catch_warnings():
        # Whoever asks says it in words of their own.
        warnings.simplefilter("ignore", ReductionWarning)
        return float(importance_estimate(log_weights.nan_to_num(-torch.inf)).pareto_k)


def _fingerprint(fitted: Posterior) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(fitted):
        digest.update(part)
    return digest.digest()


@torch.no_grad()
def _parts(fitted: Posterior) -> Iterator[bytes]:
    for leaf in tree_leaves((fitted.args, fitted.kwargs)):
        yield _bytes(leaf) if isinstance(leaf, Tensor) else repr(leaf).encode()
    with own_random_numbers(), poutine.block(), pyro.validation_enabled(False):
        set_seed(0)
        drawn = fitted.draw((), 1).values
        nodes = _trace(fitted.model, {name: values[0] for name, values in drawn.items()}, fitted)
    for name in sorted(drawn):
        yield name.encode()
        yield _bytes(drawn[name])
    for name, site in nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield name.encode()
            yield from (_bytes(value) for value in (site["value"], site["log_prob"]) if isinstance(value, Tensor))


def _trace(model: Callable[..., Any], values: dict[str, Tensor], fitted: Posterior) -> dict[str, Any]:
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*fitted.args, **fitted.kwargs)
    trace.compute_log_prob()
    return dict(trace.nodes)


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
