# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The posterior of the conjugate regression, and reductions of its four coefficients of which all is known."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bmrs.posteriors.reading import read_guide
from pyro_bmrs.reduction.priors import match_prior
from pyro_bmrs.search.groups import GroupsLike, read_groups
from pyro_bmrs.search.observations import NormalSpace, read_normal_space
from tests import conjugate

# Location and scale of the reduced priors; a scale of 0 is a point.
REDUCED = {"normal": (0.1, 0.3), "narrow": (0.1, 1e-4), "point": (0.1, 0.0)}


@torch.no_grad()
def normal_space(guide, kind: str, groups: GroupsLike = "element") -> NormalSpace:
    """The posterior of a guide of the conjugate regression, and the reductions of one kind."""
    loc, scale = (torch.tensor(value, dtype=torch.float64) for value in REDUCED[kind])
    fitted = read_guide(guide)
    priors = {name: fitted.prior(name) for name in ("first", "rest")}
    stated = dist.Normal(loc, scale) if scale else dist.Delta(loc)
    reduced_priors = {name: match_prior(name, stated, prior) for name, prior in priors.items()}
    shapes = {"first": torch.Size([2]), "rest": torch.Size([2])}
    return read_normal_space(fitted.factors, priors, reduced_priors, read_groups(groups, shapes))


def reduced_to(kind: str, reduced: Tensor) -> tuple[Tensor, Tensor]:
    """Location and scale of the priors of all coefficients where some are reduced."""
    loc, scale = conjugate.prior(4)
    loc[reduced], scale[reduced] = REDUCED[kind]
    return loc, scale
