# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Joint normals whose reduced prior confines each element to an interval, as a uniform or a truncated normal does.

Posterior times reduced prior over prior is a normal on a box, of which there is no closed form. It is drawn from
coordinate by coordinate, each from its conditional normal on its own interval; the weights of such draws vary by the
masses of these intervals alone, however far in the posterior's tail the box lies (A. Genz (1992), *Numerical
computation of multivariate normal probabilities*, https://doi.org/10.1080/10618600.1992.10477010; J. Geweke (1991),
*Efficient simulation from the multivariate normal and Student-t distributions subject to linear constraints*).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Empirical
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from pyro_bmrs.distributions import TruncatedNormal
from pyro_bmrs.evidence.importance import importance_estimate
from pyro_bmrs.evidence.numerics.normal_product import IntervalNormal
from pyro_bmrs.evidence.registry import Reduced
from pyro_bmrs.evidence.rules.interval_normal import interval_normal
from pyro_bmrs.evidence.support import support_interval
from pyro_bmrs.structure.coordinates import elements
from pyro_bmrs.structure.packed import Packed


@dataclass(frozen=True)
class _Box:
    """The intervals of a reduced prior's elements, and the normals on them; of precision 0 where it is no normal."""

    loc: Tensor
    precision: Tensor
    low: Tensor
    high: Tensor


def reduce_on_box(
    posterior: Distribution, prior: Distribution, reduced_prior: Distribution, num_samples: int = 4096
) -> Reduced:
    """
    The change in log evidence from draws of the normal on the box, and these, weighted, as the reduced posterior.

    Draws come from torch's global generator. Gradients are pathwise.

    :param posterior: normal, joint over the elements, or independent.
    :param prior: as the posterior is.
    :param reduced_prior: independent between elements, each of which has an interval for its support.
    :param num_samples: how many draws.
    :return: ``NotImplemented`` for other distributions, and where posterior over prior has no finite spread.
    :warns ReductionWarning: where the Pareto k is above 0.7.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> posterior = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[0.1, 0.05], [0.05, 0.1]]))
        >>> prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> positive = dist.HalfNormal(torch.ones(2)).to_event(1)
        >>> reduced = reduce_on_box(posterior, prior, positive)
        >>> abs(reduced.delta_evidence - 0.2877) < 0.02, reduced.standard_error < 0.01
        (tensor(True), tensor(True))
    """
    other: Reduced = NotImplemented
    box = _box(reduced_prior)
    if box is None or not (_is_normal(posterior) and _is_normal(prior)):
        return other
    root = _product_root(posterior, prior, box)
    if root is None:
        return other
    draws, log_density = _draw(*root, box, num_samples)
    log_weights = posterior.log_prob(draws) + reduced_prior.log_prob(draws) - prior.log_prob(draws) - log_density
    estimate = importance_estimate(log_weights)

    def build() -> Distribution:
        points = draws.detach().movedim(0, draws.dim() - 2)
        return Empirical(points, estimate.log_weights.detach().movedim(0, -1))

    return Reduced(estimate.delta_evidence, build, estimate.accuracy)


def _is_normal(distribution: Distribution) -> bool:
    joint = isinstance(distribution, (MultivariateNormal, LowRankMultivariateNormal))
    return joint or (isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal))


def _box(reduced_prior: Distribution) -> _Box | None:
    return _box_of(reduced_prior) if len(reduced_prior.event_shape) == 1 else None


def _packed(vector: Packed) -> _Box | None:
    fields: list[list[Tensor]] = []
    for part, _ in vector.parts:
        box = _box_of(part)
        if box is None:
            return None
        fields.append([value.reshape(-1) for value in (box.loc, box.precision, box.low, box.high)])
    places = torch.arange(vector.event_shape[0], device=fields[0][0].device)
    order = torch.cat([places[positions] for _, positions in vector.parts]).argsort()
    return _Box(*(torch.cat(values)[order] for values in zip(*fields)))


def _box_of(part: Distribution) -> _Box | None:
    if isinstance(part, Packed):
        return _packed(part)
    core: Any = elements(part)
    if core is None:
        return None
    try:
        known = interval_normal(core)
    except NotImplementedError:
        known = None
    if isinstance(known, IntervalNormal):
        values = [known.loc, known.scale**-2, known.low, known.high]
    else:
        interval = support_interval(core)
        if interval is None or isinstance(core, TransformedDistribution):
            return None
        like = core.sample()
        zero = torch.zeros_like(like)
        values = [zero, zero, *(torch.as_tensor(bound).to(like) for bound in (interval.low, interval.high))]
    return _Box(*(value.expand(core.batch_shape) for value in values))


def _product_root(posterior: Any, prior: Any, box: _Box) -> tuple[Tensor, Tensor] | None:
    """Mean and Cholesky factor of the normal that posterior times reduced prior over prior is on the box."""
    own, given = _precision(posterior), _precision(prior)
    precision = own + box.precision.diag_embed() - given
    pull = (own @ posterior.mean.unsqueeze(-1) - given @ prior.mean.unsqueeze(-1)).squeeze(-1)
    pull = pull + box.precision * box.loc
    # In units in which its diagonal is 1, a narrow reduced prior leaves the precision well conditioned.
    unit = precision.diagonal(dim1=-2, dim2=-1)
    if not (unit > 0).all():
        return None
    unit = unit.rsqrt()
    factor, failed = torch.linalg.cholesky_ex(unit.unsqueeze(-1) * precision * unit.unsqueeze(-2))
    if failed.any():
        return None
    loc = unit * torch.cholesky_solve((unit * pull).unsqueeze(-1), factor).squeeze(-1)
    root = torch.linalg.cholesky(torch.cholesky_inverse(factor))
    return loc, unit.unsqueeze(-1) * root


def _precision(normal: Any) -> Tensor:
    precision: Tensor = (
        normal.variance.reciprocal().diag_embed() if isinstance(normal, Independent) else normal.precision_matrix
    )
    return precision


def _draw(loc: Tensor, root: Tensor, box: _Box, num_samples: int) -> tuple[Tensor, Tensor]:
    """Draws, each coordinate from its interval given those before it, and the log density of that."""
    low, high = torch.broadcast_tensors(box.low, box.high)
    noise: list[Tensor] = []
    values, log_density = [], torch.zeros(())
    for place in range(loc.shape[-1]):
        centre = loc[..., place].expand((num_samples,) + loc.shape[:-1])
        for before, drawn in enumerate(noise):
            centre = centre + root[..., place, before] * drawn
        scale = root[..., place, place]
        conditional = TruncatedNormal(centre, scale, low[..., place], high[..., place], validate_args=False)
        value = conditional.rsample()
        noise.append((value - centre) / scale)
        values.append(value)
        log_density = log_density + conditional.log_prob(value)
    return torch.stack(values, -1), log_density
