# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Multivariate normals, of full or low rank, and independent normals against them in any role.

With precisions :math:`\Lambda` and means :math:`\mu`, :math:`\Lambda_s = \Lambda_q + \Lambda_r - \Lambda_p`, and

.. math::

    \Delta F = \tfrac12 \log\frac{|\Lambda_q| |\Lambda_r|}{|\Lambda_p| |\Lambda_s|} - \tfrac12 \min_x \left[
    \|x - \mu_q\|^2_{\Lambda_q} + \|x - \mu_r\|^2_{\Lambda_r} - \|x - \mu_p\|^2_{\Lambda_p} \right]

(Friston, Parr and Zeidman 2018, https://arxiv.org/abs/1805.07092). The minimum is evaluated at the minimiser, measured
from the posterior's mean: no term of size :math:`\mu^2/\sigma^2` cancels another, and an error in the minimiser enters
squared. Where the reduced prior is narrower than the posterior, the minimiser is next to the reduced prior's mean, and
is measured from there: numbers about the posterior's mean may be many of its standard deviations apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal
from torch.linalg import cholesky_ex, solve_triangular

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence.registry import Reduced, register_reduction


def reduce_multivariate_normal(posterior: Distribution, prior: Distribution, reduced_prior: Distribution) -> Reduced:
    """
    The rule for multivariate normals and independent normals, of which at least one is multivariate.

    A low-rank posterior with independent normals as prior and reduced prior, as of ``AutoLowRankMultivariateNormal``,
    is reduced in its rank: O(n k^2) for n variables and rank k, no n-by-n matrix, and the reduced posterior is of low
    rank again. Every other triple is reduced in n dimensions by dense factors, O(n^3).

    :raises ReductionError: where the reduced posterior's precision is not positive definite.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_bmrs.evidence import log_evidence_change
        >>> posterior = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[0.2, 0.1], [0.1, 0.2]]))
        >>> prior = dist.Normal(torch.zeros(2), 1.).to_event(1)
        >>> reduced_prior = dist.Normal(torch.zeros(2), torch.tensor([1., 0.01])).to_event(1)
        >>> log_evidence_change(posterior, prior, reduced_prior)
        tensor(0.8045)
    """
    triple = (posterior, prior, reduced_prior)
    if not all(map(_is_normal, triple)):
        other: Reduced = NotImplemented
        return other
    if isinstance(posterior, LowRankMultivariateNormal) and all(isinstance(d, Independent) for d in triple[1:]):
        return _reduce_in_rank(posterior, _factor(prior), _factor(reduced_prior))
    return _reduce_in_full(*map(_factor, triple))


_TYPES = (MultivariateNormal, LowRankMultivariateNormal, Independent)
for _triple in product(_TYPES, repeat=3):
    if _triple != (Independent,) * 3:
        register_reduction(*_triple)(reduce_multivariate_normal)


@dataclass(frozen=True)
class _Factor:
    """A mean and a factor of the covariance: lower triangular, or the diagonal of a diagonal one."""

    loc: Tensor
    scale: Tensor
    is_diagonal: bool

    def whiten(self, columns: Tensor) -> Tensor:
        if self.is_diagonal:
            return columns / self.scale.unsqueeze(-1)
        whitened: Tensor = solve_triangular(self.scale, columns, upper=False)
        return whitened

    @property
    def diagonal(self) -> Tensor:
        return self.scale if self.is_diagonal else self.scale.diagonal(dim1=-2, dim2=-1)

    def log_det(self) -> Tensor:
        return self.diagonal.log().sum(-1)


def _is_normal(distribution: Distribution) -> bool:
    if not isinstance(distribution, Independent):
        return True
    return isinstance(distribution.base_dist, Normal) and distribution.reinterpreted_batch_ndims == 1


def _factor(distribution: Any) -> _Factor:
    if isinstance(distribution, Independent):
        return _Factor(distribution.base_dist.loc, distribution.base_dist.scale, True)
    return _Factor(distribution.loc, distribution.scale_tril, False)


def _reduce_in_full(q: _Factor, p: _Factor, r: _Factor) -> Reduced:
    eye = torch.eye(q.loc.shape[-1], dtype=q.loc.dtype, device=q.loc.device)
    # In the coordinates that whiten q·r, a reduced prior of any narrowness leaves a well-conditioned matrix; the
    # precision itself would lose the broad directions in the narrow ones. So would the orthogonal factors of rows and
    # columns that do not go from the narrow to the broad (Cox and Higham 1998, https://doi.org/10.1137/S0895479896309506).
    rows = torch.cat(torch.broadcast_tensors(q.whiten(eye), r.whiten(eye)), -2)
    order = rows.norm(dim=-2).argsort(-1, descending=True)
    back = order.argsort(-1)
    rows = _rows(rows, rows.norm(dim=-1).argsort(-1, descending=True))
    root = torch.linalg.qr(_rows(rows.mT, order).mT).R

    def whitened(factor: _Factor) -> Tensor:
        columns: Tensor = solve_triangular(root, _rows(factor.whiten(eye).mT, order).mT, upper=True, left=False)
        return columns

    def minimiser(pull: Tensor) -> Tensor:
        at: Tensor = solve_triangular(root, torch.cholesky_solve(pull, inner), upper=True)
        return _rows(at, back)

    reduced_root, prior_root = whitened(r), whitened(p)
    inner, info = cholesky_ex(eye - prior_root.mT @ prior_root)
    _check_definite(info)

    to_reduced, to_prior = (r.loc - q.loc).unsqueeze(-1), (p.loc - q.loc).unsqueeze(-1)
    step = minimiser(reduced_root.mT @ r.whiten(to_reduced) - prior_root.mT @ p.whiten(to_prior))
    # The same from the reduced prior's mean.
    apart, of_posterior = prior_root.mT @ p.whiten(to_reduced - to_prior), whitened(q).mT @ q.whiten(to_reduced)
    rest = minimiser(apart - of_posterior)
    is_narrow = _is_narrow(r.diagonal, q.whiten(eye).square().sum(-2)).unsqueeze(-1)
    quadratic = (
        q.whiten(step).square()
        + torch.where(is_narrow, r.whiten(rest), r.whiten(step - to_reduced)).square()
        - p.whiten(step - to_prior).square()
    ).sum((-2, -1))
    log_dets = root.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1) + inner.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    delta_evidence = p.log_det() - q.log_det() - r.log_det() - log_dets - 0.5 * quadratic

    def build() -> Distribution:
        # The covariance is the square of (K' R)^-1; a QR of its transpose makes the factor lower triangular.
        spread = _rows(solve_triangular(inner.mT @ root, eye, upper=True), back)
        factor = torch.linalg.qr(spread.mT).R.mT
        factor = factor * factor.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        loc = torch.where(is_narrow, r.loc.unsqueeze(-1) + rest, q.loc.unsqueeze(-1) + step).squeeze(-1)
        return dist.MultivariateNormal(loc, scale_tril=factor, validate_args=False)

    return Reduced(delta_evidence, build)


