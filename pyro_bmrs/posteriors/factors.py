# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The independent factors of a fitted guide, and the reduction of one of them.

A guide draws each of its factors in one sample statement: a site itself, the unconstrained twin of a site
(``AutoNormal``), or one packed vector for many sites (``AutoMultivariateNormal``). Reducing a factor gives the change
in log evidence and the distribution that takes the statement's place in the reduced guide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, ClassVar, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal, Transform

from pyro_bmrs import evidence
from pyro_bmrs.errors import naming
from pyro_bmrs.evidence.accuracy import Accuracy, Estimated, combine
from pyro_bmrs.evidence.registry import Built
from pyro_bmrs.structure import mixtures as mixed_priors
from pyro_bmrs.structure.coordinates import (
    Block,
    concatenate,
    elements,
    flatten,
    is_normal_vector,
    marginals,
    pull_back,
    push_forward,
)
from pyro_bmrs.structure.joint_normal import JointNormal, complement, marginal, regress, site_marginal
from pyro_bmrs.structure.layers import is_point
from pyro_bmrs.structure.packed import Packed, holds_draws

Priors = Mapping[str, Distribution]
# The keywords of evidence.reduce: by which method, with how many draws.
How = Mapping[str, Any]


@dataclass(frozen=True)
class ReducedFactor(Estimated):
    """
    One factor after its reduction.

    :param delta_evidence: 0-d, nats.
    :param build_statement: makes the distribution that replaces the factor's sample statement.
    :param build_posteriors: makes the reduced posterior of each site of the factor.
    :param accuracy: how ``delta_evidence`` was computed, and how far it is to be trusted.

    Example::

        >>> import torch, pyro.distributions as dist, pyro_bmrs.posteriors
        >>> pyro_bmrs.posteriors.ReducedFactor(torch.tensor(0.0), lambda: dist.Normal(0.0, 1.0), dict).statement
        Normal(loc: 0.0, scale: 1.0)
    """

    delta_evidence: Tensor
    build_statement: Callable[[], Distribution]
    build_posteriors: Callable[[], dict[str, Distribution]]
    accuracy: Accuracy = Accuracy()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled is what was to be built, not how."""
        built = Built(self.statement), Built(self.posteriors)
        return ReducedFactor, (self.delta_evidence, *built, self.accuracy)

    @cached_property
    def statement(self) -> Distribution:
        return self.build_statement()

    @cached_property
    def posteriors(self) -> dict[str, Distribution]:
        return self.build_posteriors()


class Factor(Protocol):
    """
    What the front door asks of a factor.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs.posteriors import read_guide
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> def guide():
        ...     pyro.sample("x", dist.Normal(torch.ones(2), 0.5).to_event(1))
        >>> factor, = read_guide(guide, model).factors
        >>> factor.statement, factor.posterior("x").mean
        ('x', tensor([1., 1.]))
    """

    @property
    def statement(self) -> str:
        """The guide's sample statement that draws the factor."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The latent sites that the factor determines."""

    @property
    def traced(self) -> bool:
        """Whether it was read off one run of the guide, where it may depend on other sites and on a subsample."""

    def posterior(self, name: str) -> Distribution:
        """The fitted posterior of a site."""

    def reduce(self, priors: Priors, reduced_priors: Priors, how: How) -> ReducedFactor:
        """The factor under the reduced priors of some of its sites."""

    def elementwise(self, name: str, prior: Distribution, reduced_prior: Distribution, how: How) -> Tensor:
        """Delta F of reducing each element of a site alone, of the site's shape where its elements can be parted."""

    def with_statement(self, distribution: Any) -> Factor | None:
        """The factor with another distribution in its statement; None where it is no longer of the factor's kind."""


def parted(
    posterior: Distribution, prior: Distribution, reduced_prior: Distribution
) -> tuple[Distribution, Distribution, Distribution]:
    """The three with each element of a site by itself, where all three can be parted; else as they are."""
    q, p, r = marginals(posterior), elements(prior), elements(reduced_prior)
    return (posterior, prior, reduced_prior) if q is None or p is None or r is None else (q, p, r)


