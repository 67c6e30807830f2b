# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
A point as the reduced prior: the Savage-Dickey density ratio.

Where the reduced model fixes the variable at x0, E_q[r/p] is the ratio of the posterior's to the prior's density there
(Dickey 1971, "The weighted likelihood ratio, linear hypotheses on normal location parameters", Annals of Mathematical
Statistics 42, https://doi.org/10.1214/aoms/1177693507). It needs no more of q and p than their densities.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence.registry import Reduced, register_reduction
from pyro_bmrs.evidence.support import ROLES, contains


@register_reduction(Distribution, Distribution, Delta)
def reduce_to_point(posterior: Distribution, prior: Distribution, reduced_prior: Any) -> Reduced:
    """
    log q(x0) - log p(x0) for the reduced prior ``Delta(x0)``.

    :raises ReductionError: where x0 is outside the support of the posterior or the prior, or where the Delta carries a
        log density of its own.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_bmrs.evidence import log_evidence_change
        >>> log_evidence_change(dist.Normal(0.5, 0.1), dist.Normal(0., 1.), dist.Delta(torch.tensor(0.)))
        tensor(-10.1974)
    """
    if torch.any(reduced_prior.log_density != 0):
        raise ReductionError("A Delta with a log_density is no normalised prior. Leave its log_density at 0.")
    point = reduced_prior.v
    for distribution, role in zip((posterior, prior), ROLES):
        _check_inside(distribution, point, role)
    delta_evidence = posterior.log_prob(point) - prior.log_prob(point)
    return Reduced(delta_evidence, lambda: reduced_prior.expand(delta_evidence.shape))


def _check_inside(distribution: Distribution, point: Tensor, role: str) -> None:
    inside = contains(distribution, point)
    if not inside.all():
        raise ReductionError(
            f"The point of the Delta reduced prior is outside the {role}'s support at {int((~inside).sum())} of "
            f"{inside.numel()} elements. Move it inside."
        )
