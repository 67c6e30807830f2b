# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A model's log density in the coordinates of a joint normal, and the normal of the model's own integral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.integration.fits import Shift, full_evidence, mean_shift
from pyro_bmrs.integration.log_joint import LogJoint
from pyro_bmrs.posteriors.factors import JointNormalFactor
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.search.groups import Groups
from pyro_bmrs.search.observations import NormalSpace, read_normal_space
from pyro_bmrs.structure.coordinates import Block, drop_identity

# Between the coordinates of the posterior and of the model's density, in single precision.
_TOLERANCE = 1e-3


class JointDensity:
    """
    The log density of a model's data and sites, as a function of the coordinates of a joint normal of all of them.

    :param log_joint: the density.
    :param space: the joint normal.
    :param dtype: of the sites.
    """

    def __init__(self, log_joint: LogJoint, space: NormalSpace, dtype: torch.dtype) -> None:
        self._log_joint, self._space, self._dtype = log_joint, space, dtype
        places = {block.name: block.positions for block in space.blocks}
        self._order = torch.cat([torch.arange(places[n].start, places[n].stop) for n in log_joint.places])

    def __call__(self, points: Tensor) -> Tensor:
        """
        The log density, in nats, at points of shape ``(num_points, n)``.

        :raises ReductionError: where the coordinates are not those of the model.
        """
        packed = points.to(self._dtype)
        values = {block.name: (block.take(packed), block.transform) for block in self._space.blocks}
        sites = {name: value if to is None else to(value) for name, (value, to) in values.items()}
        own, here = self._log_joint.coordinates(sites), packed[:, self._order.to(packed.device)]
        inside = own.isfinite().all(-1)
        if own.shape != here.shape or not torch.allclose(own[inside], here[inside], rtol=_TOLERANCE, atol=_TOLERANCE):
            raise ReductionError(
                "the posterior and the model's density have different coordinates: some elements are masked, or the "
                "support of a site depends on another"
            )
        density: Tensor = self._log_joint(own).to(points.dtype)
        return density


class IntegralNormal(NamedTuple):
    """
    The normal of a model's integral.

    :param space: the normal, and the reductions of its elements.
    :param num_evaluations: how often the density was evaluated for it.
    :param shift: where the posterior lies beside it.
    """

    space: NormalSpace
    num_evaluations: int
    shift: Shift | None


def normal_of_integral(
    fitted: Posterior,
    priors: Mapping[str, Distribution],
    reduced_priors: Mapping[str, Distribution],
    groups: Groups,
) -> IntegralNormal:
    """
    The joint normal that has the moments of a model's posterior, by the draws with which its evidence was integrated.

    :param fitted: the posterior that the integral was begun at, of whatever form.
    :param priors: of each site that may be reduced.
    :param reduced_priors: of each.
    :param groups: which elements switch together.
    :raises ReductionError: where the integral is not to be trusted, and as
        :func:`~pyro_bmrs.search.observations.read_normal_space` does.
    """
    full = full_evidence(fitted)
    if not full.trusted:
        raise ReductionError("the integral of the model is not to be trusted")
    values = full.log_joint.values(full.integral.points)
    joint = LogJoint(fitted.model, fitted.args, fitted.kwargs, example={n: v[0] for n, v in values.items()})
    points, weights = joint.coordinates(values).double(), full.integral.log_weights.double().softmax(0)
    loc = weights @ points
    centred = points - loc
    scale_tril, failed = torch.linalg.cholesky_ex((centred * weights.unsqueeze(-1)).mT @ centred)
    if failed:
        raise ReductionError("the covariance of the model's posterior is singular")
    nodes: Any = fitted.trace.nodes
    blocks = [
        Block(name, place.positions, place.shape, drop_identity(biject_to(nodes[name]["fn"].support)))
        for name, place in joint.places.items()
    ]
    factor = JointNormalFactor("", dist.MultivariateNormal(loc, scale_tril=scale_tril), tuple(blocks))
    try:
        space = read_normal_space([factor], priors, reduced_priors, groups)
    except ReductionError as error:
        raise ReductionError(
            f"of the normal that the model's integral has, priors and reduced priors must be normals, the latter "
            f"narrower, or points: {error}"
        ) from error
    return IntegralNormal(space, full.integral.num_evaluations, mean_shift(fitted, full))
