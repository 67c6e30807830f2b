# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Joint normal posteriors: marginals of some coordinates, and what becomes of the others when those change."""

from __future__ import annotations

from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal, transforms

from pyro_bmrs.structure.coordinates import Block, is_normal_vector, marginals, push_forward
from pyro_bmrs.structure.layers import to_event
from pyro_bmrs.structure.packed import Packed, RegressedNormal, Slice
from pyro_bmrs.structure.parameters import tensor_of

JointNormal: TypeAlias = MultivariateNormal | LowRankMultivariateNormal


def complement(at: Tensor, normal: JointNormal) -> Tensor:
    """The positions of a vector that are not in ``at``."""
    free = torch.ones(normal.event_shape, dtype=torch.bool, device=at.device)
    free[at] = False
    return free.nonzero().squeeze(-1)


def marginal(normal: JointNormal, at: Tensor) -> JointNormal:
    """The marginal of some coordinates of a joint normal, as the same kind of normal."""
    if isinstance(normal, LowRankMultivariateNormal):
        return dist.LowRankMultivariateNormal(normal.loc[at], normal.cov_factor[at], normal.cov_diag[at])
    if len(at) == normal.event_shape[0]:
        return normal
    # The rows of the Cholesky factor give the marginal covariance without forming the whole.
    rows = normal.scale_tril[at]
    return dist.MultivariateNormal(normal.loc[at], scale_tril=square_root(rows))


def square_root(rows: Tensor) -> Tensor:
    """Lower Cholesky factor of ``rows @ rows.mT``, by QR, which does not square the condition number."""
    upper: Tensor = torch.linalg.qr(rows.mT).R
    return (upper * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)).mT


def regress(normal: JointNormal, at: Tensor, root: Distribution) -> Distribution:
    """
    The joint distribution when the coordinates ``at`` follow ``root`` and the others, given those, follow ``normal``.

    A normal root leaves the whole normal; a point leaves the point beside the normal conditional upon it.
    """
    rest_at = complement(at, normal)
    size = normal.event_shape[0]
    if len(rest_at) == 0:
        return root
    # With the root coordinates first, the Cholesky factor of the joint covariance holds the regression in its blocks.
    order = torch.cat([at, rest_at])
    loc = normal.mean[order]
    tril = square_root(normal.scale_tril[order])
    k = len(at)
    slope = torch.linalg.solve_triangular(tril[:k, :k], tril[k:, :k], upper=False, left=False)
    noise = tril[k:, k:]
    intercept = loc[k:] - slope @ loc[:k]
    if isinstance(root, dist.Delta):
        conditional = dist.MultivariateNormal(intercept + slope @ root.v, scale_tril=noise)
        return Packed([(root, at), (conditional, rest_at)], size)
    factor = _normal_factor(root)
    if factor is None:
        return RegressedNormal(root, intercept, slope, noise, at, rest_at)
    rows = torch.cat([torch.cat([factor, factor.new_zeros(k, size - k)], -1), torch.cat([slope @ factor, noise], -1)])
    back = torch.empty_like(order)
    back[order] = torch.arange(size, device=order.device)
    mean = torch.cat([root.mean, intercept + slope @ root.mean])
    return dist.MultivariateNormal(mean[back], scale_tril=square_root(rows[back]))


def _normal_factor(root: Distribution) -> Tensor | None:
    if isinstance(root, (MultivariateNormal, LowRankMultivariateNormal)):
        return root.scale_tril
    if isinstance(marginals(root), torch.distributions.Normal):
        return root.stddev.diag()
    return None


def _marginal_of(joint: Any, at: Tensor) -> Any:
    """The marginal of some coordinates of any distribution over a vector, in closed form where there is one."""
    if isinstance(joint, (MultivariateNormal, LowRankMultivariateNormal)):
        return marginal(joint, at)
    if len(at) == joint.event_shape[0]:
        return joint
    if isinstance(joint, dist.Delta):
        return dist.Delta(joint.v[at], event_dim=1)
    if is_normal_vector(joint):
        return dist.Normal(joint.base_dist.loc[at], joint.base_dist.scale[at]).to_event(1)
    parts = joint.parts if isinstance(joint, Packed) else []
    if isinstance(joint, RegressedNormal):
        parts = [(joint.root, joint.root_at)]
    for part, positions in parts:
        index = torch.arange(joint.event_shape[0], device=at.device)[positions]
        if torch.isin(at, index).all() and len(part.event_shape) == 1 and not part.batch_shape:
            return _marginal_of(part, torch.searchsorted(index, at))
    return Slice(joint, at)


def _unpack(vector: Distribution, shape: torch.Size) -> Distribution:
    """The distribution over a vector as one over a value of the given shape."""
    if len(shape) == 1:
        return vector
    if isinstance(vector, dist.Delta):
        return dist.Delta(vector.v.reshape(shape), event_dim=len(shape))
    if is_normal_vector(vector) or shape.numel() == 1 and isinstance(vector, MultivariateNormal):
        normal = dist.Normal(vector.mean.reshape(shape), vector.stddev.reshape(shape))
        return to_event(normal, len(shape))
    reshaped: Distribution = dist.TransformedDistribution(
        vector, [transforms.ReshapeTransform(vector.event_shape, shape)]
    )
    return reshaped


def site_marginal(joint: Distribution, block: Block) -> Distribution:
    """The distribution of one site out of a packed vector: joint over the site's elements."""
    like = tensor_of(joint)  # not its mean, which not every part has
    device = None if like is None else like.device
    at = torch.arange(block.positions.start, block.positions.stop, device=device)
    return push_forward(_unpack(_marginal_of(joint, at), block.shape), block.transform)
