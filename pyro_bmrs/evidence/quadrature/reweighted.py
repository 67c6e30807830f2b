# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The change in log evidence of one-dimensional elements by numerical integration, and the distribution that goes with it.

The integral of q r / p is taken over the intersection of the supports of q and r, in an unconstrained coordinate, to
1e-8 in double precision for smooth densities.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.types import _size

from pyro_bmrs.errors import ReductionWarning
from pyro_bmrs.evidence.accuracy import Accuracy
from pyro_bmrs.evidence.quadrature.integrand import Integrand, find_integrand
from pyro_bmrs.evidence.quadrature.panels import nodes
from pyro_bmrs.evidence.registry import Reduced
from pyro_bmrs.evidence.support import common_interval
from pyro_bmrs.structure.parameters import ParameterMap, map_parameters

ACCURACY = 1e-8
_MOST_STEPS = 100


def reduce_by_quadrature(posterior: Distribution, prior: Distribution, reduced_prior: Distribution) -> Reduced:
    """
    The change in log evidence of independent scalars by adaptive quadrature, differentiable in all parameters.

    Peaks are found from quantiles (or draws, where there are none) of all three distributions; everything between and
    beyond is searched on a doubly exponential scale. Kinks at medians and locations are met exactly.

    :raises ReductionError: where a support is no interval, the reduced prior's support leaves the prior's, or the
        integral diverges.
    :warns ReductionWarning: where the error bound is above 1e-8 (in single precision: above its rounding).

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_bmrs.evidence import reduce
        >>> reduced = reduce(dist.LogNormal(0., 0.1), dist.HalfCauchy(1.), dist.Gamma(3., 5.))
        >>> reduced.method, reduced.delta_evidence
        ('quadrature', tensor(0.2799))
    """
    integrand = find_integrand(posterior, prior, reduced_prior)
    error = integrand.panels.error + integrand.rounding
    doubtful = error > max(ACCURACY, 2 * integrand.tolerance)
    if doubtful.any():
        warnings.warn(
            f"Quadrature may be wrong by {float(error.nan_to_num().max()):.1e} nats, at {int(doubtful.sum())} of "
            f"{doubtful.numel()} elements: the densities jump or are rough there, or are narrower than numbers are "
            "apart (then take a dist.Delta). Compare method='importance'.",
            ReductionWarning,
            stacklevel=2,
        )
    delta_evidence = integrand.log_integral()
    return Reduced(
        delta_evidence,
        lambda: ReweightedDistribution(posterior, prior, reduced_prior, delta_evidence),
        Accuracy("quadrature"),
    )


