# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The change in log evidence, and the moments of the reduced posterior, under many priors of one site at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from pyro_bmrs import evidence
from pyro_bmrs.errors import ReductionError, ReductionWarning, naming
from pyro_bmrs.evidence.dispatch import NUM_SAMPLES
from pyro_bmrs.evidence.importance import LARGEST_K, importance_estimate
from pyro_bmrs.integration.ends import LogEvidence
from pyro_bmrs.posteriors.draws import Draws, log_density
from pyro_bmrs.posteriors.factors import ReducedFactor
from pyro_bmrs.posteriors.posterior import FactoredPosterior
from pyro_bmrs.reduction.families.grid import Grid
from pyro_bmrs.reduction.priors import ReducedPriors
from pyro_bmrs.reduction.weighted import log_ratios, weight_efficiency
from pyro_bmrs.structure.coordinates import elements, marginals, push_forward
from pyro_bmrs.structure.layers import peel, to_event
from pyro_bmrs.structure.mixtures import unmask
from pyro_bmrs.tables import moments

# Below this share of the model's draws, what they say of a prior is not to be trusted.
_SMALLEST_SHARE = 0.05
_FEW = 50  # draws, where only the method is asked for
# So many of the model's draws tell a change to some hundredths of a nat.
_MOST_DRAWS = 5000


@dataclass(frozen=True)
class Curve:
    """
    What becomes of a site under each of a number of priors.

    :param delta_evidence: log evidence less that of the model fitted, in nats, shape ``(num_priors,)``; NaN where it
        diverges.
    :param mean: posterior mean, the priors along the first dimension of the site's shape.
    :param sd: posterior standard deviation, of the same shape as the mean.
    :param method: how it was computed.
    :param standard_error: of ``delta_evidence``; None where that is no estimate.
    :param pareto_k: of the importance weights; None where there are none.
    :param trusted: whether each is to be trusted, shape ``(num_priors,)``.
    :param diverged: what was said of a prior under which it diverges; None where there is none.
    """

    delta_evidence: Tensor
    mean: Tensor
    sd: Tensor
    method: str
    standard_error: Tensor | None = None
    pareto_k: Tensor | None = None
    trusted: Tensor | None = None
    diverged: str | None = None


class CurveOf(Protocol):
    """What gives a curve for the priors of a grid, or of other numbers."""

    def __call__(self, grid: Grid, values: Tensor | None = None) -> Curve:
        """The curve."""


