# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
What the parameters of several studies have in common, from the posterior of each study alone.

A hierarchical model is the reduction of all studies at once (Friston et al. 2016, *Bayesian model reduction and
empirical Bayes for group (DCM) studies*, https://doi.org/10.1016/j.neuroimage.2015.11.015). With the posterior
:math:`N(\mu_i, \Sigma_i)` of study i under the prior :math:`N(m, P)`, its data are known by their likelihood, a normal
of precision :math:`\Lambda_i = \Sigma_i^{-1} - P^{-1}`, and

.. math:: \theta_i = m + \sum_j x_{ij} \beta_j + \epsilon_i, \qquad \epsilon_i \sim N(0, s^2 \operatorname{diag} P)

has an evidence and a posterior in closed form for each s, over which both are integrated by quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LogNormal,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

from pyro_bmrs.errors import ReductionError, check_number
from pyro_bmrs.evidence.quadrature.panels import nodes
from pyro_bmrs.tables import numbers

if TYPE_CHECKING:
    import pandas as pd

_PANELS = 10
_TAIL = 1e-7
# A quarter of the prior's standard deviation, as in SPM, up to a factor of some 3.
_BETWEEN = LogNormal(math.log(0.25), 0.5)


@dataclass(frozen=True, eq=False)
class GroupEffects:
    """
    What the parameters of several studies have in common. Made by :func:`group_effects`.

    :param covariates: names of the effects on each parameter.
    :param delta_evidence: log evidence of the hierarchical model less that of all studies by themselves, in nats.
    :param mean: posterior mean of each effect on each parameter, shape ``(num_covariates, num_parameters)``.
    :param sd: its posterior standard deviation, of the same shape.
    :param study_mean: posterior mean of the parameters of each study under the hierarchical model, shape
        ``(num_studies, num_parameters)``.
    :param study_sd: its posterior standard deviation, of the same shape.
    :param between: posterior mean of s, the spread between studies in units of the prior's standard deviation.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_bmrs import group_effects
        >>> posteriors = [dist.Normal(torch.tensor([mean]), 0.2).to_event(1) for mean in (0.6, 0.5, 0.8, 0.7, 0.4)]
        >>> group = group_effects(posteriors, dist.Normal(torch.zeros(1), 1.0).to_event(1))
        >>> round(group.mean.item(), 1), group.study_mean.shape
        (0.6, torch.Size([5, 1]))
    """

    covariates: tuple[str, ...]
    delta_evidence: float
    mean: Tensor
    sd: Tensor
    study_mean: Tensor
    study_sd: Tensor
    between: float
    _levels: _Levels

    def without(self, covariate: str, parameters: Any = ...) -> float:
        """
        The change in log evidence, in nats, without an effect: where it is fixed at 0.

        :param covariate: its name.
        :param parameters: on which parameters; anything that indexes a vector of them. On all by default.
        :raises ReductionError: where no covariate has this name.
        """
        if covariate not in self.covariates:
            raise ReductionError(f"there is no covariate {covariate!r}; there are {list(self.covariates)}")
        chosen = torch.zeros(self.mean.shape, dtype=torch.bool)
        chosen[self.covariates.index(covariate)][parameters] = True
        return self._levels.fixed_at_zero(chosen.flatten())

    def table(self) -> pd.DataFrame:
        """
        A table of the effects, a row for each covariate and parameter.

        ``delta_evidence`` is of fixing this effect alone at 0, in nats, and ``probability`` that of the effect.
        """
        import pandas as pd

        rows = {}
        for row, covariate in enumerate(self.covariates):
            for column in range(self.mean.shape[1]):
                delta = self.without(covariate, column)
                mean, sd = float(self.mean[row, column]), float(self.sd[row, column])
                rows[covariate, column] = (mean, sd, delta, 1 / (1 + math.exp(min(delta, 700.0))))
        index = pd.MultiIndex.from_tuples(rows, names=["covariate", "parameter"])
        return pd.DataFrame(list(rows.values()), index, ["mean", "sd", "delta_evidence", "probability"])

    def __repr__(self) -> str:
        shape = f"{len(self.study_mean)} studies, {', '.join(self.covariates)}, {self.mean.shape[1]} parameters"
        return f"GroupEffects({shape}): ΔF = {self.delta_evidence:.2f} nats, spread {self.between:.2g} of the prior's"


def group_effects(
    posteriors: Sequence[Distribution],
    prior: Distribution,
    design: Any = None,
    *,
    covariates: Sequence[str] | None = None,
    between: float | Distribution = _BETWEEN,
    scale: float = 1.0,
) -> GroupEffects:
    """
    A hierarchical model of studies that were fitted one by one, without refitting any.

    Parameters of a study are normal about what its covariates predict. All is exact for normal posteriors: empirical
    Bayes by Bayesian model reduction (K. Friston et al. (2016), *Bayesian model reduction and empirical Bayes for group
    (DCM) studies*, https://doi.org/10.1016/j.neuroimage.2015.11.015).

    :param posteriors: of the same parameters in each study: independent or multivariate normals over a vector.
    :param prior: the normal prior that each study was fitted with.
    :param design: covariates of each study, shape ``(num_studies, num_covariates)``; a column of ones, the mean of the
        group, by default. Effects are added to the prior's mean.
    :param covariates: names of the columns; ``mean``, ``x1``, ``x2`` ... by default.
    :param between: the spread s between studies with the same covariates, in units of the prior's standard deviation: a
        number, or a distribution of it with quantiles. By default log-normal about a quarter.
    :param scale: standard deviation of the normal prior of each effect, in units of the prior's.
    :return: the :class:`GroupEffects`.
    :raises ReductionError: for posteriors that are not normal, of another shape than the prior, or no narrower; and for
        a design of another shape, with a NaN, or a spread or scale that is not positive.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_bmrs import group_effects
        >>> prior = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> means = [0.6, 0.5, 0.8, 0.7, 0.4]
        >>> posteriors = [dist.Normal(torch.tensor([mean]), 0.2).to_event(1) for mean in means]
        >>> group_effects(posteriors, prior)
        GroupEffects(5 studies, mean, 1 parameters): ΔF = 4.17 nats, spread 0.2 of the prior's
    """
    check_number(scale, "the scale of the effects", above=0)
    levels = _read(posteriors, prior, design, between, float(scale))
    names = covariates or ["mean", *(f"x{column}" for column in range(1, levels.design.shape[1]))]
    if len(names) != levels.design.shape[1]:
        raise ReductionError(
            f"covariates has {len(names)} names for the {levels.design.shape[1]} columns of the design"
        )
    return levels.tell(tuple(names))


class _Solved(NamedTuple):
    """For each s: the log evidence, and mean and covariance of the effects, the parameters of all studies."""

    log_evidence: Tensor
    loc: Tensor
    covariance: Tensor
    study_loc: Tensor
    study_variance: Tensor


@dataclass(frozen=True, eq=False)
class _Levels:
    """
    The likelihood of each study, and the hierarchical prior.

    :param precision: of each likelihood, shape ``(n, d, d)``.
    :param pull: precision times location of each, from the prior's mean, shape ``(n, d)``.
    :param constant: log of posterior over prior at the prior's mean, shape ``(n,)``.
    :param loc: the prior's mean, shape ``(d,)``.
    :param variance: the prior's variances, shape ``(d,)``.
    :param design: shape ``(n, k)``.
    :param spreads: values of s, shape ``(m,)``.
    :param log_weights: of each, prior times width.
    :param scale: of the effects.
    """

    precision: Tensor
    pull: Tensor
    constant: Tensor
    loc: Tensor
    variance: Tensor
    design: Tensor
    spreads: Tensor
    log_weights: Tensor
    scale: float

    @property
    def _effect_variance(self) -> Tensor:
        return self.scale**2 * self.variance.repeat(self.design.shape[1])

    def solve(self) -> _Solved:
        """All for each s, along the first dimension."""
        count, size = self.pull.shape
        eye = torch.eye(size, dtype=torch.double)
        noise = (self.spreads.square().unsqueeze(-1) * self.variance).unsqueeze(1)  # (m, 1, d)
        # The covariance of a study given its effects, and how much of the likelihood is left when it is averaged over.
        shrink = torch.linalg.inv(eye + self.precision * noise.unsqueeze(-2))  # (1 + L W)^-1, (m, n, d, d)
        inner = noise.unsqueeze(-1) * shrink
        seen, pulled = shrink @ self.precision, (shrink @ self.pull.unsqueeze(-1)).squeeze(-1)
        base = self.constant + 0.5 * (self.pull * (inner @ self.pull.unsqueeze(-1)).squeeze(-1)).sum(-1)
        base = base + 0.5 * torch.linalg.slogdet(shrink).logabsdet
        # (m, n, d, k d): the rows of each study's design.
        rows = torch.einsum("nk,de->ndke", self.design, eye).reshape(count, size, -1)
        precision = (rows.mT @ seen @ rows).sum(1) + self._effect_variance.reciprocal().diag()
        factor = torch.linalg.cholesky(precision)
        pull = (rows.mT @ pulled.unsqueeze(-1)).sum(1)
        loc = torch.cholesky_solve(pull, factor)
        log_evidence = base.sum(-1) + 0.5 * (pull * loc).sum((-2, -1))
        log_evidence -= factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * self._effect_variance.log().sum()
        covariance = torch.cholesky_inverse(factor)
        predicted = (rows @ loc.unsqueeze(1)).squeeze(-1)
        # Given the effects, a study is its likelihood under the prior about what they predict.
        follow = shrink.mT @ rows
        study_loc = (inner @ self.pull.unsqueeze(-1)).squeeze(-1) + (shrink.mT @ predicted.unsqueeze(-1)).squeeze(-1)
        study_covariance = inner + follow @ covariance.unsqueeze(1) @ follow.mT
        variance = study_covariance.diagonal(dim1=-2, dim2=-1)
        return _Solved(log_evidence, loc.squeeze(-1), covariance, study_loc, variance)

    def _weights(self, solved: _Solved) -> tuple[Tensor, Tensor]:
        joint = solved.log_evidence + self.log_weights
        return joint.logsumexp(0), torch.softmax(joint, 0)

    def tell(self, names: tuple[str, ...]) -> GroupEffects:
        """The moments over all s."""
        solved = self.solve()
        total, weights = self._weights(solved)
        effect_variances = solved.covariance.diagonal(dim1=-2, dim2=-1)
        mean, sd = _averaged(weights, solved.loc, effect_variances)
        study_mean, study_sd = _averaged(weights, solved.study_loc, solved.study_variance)
        shape = (len(names), len(self.variance))
        return GroupEffects(
            names,
            float(total),
            mean.reshape(shape),
            sd.reshape(shape),
            study_mean + self.loc,
            study_sd,
            float(weights @ self.spreads),
            self,
        )

    def fixed_at_zero(self, chosen: Tensor) -> float:
        """The change in log evidence where some effects are 0: the ratio of their densities there, averaged over s."""
        solved = self.solve()
        _, weights = self._weights(solved)
        zero = torch.zeros(int(chosen.sum()), dtype=torch.double)
        covariance = solved.covariance[:, chosen][:, :, chosen]
        posterior = MultivariateNormal(solved.loc[:, chosen], covariance, validate_args=False).log_prob(zero)
        prior = Normal(zero, self._effect_variance[chosen].sqrt()).log_prob(zero).sum()
        return float((weights.log() + posterior).logsumexp(0) - prior)


def _averaged(weights: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a mixture."""
    mean = torch.tensordot(weights, means, 1)
    return mean, torch.tensordot(weights, variances + (means - mean).square(), 1).sqrt()


def _read(
    posteriors: Sequence[Distribution], prior: Distribution, design: Any, between: float | Distribution, scale: float
) -> _Levels:
    if not len(posteriors):
        raise ReductionError("there are no posteriors; give one for each study")
    loc, covariance = _moments(prior, "prior")
    moments = [_moments(posterior, f"posterior of study {number}") for number, posterior in enumerate(posteriors)]
    for number, (own, _) in enumerate(moments):
        if own.shape != loc.shape:
            raise ReductionError(f"the posterior of study {number} has {len(own)} parameters, and the prior {len(loc)}")
    locs, covariances = torch.stack([own for own, _ in moments]) - loc, torch.stack([own for _, own in moments])
    own_precision, prior_precision = torch.linalg.inv(covariances), torch.linalg.inv(covariance)
    precision = own_precision - prior_precision
    wrong = torch.linalg.eigvalsh(precision).amin(-1) < -1e-6 * prior_precision.diagonal().max()
    if wrong.any():
        raise ReductionError(
            f"the posterior of study {int(wrong.nonzero()[0])} is broader than the prior in some direction, which no "
            "data make of a normal prior; give the prior that the studies were fitted with"
        )
    pull = (own_precision @ locs.unsqueeze(-1)).squeeze(-1)
    constant = 0.5 * (torch.linalg.slogdet(covariance).logabsdet - torch.linalg.slogdet(covariances).logabsdet)
    constant = constant - 0.5 * (locs * pull).sum(-1)
    spreads, log_weights = _spreads(between)
    matrix = _design(design, len(moments))
    return _Levels(precision, pull, constant, loc, covariance.diagonal(), matrix, spreads, log_weights, scale)


def _moments(distribution: Any, what: str) -> tuple[Tensor, Tensor]:
    bare: Any = distribution
    while isinstance(bare, Independent):
        bare = bare.base_dist
    if not isinstance(bare, (Normal, MultivariateNormal, LowRankMultivariateNormal)):
        raise ReductionError(f"the {what} is a {type(bare).__name__}; give a normal over a vector of parameters")
    if bare.mean.dim() != 1:
        raise ReductionError(f"the {what} has the shape {tuple(bare.mean.shape)}; give a normal over one vector")
    with torch.no_grad():
        loc = bare.mean.detach().double().cpu()
        if isinstance(bare, Normal):
            covariance = bare.variance.expand(loc.shape).diag()
        else:
            covariance = bare.covariance_matrix
        covariance = covariance.detach().double().cpu()
    if not (loc.isfinite().all() and covariance.isfinite().all()):
        raise ReductionError(f"the {what} has a mean or a covariance that is NaN or infinite")
    return loc, covariance


def _spreads(between: float | Distribution) -> tuple[Tensor, Tensor]:
    if not isinstance(between, Distribution):
        check_number(between, "the spread between studies", above=0)
        return torch.tensor([float(between)], dtype=torch.double), torch.zeros(1, dtype=torch.double)
    try:
        low, high = (float(between.icdf(torch.tensor(level, dtype=torch.double)).log()) for level in (_TAIL, 1 - _TAIL))
    except NotImplementedError as error:
        raise ReductionError(
            f"a {type(between).__name__} has no quantiles; give the spread between studies as a number, or as a "
            "distribution that has, such as LogNormal or HalfNormal"
        ) from error
    if not math.isfinite(low) or not math.isfinite(high):
        raise ReductionError("the spread between studies must be positive for sure, as under LogNormal or HalfNormal")
    edges = torch.linspace(low, high, _PANELS + 1, dtype=torch.double)
    at, weights = nodes(edges[:-1], edges[1:])
    log_spread = at.flatten()
    spreads = log_spread.exp()
    return spreads, between.log_prob(spreads) + log_spread + weights.flatten().log()


def _design(design: Any, count: int) -> Tensor:
    if design is None:
        return torch.ones(count, 1, dtype=torch.double)
    matrix = numbers(design, "design")
    if matrix.dim() != 2 or len(matrix) != count or not matrix.shape[1]:
        raise ReductionError(f"design has the shape {tuple(matrix.shape)}; give a row for each of the {count} studies")
    if not matrix.isfinite().all():
        raise ReductionError("design is NaN or infinite somewhere; leave out studies without their covariates")
    return matrix
