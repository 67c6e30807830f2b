# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The coordinates of a site that its density is integrated over.

Two kinds: those of the bijection that belongs to the site's support, and deviations from the prior's location in units
of its scale, where the prior has these. In the second, what a group's members have in common does not narrow or widen
them, so that a posterior of few data for each member is no funnel (O. Papaspiliopoulos, G. Roberts and M. Sköld (2007),
*A general framework for the parametrization of hierarchical models*, https://arxiv.org/abs/0708.3797).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import LowerCholeskyAffine
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to
from torch.distributions.transforms import AffineTransform, ComposeTransform, ExpTransform

from pyro_bmrs.structure.layers import is_point, layers, peel

_LOCATION_SCALE = (
    torch.distributions.Normal,
    torch.distributions.StudentT,
    torch.distributions.Cauchy,
    torch.distributions.Laplace,
)
_POSITIVE = (torch.distributions.HalfNormal, torch.distributions.HalfCauchy)


@dataclass(frozen=True)
class Place:
    """
    Where the free coordinates of a site lie.

    :param positions: in the vector of all free coordinates.
    :param shape: the shape of the site's unconstrained value.
    :param free: which of its elements are free; None for all.
    """

    positions: slice
    shape: torch.Size
    free: Tensor | None = None


def site_transform(prior: Distribution, *, standardised: bool = False) -> Transform:
    """
    From coordinates to a site's values; of a mixture of a point and a prior, that of the prior.

    :param prior: the distribution at the site.
    :param standardised: whether coordinates are deviations from the prior's location, in units of its scale.
    """
    mixture: Any = peel(prior).core
    if isinstance(mixture, dist.MaskedMixture):
        prior = next(side for side in (mixture.component0, mixture.component1) if not is_point(side))
    own = _standardising(prior) if standardised else None
    return biject_to(prior.support) if own is None else own


def is_standardisable(prior: Distribution) -> bool:
    """Whether a prior has a location or a scale that its coordinates can be relative to."""
    return not is_point(prior) and _standardising(prior) is not None


def _standardising(prior: Distribution) -> Transform | None:
    core: Any = peel(prior).core
    if isinstance(core, torch.distributions.MultivariateNormal):
        return LowerCholeskyAffine(core.loc, core.scale_tril)
    if isinstance(core, torch.distributions.LogNormal):
        return ComposeTransform([AffineTransform(core.loc, core.scale), ExpTransform()])
    if isinstance(core, _POSITIVE):
        return ComposeTransform([ExpTransform(), AffineTransform(0.0, core.scale)])
    return AffineTransform(core.loc, core.scale) if isinstance(core, _LOCATION_SCALE) else None


def fixed_elements(site: Any) -> Tensor:
    """Which elements of a site's value nothing is integrated over: points, and what a mask takes out of the model."""
    prior, value = site["fn"], site["value"]
    fixed = torch.zeros(value.shape, dtype=torch.bool, device=value.device)
    mixture = peel(prior).core
    if isinstance(mixture, dist.MaskedMixture):
        is_second: Any = mixture.mask
        for side, here in ((mixture.component0, ~is_second), (mixture.component1, is_second)):
            if is_point(side):
                fixed = fixed | here
    masks: list[Any] = [site["mask"], *(getattr(layer, "_mask", None) for layer in layers(prior))]
    for mask in masks:
        if mask is not None and mask is not True:
            inside = torch.as_tensor(mask, device=value.device)
            fixed = fixed | ~inside.reshape(inside.shape + (1,) * len(prior.event_shape))
    return fixed