class ReweightedDistribution(TorchDistribution):
    """
    The distribution of density q(x) r(x) / p(x), normalised, of a scalar x.

    It is the reduced posterior where no family holds it. Moments, cdf and quantiles come from adaptive quadrature;
    draws are quantiles of uniform numbers, with pathwise gradients by implicit differentiation.

    :param posterior: q, batched over elements, of event dimension 0, as are the other two.
    :param prior: p.
    :param reduced_prior: r.
    :param log_evidence: the log of the integral of q r / p, of the batch shape.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_bmrs.evidence.quadrature import ReweightedDistribution
        >>> torch.set_default_dtype(torch.float64)
        >>> q, p, r = dist.Normal(1., 1.), dist.Normal(0., 2.), dist.Normal(0., 1.)
        >>> s = ReweightedDistribution(q, p, r, torch.tensor(-0.1487))
        >>> s.mean, s.variance
        (tensor(0.5714), tensor(0.5714))
        >>> s.cdf(s.icdf(torch.tensor(0.3)))
        tensor(0.3000)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(
        self,
        posterior: Distribution,
        prior: Distribution,
        reduced_prior: Distribution,
        log_evidence: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.posterior, self.prior, self.reduced_prior = posterior, prior, reduced_prior
        shapes = (d.batch_shape for d in (posterior, prior, reduced_prior))
        shape = torch.broadcast_shapes(log_evidence.shape, *shapes)
        self.log_evidence = log_evidence.expand(shape)
        super().__init__(shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The intersection of the supports of posterior, prior and reduced prior."""
        return common_interval(self.posterior, self.prior, self.reduced_prior).constraint()

    def expand(self, batch_shape: _size, _instance: Any = None) -> ReweightedDistribution:
        """The same distribution, of a larger batch shape."""
        shape = torch.Size(batch_shape)
        q, p, r = self.posterior.expand(shape), self.prior.expand(shape), self.reduced_prior.expand(shape)
        new = ReweightedDistribution(q, p, r, self.log_evidence.expand(shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _map_parameters(self, function: ParameterMap, prefix: str) -> ReweightedDistribution:
        # Its normaliser belongs to just these parameters: none of them can be moved by itself.
        def fixed(path: str, *described: Any) -> Tensor:
            return function(path + "_fixed", *described)

        return ReweightedDistribution(
            map_parameters(self.posterior, fixed, prefix + "posterior_"),
            map_parameters(self.prior, fixed, prefix + "prior_"),
            map_parameters(self.reduced_prior, fixed, prefix + "reduced_prior_"),
            fixed(prefix + "log_evidence", self.log_evidence, constraints.real, 0),
            validate_args=False,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        if self._validate_args:
            self._validate_sample(value)
        ratio = self.reduced_prior.log_prob(value) - self.prior.log_prob(value)
        return self.posterior.log_prob(value) + ratio - self.log_evidence

    @property
    def mean(self) -> Tensor:
        """The mean."""
        weights, x = self._weighted_nodes()
        return (weights * x).sum((0, 1))

    @property
    def variance(self) -> Tensor:
        """The variance."""
        weights, x = self._weighted_nodes()
        return (weights * (x - (weights * x).sum((0, 1))).square()).sum((0, 1))

    def cdf(self, value: Tensor) -> Tensor:
        """The probability below ``value``; differentiable in it and in all parameters."""
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        _, below, log_total = self._table()
        t = self._integrand.line.find(value)
        panels = self._integrand.relevant
        left, right, below = _look_up(t.detach(), panels.left, panels.left, panels.right, below)
        return below + self._mass_between(left, torch.minimum(torch.maximum(t, left), right), log_total)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile of a probability; differentiable in it and in all parameters."""
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        with torch.no_grad():
            x = self._integrand.line.at(self._solve(value))[0]
        if not torch.is_grad_enabled():
            return x
        probability = self.cdf(x)
        if not (probability.requires_grad or value.requires_grad):
            return x
        # Implicit differentiation: cdf(x; parameters) = value, so dx = (dvalue - dcdf) / density.
        slack = (value - value.detach()) - (probability - probability.detach())
        return x + slack / self.log_prob(x).exp().detach()

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """Draws with pathwise gradients."""
        like = self.log_evidence
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.icdf(torch.rand(shape, dtype=like.dtype, device=like.device))

    @cached_property
    def _integrand(self) -> Integrand:
        return find_integrand(self.posterior, self.prior, self.reduced_prior)

    def _weighted_nodes(self) -> tuple[Tensor, Tensor]:
        log_mass, x = self._integrand.nodes()
        return (log_mass - torch.logsumexp(log_mass, (0, 1))).exp(), x

    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mass of each panel, the mass below it, and the log of the total by which both are divided."""
        log_mass = self._integrand.nodes()[0].logsumexp(0)
        log_total = log_mass.logsumexp(0)
        mass = (log_mass - log_total).exp()
        return mass, mass.cumsum(0) - mass, log_total

    def _mass_between(self, left: Tensor, right: Tensor, log_total: Tensor) -> Tensor:
        t, weights = nodes(left, right)
        return (weights * (self._integrand.at(t)[0] - log_total).exp()).sum(0)

    def _solve(self, value: Tensor) -> Tensor:
        """The t below which the probability is ``value``: Newton's method, kept within a shrinking bracket."""
        mass, below, log_total = self._table()
        panels = self._integrand.relevant
        start, end, mass, below = _look_up(value, below, panels.left, panels.right, mass, below)
        missing = value - below
        low, high = start, end
        t = start + (end - start) * (missing / mass).clamp(0, 1)
        for _ in range(_MOST_STEPS):
            excess = self._mass_between(start, t, log_total) - missing
            low, high = torch.where(excess < 0, t, low), torch.where(excess < 0, high, t)
            step = t - excess / (self._integrand.at(t)[0] - log_total).exp()
            inside = (step > low) & (step < high)
            proposal = torch.where(inside, step, 0.5 * (low + high))
            eps = torch.finfo(t.dtype).eps
            done = (excess.abs() <= 32 * eps * value) | ((proposal - t).abs() <= 4 * eps * (1 + t.abs()))
            t = torch.where(done, t, proposal)
            if done.all():
                break
        return t


def _look_up(value: Tensor, starts: Tensor, *tables: Tensor) -> list[Tensor]:
    """The entries of tables over panels, for the last panel that starts at or below a value."""
    index = (value.unsqueeze(-1) >= starts.movedim(0, -1)).sum(-1, keepdim=True).sub(1).clamp(min=0)
    return [table.movedim(0, -1).expand(value.shape + (-1,)).gather(-1, index).squeeze(-1) for table in tables]