class GuideCurve:
    """
    By the rules of evidence, from a posterior of known density: all the priors in one call, where they are of one type.

    :param fitted: the posterior.
    :param site: the site.
    :param element: place of the one element, in ``flatten()``, whose prior changes; None for all.
    """

    def __init__(self, fitted: FactoredPosterior, site: str, element: int | None) -> None:
        self._site, self._element = site, element
        self._factor = fitted.factor_of[site]
        self._posterior = self._factor.posterior(site)
        self._prior = fitted.prior(site)

    def is_exact(self, reduced_prior: Distribution) -> bool:
        """Whether there is a rule or a quadrature for a prior, so that nothing is drawn."""
        return self._has_rule(reduced_prior) or (
            self._element is None and self._is_quiet(lambda: self._in_coordinates(reduced_prior, _FEW).method)
        )

    def _has_rule(self, reduced_prior: Distribution) -> bool:
        """Whether that is so in the coordinates of the site, in which many priors are taken at once."""
        triple = self._triple(reduced_prior)
        return triple is not None and self._is_quiet(lambda: evidence.reduce(*triple, num_samples=_FEW).method)

    def _is_quiet(self, method: Callable[[], str]) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReductionWarning)
            try:
                # The choice of a method does not hang on how many draws there would be.
                return method() != "importance"
            except ReductionError:
                return True  # it says so again where the curve is computed

    def _bare(self, reduced_prior: Distribution) -> tuple[Distribution, Distribution]:
        """Prior and reduced prior without a mask of the posterior's."""
        pair = self._prior, reduced_prior
        return unmask(*pair) if peel(self._posterior).mask is True else pair

    def _triple(self, reduced_prior: Distribution) -> tuple[Distribution, Distribution, Distribution] | None:
        q, (p, r) = self._posterior, self._bare(reduced_prior)
        if self._element is not None:
            parts = _marginals(q), elements(p), elements(r)
            if any(part is None for part in parts) or parts[0].batch_shape != parts[1].batch_shape:  # type: ignore[union-attr]
                return None
            return parts  # type: ignore[return-value]
        # A joint normal has a whole plate in one event, whose elements the priors have side by side.
        dims = len(q.event_shape) - len(p.event_shape)
        if not 0 <= dims <= len(p.batch_shape) or q.batch_shape + q.event_shape != p.batch_shape + p.event_shape:
            return None
        return q, to_event(p, dims), to_event(r, dims)

    def __call__(self, grid: Grid, values: Tensor | None = None) -> Curve:
        priors = grid.priors(values)
        batch = grid.batch(values) if self._has_rule(priors[0]) else None
        if batch is not None:
            try:
                return self._at(batch)
            except ReductionError:
                pass  # of one of them, and the others have an answer
        return _joined([self._alone(prior) for prior in priors])

    def _alone(self, reduced_prior: Distribution) -> Curve | ReductionError:
        try:
            if self._element is not None:
                return self._at(reduced_prior.expand(torch.Size([1, *reduced_prior.batch_shape])))
            reduced = self._in_coordinates(reduced_prior)
        except ReductionError as error:
            return error
        shape = self._prior.batch_shape + self._prior.event_shape
        mean, sd = (m.detach().unsqueeze(0) for m in moments(reduced.posteriors[self._site], shape))
        change = reduced.delta_evidence.detach().reshape(1)
        return Curve(change, mean, sd, reduced.method, trusted=torch.ones(1, dtype=torch.bool))

    def _in_coordinates(self, reduced_prior: Distribution, num_samples: int = NUM_SAMPLES) -> ReducedFactor:
        """In the coordinates that the guide draws in, as :func:`~pyro_bmrs.reduce_model` does."""
        p, r = self._bare(reduced_prior)
        how = {"method": "auto", "num_samples": num_samples}
        return self._factor.reduce({self._site: p}, {self._site: r}, how)

    def _at(self, reduced_priors: Distribution) -> Curve:
        triple = self._triple(reduced_priors)
        assert triple is not None
        with naming(self._site):
            reduced = evidence.reduce(*triple)
        change = reduced.delta_evidence.detach()
        count = len(change)
        own = triple[0].batch_shape + triple[0].event_shape
        mean, sd = (m.detach() for m in moments(reduced.posterior, torch.Size([count, *own])))
        if self._element is None:
            change = change.reshape(count, -1).sum(-1)
        else:
            change, mean, sd = (of_all.reshape(count, -1)[:, self._element] for of_all in (change, mean, sd))
        return Curve(change, mean, sd, reduced.method, trusted=torch.ones(count, dtype=torch.bool))


def _marginals(posterior: Distribution) -> Distribution | None:
    """The marginal of each element, of a normal in other coordinates as well."""
    parted = marginals(posterior)
    if parted is None and type(posterior) is TransformedDistribution:
        transform = torch.distributions.ComposeTransform(posterior.transforms)
        base = marginals(posterior.base_dist) if transform.domain.event_dim == 0 else None
        parted = None if base is None else push_forward(base, transform)
    return parted


def _joined(parts: Sequence[Curve | ReductionError]) -> Curve:
    """One curve out of one for each prior; where the evidence diverges it is NaN."""
    found = [part for part in parts if isinstance(part, Curve)]
    errors = [part for part in parts if isinstance(part, ReductionError)]
    if not found:
        raise errors[0]
    example = found[0]
    change, mean, sd = (torch.full_like(m, math.nan) for m in (example.delta_evidence, example.mean, example.sd))
    nothing = Curve(change, mean, sd, "none")
    whole = [part if isinstance(part, Curve) else nothing for part in parts]
    methods = [part.method for part in found]
    return Curve(
        torch.cat([part.delta_evidence for part in whole]),
        torch.cat([part.mean for part in whole]),
        torch.cat([part.sd for part in whole]),
        "quadrature" if "quadrature" in methods else methods[0],
        trusted=torch.tensor([isinstance(part, Curve) for part in parts]),
        diverged=str(errors[0]) if errors else None,
    )