@dataclass(frozen=True, eq=False)
class SiteFactor:
    """
    A site drawn by itself.

    :param name: the site.
    :param statement: the guide's sample statement that draws it: the site, or its unconstrained twin.
    :param distribution: what the statement draws from.
    :param transform: from the statement's value to the site's, or None where they are the same.
    :param traced: read off one run of the guide, where it may depend on other sites and on a plate's subsample.

    Example::

        >>> factor = SiteFactor("rate", "log_rate", dist.Normal(0.5, 0.1), torch.distributions.ExpTransform())
        >>> factor.posterior("rate")
        LogNormal()
        >>> reduced = factor.reduce({"rate": dist.LogNormal(0., 1.)}, {"rate": dist.LogNormal(0., 0.5)}, {})
        >>> reduced.delta_evidence, reduced.statement.mean
        (tensor(0.3143), tensor(0.4854))
    """

    name: str
    statement: str
    distribution: Distribution
    transform: Transform | None = None
    traced: bool = False

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.name,)

    def posterior(self, name: str) -> Distribution:
        return push_forward(self.distribution, self.transform)

    def with_statement(self, distribution: Distribution) -> SiteFactor | None:
        return None if holds_draws(distribution) else replace(self, distribution=distribution)

    def reduce(self, priors: Priors, reduced_priors: Priors, how: How) -> ReducedFactor:
        name = self.name
        if mixed_priors.is_mixed(reduced_priors[name]) and isinstance(self.distribution, JointNormal):
            block = Block(name, slice(0, None), self.distribution.event_shape, self.transform)
            return JointNormalFactor(self.statement, self.distribution, (block,)).reduce(priors, reduced_priors, how)
        with naming(name):
            reduced = evidence.reduce(self.posterior(name), priors[name], reduced_priors[name], **how)
        return ReducedFactor(
            reduced.delta_evidence.sum(),
            lambda: pull_back(reduced.posterior, self.transform),
            lambda: {name: reduced.posterior},
            combine([reduced.accuracy]),
        )

    def elementwise(self, name: str, prior: Distribution, reduced_prior: Distribution, how: How) -> Tensor:
        with naming(name):
            return evidence.reduce(*parted(self.posterior(name), prior, reduced_prior), **how).delta_evidence


@dataclass(frozen=True, eq=False)
class PackedFactor:
    """
    Several independent sites that the guide draws as one packed vector (``AutoDiagonalNormal``).

    :param statement: the guide's sample statement that draws the vector.
    :param parts: the sites, each with its own distribution in unconstrained coordinates.

    Example::

        >>> first, second = SiteFactor("a", "a", dist.Normal(0., 0.1)), SiteFactor("b", "b", dist.Normal(1., 0.1))
        >>> factor = PackedFactor("both", (first, second))
        >>> reduced = factor.reduce({"b": dist.Normal(0., 1.)}, {"b": dist.Normal(0., 0.1)}, {})
        >>> reduced.statement.mean
        tensor([0.0000, 0.5025])
    """

    statement: str
    parts: tuple[SiteFactor, ...]
    traced: ClassVar[bool] = False

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    def with_statement(self, distribution: Distribution) -> PackedFactor | None:
        if not is_normal_vector(distribution):
            return None
        parts, start = [], 0
        for part in self.parts:
            shape = part.distribution.batch_shape + part.distribution.event_shape
            here = slice(start, start + shape.numel())
            loc, scale = distribution.mean[here].reshape(shape), distribution.stddev[here].reshape(shape)
            normal = dist.Normal(loc, scale).to_event(len(part.distribution.event_shape))
            parts.append(replace(part, distribution=normal))
            start = here.stop
        return replace(self, parts=tuple(parts))

    def _part(self, name: str) -> SiteFactor:
        return self.parts[self.sites.index(name)]

    def posterior(self, name: str) -> Distribution:
        return self._part(name).posterior(name)

    def elementwise(self, name: str, prior: Distribution, reduced_prior: Distribution, how: How) -> Tensor:
        return self._part(name).elementwise(name, prior, reduced_prior, how)

    def reduce(self, priors: Priors, reduced_priors: Priors, how: How) -> ReducedFactor:
        done = {name: self._part(name).reduce(priors, reduced_priors, how) for name in reduced_priors}

        def statement() -> Distribution:
            parts = [done[part.name].statement if part.name in done else part.distribution for part in self.parts]
            flat = [flatten(part, part.batch_shape + part.event_shape) for part in parts]
            return concatenate(flat)

        def posteriors() -> dict[str, Distribution]:
            unchanged = {name: self.posterior(name) for name in self.sites if name not in done}
            return unchanged | {name: factor.posteriors[name] for name, factor in done.items()}

        factors = list(done.values())
        return ReducedFactor(
            torch.stack([factor.delta_evidence for factor in factors]).sum(),
            statement,
            posteriors,
            combine(factor.accuracy for factor in factors),
        )


