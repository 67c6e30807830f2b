# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduced posteriors of many models at once: a joint normal conditioned upon observations of some of its elements."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bmrs.search.observations import NormalSpace
from pyro_bmrs.structure.joint_normal import square_root

# Numbers in the matrices of the models that are computed together.
_BATCH = 2**22


class Normals(NamedTuple):
    """
    A batch of normals, in each of which some elements may be fixed at a point.

    :param loc: shape ``(k, n)``.
    :param scale_tril: Cholesky factor of each covariance, shape ``(k, n, n)``, with unit rows and columns for fixed
        elements.
    :param fixed: shape ``(k, n)``, boolean.
    """

    loc: Tensor
    scale_tril: Tensor
    fixed: Tensor


def reduced_normals(space: NormalSpace, reduced: Tensor) -> Normals:
    """
    The posterior under each of some reduced models.

    :param space: the posterior and its observations.
    :param reduced: which groups are reduced in each model, shape ``(k, num_groups)``, boolean.
    """
    size = len(space.loc) * (space.rows.shape[-1] + 2 * len(space.at))
    parts = [_condition(space, part) for part in reduced[:, space.label].split(max(1, _BATCH // size))]
    return Normals(*(torch.cat(values) for values in zip(*parts)))


def _condition(space: NormalSpace, observed: Tensor) -> Normals:
    rows = space.slope.unsqueeze(-1) * space.rows[space.at]
    both = observed.unsqueeze(-1) & observed.unsqueeze(-2)
    eye = torch.eye(observed.shape[-1], dtype=rows.dtype, device=rows.device)
    factor = torch.linalg.cholesky(torch.where(both, space.covariance, eye))
    cross = torch.where(observed.unsqueeze(-1), rows @ space.rows.mT, 0.0)
    gain = torch.cholesky_solve(cross, factor).mT
    loc = space.loc + (gain @ torch.where(observed, space.residual, 0.0).unsqueeze(-1)).squeeze(-1)

    # A square root of the covariance, as what is left of the posterior beside the noise of the observations: no
    # difference of covariances, which a narrow reduced prior would cancel.
    fixed = torch.zeros(len(observed), len(space.loc), dtype=torch.bool, device=rows.device)
    fixed[:, space.at] = observed & space.pinned
    left = torch.where(fixed.unsqueeze(-1), 0.0, space.rows - gain @ rows)
    noise = gain * space.noise.sqrt()
    noise[:, space.at, torch.arange(len(space.at), device=rows.device)] += fixed[:, space.at].to(noise)
    loc[:, space.at] = torch.where(fixed[:, space.at], space.target, loc[:, space.at])
    return Normals(loc, square_root(torch.cat([left, noise], -1)), fixed)
