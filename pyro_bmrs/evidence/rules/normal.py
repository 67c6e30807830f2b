# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
The exact reduction of normals among themselves: the untruncated case of :mod:`.interval_normal`, in a tenth of its
operations. A model may have hundreds of sites, and nearly all of them are of this kind.
"""

from __future__ import annotations

import pyro.distributions as dist
from torch.distributions import Normal

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence.registry import Reduced, register_reduction


@register_reduction(Normal, Normal, Normal)
def reduce_normals(posterior: Normal, prior: Normal, reduced_prior: Normal) -> Reduced:
    r"""
    The reduction of a normal posterior and prior to a normal reduced prior, elementwise.

    With precisions :math:`\lambda`, locations :math:`\mu` and :math:`\lambda_s = \lambda_q + \lambda_r - \lambda_p`,

    .. math:: \Delta F = \tfrac12 \log \frac{\lambda_q \lambda_r}{\lambda_p \lambda_s} - \frac{\lambda_q \lambda_r
        (\mu_q - \mu_r)^2 - \lambda_q \lambda_p (\mu_q - \mu_p)^2 - \lambda_r \lambda_p (\mu_r - \mu_p)^2}{2 \lambda_s}.

    Source: K. Friston, T. Parr and P. Zeidman (2018), *Bayesian model reduction*, https://arxiv.org/abs/1805.07092.

    :raises ReductionError: where the reduced prior is so much broader than the prior that the evidence diverges.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_bmrs.evidence import reduce
        >>> reduced = reduce(dist.Normal(0.5, 0.1), dist.Normal(0., 1.), dist.Normal(0., 0.5))
        >>> reduced.delta_evidence, reduced.posterior.mean
        (tensor(0.3143), tensor(0.4854))
    """
    q, p, r = posterior.scale**-2, prior.scale**-2, reduced_prior.scale**-2
    # The difference that cancels is taken first.
    precision = (q - p) + r
    # A scale of infinity is no normal's; what is wrong with the parameters is then said before this.
    converges = (precision > 0) & (q > 0) & (p > 0) & (r > 0)
    if not converges.all():
        raise ReductionError(
            f"The reduced prior is broader than the prior where the posterior still has mass, at "
            f"{int((~converges).sum())} of {converges.numel()} elements, and the evidence diverges. A reduced prior "
            "has to be the narrower of the two in the posterior's tails: give it a smaller scale, or bounds."
        )
    to_q, to_p = posterior.loc - reduced_prior.loc, prior.loc - reduced_prior.loc
    apart = posterior.loc - prior.loc
    energy = r * (q * to_q.square() - p * to_p.square()) - q * p * apart.square()
    delta_evidence = 0.5 * ((q * r / (p * precision)).log() - energy / precision)

    def build() -> Normal:
        shift = (q * to_q - p * to_p) / precision
        return dist.Normal(reduced_prior.loc + shift, precision.rsqrt(), validate_args=False)

    return Reduced(delta_evidence, build)