@dataclass(frozen=True, eq=False)
class JointNormalFactor:
    """
    Sites whose unconstrained values are jointly normal, packed end to end in one vector.

    :param statement: the guide's sample statement that draws the vector.
    :param distribution: the joint normal distribution over the vector, event shape ``(n,)``.
    :param blocks: where each site lies in it.

    Example::

        >>> from pyro_bmrs.structure.coordinates import Block
        >>> normal = dist.MultivariateNormal(torch.tensor([0., 1.]), torch.tensor([[1., 0.9], [0.9, 1.]]) / 10)
        >>> blocks = [Block(name, slice(at, at + 1), torch.Size(), None) for at, name in enumerate("ab")]
        >>> factor = JointNormalFactor("both", normal, tuple(blocks))
        >>> reduced = factor.reduce({"b": dist.Normal(0., 1.)}, {"b": dist.Delta(torch.tensor(0.))}, {})
        >>> reduced.posteriors["a"].mean
        tensor(-0.9000)
    """

    statement: str
    distribution: JointNormal
    blocks: tuple[Block, ...]
    traced: ClassVar[bool] = False

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(block.name for block in self.blocks)

    def with_statement(self, distribution: Distribution) -> JointNormalFactor | None:
        if not isinstance(distribution, (MultivariateNormal, LowRankMultivariateNormal)):
            return None
        return replace(self, distribution=distribution)

    def _block(self, name: str) -> Block:
        return self.blocks[self.sites.index(name)]

    def posterior(self, name: str) -> Distribution:
        return site_marginal(self.distribution, self._block(name))

    def elementwise(self, name: str, prior: Distribution, reduced_prior: Distribution, how: How) -> Tensor:
        block = self._block(name)
        transform = block.transform
        p, r = elements(prior), elements(reduced_prior)
        if p is None or r is None or (transform is not None and transform.domain.event_dim > 0):
            return self.reduce({name: prior}, {name: reduced_prior}, how).delta_evidence
        normal = dist.Normal(block.take(self.distribution.mean), block.take(self.distribution.stddev))
        with naming(name):
            return evidence.reduce(push_forward(normal, transform), p, r, **how).delta_evidence

    def reduce(self, priors: Priors, reduced_priors: Priors, how: How) -> ReducedFactor:
        if any(map(mixed_priors.is_mixed, reduced_priors.values())):
            return self._reduce_in_pieces(priors, reduced_priors, how)
        fixed = {name: prior for name, prior in reduced_priors.items() if is_point(prior)}
        if fixed and len(fixed) < len(reduced_priors):
            return self._reduce_in_turn(priors, reduced_priors, fixed, how)
        reduced_blocks = [block for block in self.blocks if block.name in reduced_priors]
        at = _positions(reduced_blocks, self.distribution)
        # One coordinate is a matter for the univariate rules, quadrature among them.
        reduce_root = self._reduce_alone if len(at) == 1 and not fixed else self._reduce_together
        root = reduce_root(reduced_blocks, priors, reduced_priors, how)
        statement = cache(lambda: regress(self.distribution, at, root.statement))
        return replace(
            root,
            build_statement=statement,
            build_posteriors=lambda: self._marginals(statement()) | root.posteriors,
        )

    def _marginals(self, joint: Distribution) -> dict[str, Distribution]:
        """The posterior of each site, when the vector follows another distribution."""
        return {block.name: site_marginal(joint, block) for block in self.blocks}

    def _reduce_alone(self, blocks: Sequence[Block], priors: Priors, reduced_priors: Priors, how: How) -> ReducedFactor:
        (block,) = blocks
        normal = dist.Normal(block.take(self.distribution.mean), block.take(self.distribution.stddev))
        event_dim = len(priors[block.name].event_shape)
        part = SiteFactor(block.name, self.statement, dist.Independent(normal, event_dim), block.transform)
        reduced = part.reduce(priors, reduced_priors, how)
        return replace(reduced, build_statement=lambda: flatten(reduced.statement, block.shape))

    def _reduce_together(
        self, blocks: Sequence[Block], priors: Priors, reduced_priors: Priors, how: How
    ) -> ReducedFactor:
        posterior = marginal(self.distribution, _positions(blocks, self.distribution))
        prior, reduced_prior = _in_coordinates(blocks, priors), _in_coordinates(blocks, reduced_priors)
        with naming(", ".join(block.name for block in blocks)):
            reduced = evidence.reduce(posterior, prior, reduced_prior, **how)
        return ReducedFactor(
            reduced.delta_evidence.sum(),
            lambda: reduced.posterior,
            dict,
            combine([reduced.accuracy]),
        )

    def _reduce_in_pieces(self, priors: Priors, reduced_priors: Priors, how: How) -> ReducedFactor:
        """Where some elements of a site take one reduced prior and some another, each run of them is a site."""
        blocks, p, r = mixed_priors.part(self.blocks, priors, reduced_priors)
        pieces = replace(self, blocks=blocks).reduce(p, r, how)
        return replace(
            pieces,
            build_posteriors=lambda: self._marginals(pieces.statement),
        )

    def _reduce_in_turn(self, priors: Priors, reduced_priors: Priors, fixed: Priors, how: How) -> ReducedFactor:
        """First the sites fixed at a point, then, given those, the others; by the chain rule their evidences add."""
        first = self.reduce(priors, fixed, how)
        at = _positions([block for block in self.blocks if block.name in fixed], self.distribution)
        rest_at = complement(at, self.distribution)
        packed: Any = first.statement
        (point, _), (conditional, _) = packed.parts
        free = [block for block in self.blocks if block.name not in fixed]
        others = {name: prior for name, prior in reduced_priors.items() if name not in fixed}
        second = replace(self, distribution=conditional, blocks=_repack(free)).reduce(priors, others, how)

        statement = cache(lambda: Packed([(point, at), (second.statement, rest_at)], len(at) + len(rest_at)))
        return ReducedFactor(
            first.delta_evidence + second.delta_evidence,
            statement,
            lambda: self._marginals(statement()),
            combine([first.accuracy, second.accuracy]),
        )


def _positions(blocks: Sequence[Block], like: JointNormal) -> Tensor:
    device = like.mean.device
    return torch.cat([torch.arange(b.positions.start, b.positions.stop, device=device) for b in blocks])


def _repack(blocks: Sequence[Block]) -> tuple[Block, ...]:
    packed, start = [], 0
    for block in blocks:
        stop = start + block.shape.numel()
        packed.append(replace(block, positions=slice(start, stop)))
        start = stop
    return tuple(packed)


def _in_coordinates(blocks: Sequence[Block], given: Priors) -> Distribution:
    parts = []
    for block in blocks:
        with naming(block.name):
            parts.append(flatten(pull_back(given[block.name], block.transform), block.shape))
    return concatenate(parts)
