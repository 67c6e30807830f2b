# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Reductions of a joint normal posterior, seen as observations.

An element x with prior N(m_p, P) takes the reduced prior N(m_r, R), R < P. As a function of x, the ratio of the two is
proportional to the likelihood of one observation, so that a reduced model is the full one after a few more data:

.. math::

    \frac{r(x)}{p(x)} = e^{c} \sqrt{2\pi}\; \mathcal{N}\!\left(y;\ \sqrt{\tau}\, x,\ R\right), \qquad
    \tau = 1 - \frac RP, \quad y = \frac{m_r - m_p R / P}{\sqrt{\tau}}, \quad
    c = \frac12 \log P + \frac{(m_r - m_p)^2}{2 P \tau}.

A point is the reduced prior with R = 0, whatever the prior: the element itself is observed without noise, and
c is minus the log density of the prior there, less log of the square root of 2 pi. With a posterior N(mu, Sigma), the
observations of a set S of elements are normal too, and the change in log evidence is their log density,

.. math::

    \Delta F(S) = \sum_{i \in S} c_i - \tfrac12 \log |A_{SS}| - \tfrac12 h_S^\top A_{SS}^{-1} h_S, \qquad
    A = \operatorname{diag}(R) + \sqrt\tau\, \Sigma \sqrt\tau^{\,\top}, \quad h = y - \sqrt\tau\, \mu,

while the reduced posterior is the posterior conditioned upon them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from pyro_bmrs.errors import ReductionError, naming
from pyro_bmrs.posteriors.factors import Factor, JointNormalFactor, PackedFactor, SiteFactor
from pyro_bmrs.search.groups import Groups
from pyro_bmrs.structure.coordinates import Block, elements, pull_back


@dataclass(frozen=True)
class NormalSpace:
    """
    A joint normal posterior, and the reductions of some of its elements as observations of them.

    All tensors are of double precision: what is added and subtracted over thousands of steps should not carry the
    rounding of each.

    :param loc: mean of the posterior, shape ``(n,)``.
    :param rows: a square root of its covariance, ``rows @ rows.T``, shape ``(n, m)``.
    :param blocks: where each site lies in it.
    :param at: the elements that can be reduced, shape ``(d,)``, those of a group together.
    :param label: the group of each of them, shape ``(d,)``.
    :param slope: the square root of tau for each, shape ``(d,)``.
    :param noise: the variance of each reduced prior, shape ``(d,)``; 0 for a point.
    :param target: the observation y of each, shape ``(d,)``.
    :param constant: what each adds to the evidence beside its normal density without 2 pi, shape ``(d,)``.
    """

    loc: Tensor
    rows: Tensor
    blocks: tuple[Block, ...]
    at: Tensor
    label: Tensor
    slope: Tensor
    noise: Tensor
    target: Tensor
    constant: Tensor

    @property
    def covariance(self) -> Tensor:
        """Of the observations: A above, shape ``(d, d)``."""
        rows = self.slope.unsqueeze(-1) * self.rows[self.at]
        return rows @ rows.mT + self.noise.diag()

    @property
    def residual(self) -> Tensor:
        """The observations less their means: h above, shape ``(d,)``."""
        return self.target - self.slope * self.loc[self.at]

    @property
    def sizes(self) -> Tensor:
        """Number of observations in each group, shape ``(num_groups,)``."""
        return torch.bincount(self.label)

    @property
    def constants(self) -> Tensor:
        """What each group adds to the evidence beside its normal density, shape ``(num_groups,)``."""
        return self.constant.new_zeros(len(self.sizes)).index_add(0, self.label, self.constant)

    @property
    def pinned(self) -> Tensor:
        """Which of the observations fix their element at a point, shape ``(d,)``."""
        return self.noise == 0


def is_joint(factor: Factor) -> bool:
    """Whether a factor is a normal with correlations."""
    if isinstance(factor, JointNormalFactor):
        return True
    return isinstance(factor, SiteFactor) and isinstance(
        _bare(factor.distribution), (MultivariateNormal, LowRankMultivariateNormal)
    )