class DrawsCurve:
    """
    By importance weights of draws, which are the same for all the priors.

    :param draws: of the posterior, with the priors of the site at each.
    :param site: the site.
    :param element: as for :class:`GuideCurve`.
    """

    def __init__(self, draws: Draws, site: str, element: int | None) -> None:
        self._draws, self._site, self._element = draws, site, element

    def __call__(self, grid: Grid, values: Tensor | None = None) -> Curve:
        columns = [self._ratio(prior) for prior in grid.priors(values)]
        return self._weighed(torch.stack(columns, -1).detach())

    def _ratio(self, reduced_prior: Distribution) -> Tensor:
        priors = ReducedPriors({self._site: frozenset()}, lambda name, _: reduced_prior)
        ratio = log_ratios(self._draws, priors)[self._site]
        return _of_element(self._site, ratio, self._draws.values[self._site].shape, self._element)

    def _weighed(self, log_weights: Tensor) -> Curve:
        efficiency = weight_efficiency(self._draws, (self._site,), log_weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReductionWarning)  # said in words of its own, of the whole grid at once
            estimate = importance_estimate(log_weights, relative_efficiency=efficiency)
        mean, sd = _moments(self._draws.values[self._site], estimate.log_weights, self._element)
        k = estimate.pareto_k
        return Curve(estimate.delta_evidence, mean, sd, "importance", estimate.standard_error, k, trusted=_is_light(k))


class ModelCurve:
    """
    By the draws with which the evidence of the full model was integrated: what the model says, not the guide.

    :param full: the evidence of the full model.
    :param prior: the prior of the site, which depends on no other.
    :param site: the site.
    :param element: as for :class:`GuideCurve`.
    """

    def __init__(self, full: LogEvidence, prior: Distribution, site: str, element: int | None) -> None:
        # Independent draws, so that any of them will do.
        step = -(-len(full.integral.points) // _MOST_DRAWS)
        self._values = full.log_joint.values(full.integral.points[::step])[site]
        self._log_weights = full.integral.log_weights[::step]
        self._prior, self._site, self._element = prior, site, element

    def __call__(self, grid: Grid, values: Tensor | None = None) -> Curve:
        own = log_density(self._prior, self._values)
        columns = [self._ratio(log_density(r, self._values), own) for r in grid.priors(values)]
        base = self._log_weights
        weights = base[:, None] + torch.stack(columns, -1).to(base)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReductionWarning)
            estimate = importance_estimate(weights.nan_to_num(-torch.inf))
        shares, before = estimate.log_weights.softmax(0), base.softmax(0)[:, None]
        # Both means are of the same draws, whose luck they share.
        error = (shares - before).square().sum(0).sqrt()
        count = estimate.effective_sample_size / len(base)
        trusted = _is_light(estimate.pareto_k) & (count >= _SMALLEST_SHARE)
        change = estimate.delta_evidence - (base.logsumexp(0) - math.log(len(base)))
        mean, sd = _moments(self._values, estimate.log_weights, self._element)
        return Curve(change, mean, sd, "integration", error, estimate.pareto_k, trusted)

    def _ratio(self, log_r: Tensor, log_p: Tensor) -> Tensor:
        dims = min(log_p.dim(), log_r.dim())
        ratio = log_r.flatten(dims).sum(-1) if log_r.dim() > dims else log_r
        ratio = ratio - (log_p.flatten(dims).sum(-1) if log_p.dim() > dims else log_p)
        return _of_element(self._site, ratio, self._values.shape, self._element)


def _of_element(site: str, ratio: Tensor, shape: torch.Size, element: int | None) -> Tensor:
    """The log ratio of one element, or the sum over all, at each draw."""
    rows = ratio.reshape(len(ratio), -1)
    if element is None:
        return rows.sum(-1)
    if ratio.shape != shape:
        raise ReductionError(
            f"the elements of site {site!r} are not independent under both priors, so that no prior is one element's; "
            "leave element= out, or give priors that are independent between elements"
        )
    return rows[:, element]


def _moments(values: Tensor, log_weights: Tensor, element: int | None) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation, the priors along the first dimension."""
    shares = log_weights.softmax(0).to(torch.double)
    flat = values.reshape(len(values), -1).to(torch.double)
    flat = flat if element is None else flat[:, element, None]
    centre = flat.mean(0)  # so that no digits are lost of a spread that is small beside the mean
    first = shares.mT @ (flat - centre)
    second = shares.mT @ (flat - centre).square() - first.square()
    shape = (-1,) if element is not None else (-1, *values.shape[1:])
    like = values if values.is_floating_point() else shares
    return (centre + first).reshape(shape).to(like), second.clamp(min=0).sqrt().reshape(shape).to(like)


def _is_light(pareto_k: Tensor) -> Tensor:
    return pareto_k <= LARGEST_K
