# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A reduced prior that is one distribution for some elements of a site and another for the rest, element by element."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import MaskedMixture
from torch.distributions import Distribution

from pyro_bmrs.evidence.dispatch import METHODS, reduce
from pyro_bmrs.evidence.registry import Reduced, register_reduction


@register_reduction(Distribution, Distribution, MaskedMixture)
def reduce_to_masked_mixture(posterior: Distribution, prior: Distribution, reduced_prior: Any) -> Reduced:
    """
    The reduction to the one component where the mask says so, and to the other elsewhere.

    Both components must be reduced priors for all elements, though each counts for some only.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_bmrs.evidence import log_evidence_change
        >>> prior = dist.Normal(torch.zeros(2), 1.)
        >>> reduced_prior = dist.MaskedMixture(torch.tensor([True, False]), prior, dist.Delta(torch.zeros(2)))
        >>> log_evidence_change(dist.Normal(torch.ones(2), 0.1), prior, reduced_prior).round(decimals=3)
        tensor([-47.6970,   0.0000])
    """
    mask = reduced_prior.mask
    off, on = (reduce(posterior, prior, part) for part in (reduced_prior.component0, reduced_prior.component1))
    shape = off.delta_evidence.shape
    return Reduced(
        torch.where(mask, on.delta_evidence, off.delta_evidence),
        lambda: MaskedMixture(mask.expand(shape), off.posterior.expand(shape), on.posterior.expand(shape)),
        max(off.method, on.method, key=METHODS.index),
    )