def _reduce_in_rank(posterior: LowRankMultivariateNormal, p: _Factor, r: _Factor) -> Reduced:
    # With C_q = D + W W', the reduced precision is E - U cap^-1 U', E = D^-1 + diag(change), U = D^-1 W; it is positive
    # definite if and only if E is and the k-by-k matrix below is.
    loc, factor, diagonal = posterior.loc, posterior.cov_factor, posterior.cov_diag
    precision, prior_precision = r.scale.square().reciprocal(), p.scale.square().reciprocal()
    change = precision - prior_precision
    growth = diagonal * change
    _check_definite((growth <= -1).any(-1))
    shrunk = factor / (1 + growth).unsqueeze(-1)
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inner, info = cholesky_ex(eye + factor.mT @ (change.unsqueeze(-1) * shrunk))
    _check_definite(info)

    to_reduced, to_prior = r.loc - loc, p.loc - loc

    def minimiser(pull: Tensor) -> Tensor:
        along = torch.cholesky_solve(shrunk.mT @ pull.unsqueeze(-1), inner)
        at: Tensor = diagonal / (1 + growth) * pull + (shrunk @ along).squeeze(-1)
        return at

    capacitance = torch.linalg.cholesky(eye + factor.mT @ (factor / diagonal.unsqueeze(-1)))

    def parted(shift: Tensor) -> tuple[Tensor, Tensor]:
        within = torch.cholesky_solve(factor.mT @ (shift / diagonal).unsqueeze(-1), capacitance)
        return within.squeeze(-1), shift - (factor @ within).squeeze(-1)

    step = minimiser(precision * to_reduced - prior_precision * to_prior)
    # The same from the reduced prior's mean.
    rest = minimiser(prior_precision * (to_reduced - to_prior) - parted(to_reduced)[1] / diagonal)
    is_narrow = _is_narrow(r.scale, diagonal.reciprocal())
    # The norm of the step under the posterior is a sum of squares: of the part in the factor's space and of the rest.
    within, beside = parted(step)
    from_reduced = torch.where(is_narrow, rest, step - to_reduced)
    quadratic = within.square().sum(-1) + (
        beside.square() / diagonal + (from_reduced / r.scale).square() - ((step - to_prior) / p.scale).square()
    ).sum(-1)
    log_dets = 0.5 * growth.log1p().sum(-1) + inner.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    delta_evidence = p.log_det() - r.log_det() - log_dets - 0.5 * quadratic

    def build() -> Distribution:
        reduced_factor = solve_triangular(inner, shrunk.mT, upper=False).mT
        reduced_diagonal = diagonal / (1 + growth)
        reduced_loc = torch.where(is_narrow, r.loc + rest, loc + step)
        return dist.LowRankMultivariateNormal(reduced_loc, reduced_factor, reduced_diagonal, validate_args=False)

    return Reduced(delta_evidence, build)


def _rows(matrix: Tensor, order: Tensor) -> Tensor:
    """The rows of each matrix of a batch, in an order of its own."""
    batch = torch.broadcast_shapes(matrix.shape[:-2], order.shape[:-1])
    matrix, order = matrix.expand(batch + matrix.shape[-2:]), order.expand(batch + order.shape[-1:])
    return matrix.take_along_dim(order.unsqueeze(-1), -2)


def _is_narrow(scale: Tensor, precision: Tensor) -> Tensor:
    """Where a reduced prior of some scale is narrower than a posterior of some precision, all other elements given."""
    return scale.square() * precision < 1


def _check_definite(failed: Tensor) -> None:
    failed = failed > 0
    if failed.any():
        raise ReductionError(
            f"The reduced prior is broader than the prior in a direction in which the posterior still has mass, at "
            f"{int(failed.sum())} of {failed.numel()} elements: the evidence integral diverges. Give a reduced prior "
            "no broader than the prior."
        )