def _bare(distribution: Distribution) -> Distribution:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def read_normal_space(
    factors: Sequence[Factor],
    priors: Mapping[str, Distribution],
    reduced_priors: Mapping[str, Distribution],
    groups: Groups,
) -> NormalSpace:
    """
    The reductions of normal factors of a posterior as observations.

    :param factors: the independent factors, each normal in unconstrained coordinates.
    :param priors: prior of each site that can be reduced.
    :param reduced_priors: reduced prior of each.
    :param groups: which elements switch together.
    :raises ReductionError: where a factor, a prior or a reduced prior is not normal in the factor's coordinates, or
        where a reduced prior is not narrower than the prior.
    """
    parts, blocks, start = [], [], 0
    for factor in factors:
        for distribution, own in _normals(factor):
            loc, rows = _moments(distribution, own[0].name)
            parts.append((loc, rows))
            blocks += [replace(b, positions=slice(b.positions.start + start, b.positions.stop + start)) for b in own]
            start += len(loc)
    observed = []
    for block in blocks:
        if block.name in reduced_priors:
            label = groups.labels[block.name].reshape(-1)
            columns = _observations(block, priors[block.name], reduced_priors[block.name], label >= 0)
            at = torch.arange(block.positions.start, block.positions.stop, device=columns[0].device)
            observed.append([at[label >= 0], label[label >= 0], *columns])
    at, label, *columns = map(torch.cat, zip(*observed))
    order = torch.argsort(label, stable=True)
    return NormalSpace(
        torch.cat([loc for loc, _ in parts]),
        torch.block_diag(*(rows for _, rows in parts)),
        tuple(blocks),
        at[order],
        label[order],
        *(values[order] for values in columns),
    )


def _normals(factor: Factor) -> Iterator[tuple[Distribution, tuple[Block, ...]]]:
    """The normals that a factor is made of, each with the sites that lie in it."""
    if isinstance(factor, JointNormalFactor):
        yield factor.distribution, factor.blocks
    elif isinstance(factor, PackedFactor):
        for part in factor.parts:
            yield from _normals(part)
    elif isinstance(factor, SiteFactor):
        distribution = factor.distribution
        shape = distribution.batch_shape + distribution.event_shape
        yield distribution, (Block(factor.name, slice(0, shape.numel()), shape, factor.transform),)


def _moments(distribution: Distribution, site: str) -> tuple[Tensor, Tensor]:
    """Mean and a square root of the covariance of a normal of any shape, laid out flat."""
    bare = _bare(distribution)
    if isinstance(bare, (MultivariateNormal, LowRankMultivariateNormal)):
        loc, roots = bare.loc, bare.scale_tril.reshape(-1, *bare.scale_tril.shape[-2:])
    elif isinstance(bare, Normal):
        loc, roots = bare.loc, bare.scale.reshape(-1, 1, 1)
    else:
        raise _is_no_normal(site)
    for name, values in (("mean", loc), ("covariance", roots)):
        wrong = ~values.isfinite()
        if wrong.any():
            raise ReductionError(
                f"the posterior's {name}, from site {site!r} on, is NaN or infinite at {int(wrong.sum())} elements; a "
                "guide that has diverged or was not fitted does this"
            )
    return loc.reshape(-1).double(), torch.block_diag(*roots.double())


def _is_no_normal(site: str) -> ReductionError:
    return ReductionError(
        f"the posterior of site {site!r} is no normal, and others among the reduced sites are jointly normal; the two "
        "are independent, so search them one after the other: their probabilities multiply"
    )


def _observations(block: Block, prior: Distribution, reduced_prior: Distribution, grouped: Tensor) -> list[Tensor]:
    """Slope, noise, target and constant of each element of a site that belongs to a group."""
    with naming(block.name):
        p = elements(pull_back(prior, block.transform))
        r = elements(pull_back(reduced_prior, block.transform))
    if isinstance(r, dist.Delta) and p is not None:
        columns = _fixing(p, r.v)
    elif isinstance(p, Normal) and isinstance(r, Normal):
        columns = _narrowing(block.name, p.expand(block.shape), r.expand(block.shape), grouped)
    else:
        raise ReductionError(
            f"site {block.name!r} belongs to a joint normal posterior, in whose coordinates its prior and its reduced "
            "prior must be independent normals, or the reduced prior a dist.Delta; take reduce_model for whole sites"
        )
    return [values.expand(block.shape).reshape(-1)[grouped] for values in columns]


def _fixing(prior: Distribution, point: Tensor) -> list[Tensor]:
    constant = -prior.log_prob(point).double() - 0.5 * math.log(2 * math.pi)
    return [torch.ones_like(constant), torch.zeros_like(constant), point.double().expand_as(constant), constant]


def _narrowing(site: str, prior: Normal, reduced_prior: Normal, grouped: Tensor) -> list[Tensor]:
    prior_loc, variance = prior.loc.double(), prior.variance.double()
    reduced_loc, noise = reduced_prior.loc.double(), reduced_prior.variance.double()
    share = noise / variance
    # What is in no group keeps its prior, whatever the reduced one would be there.
    share = torch.where(grouped.reshape(share.shape), share, 0.5)
    broad = share >= 1
    if broad.any():
        raise ReductionError(
            f"site {site!r}: the reduced prior is no narrower than the prior at {int(broad.sum())} of "
            f"{int(grouped.sum())} elements; give it a smaller scale, or leave these elements out of the groups"
        )
    rest = 1 - share
    constant = 0.5 * variance.log() + 0.5 * (reduced_loc - prior_loc).square() / (variance * rest)
    return [rest.sqrt(), noise, (reduced_loc - share * prior_loc) / rest.sqrt(), constant]
