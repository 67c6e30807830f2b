# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Posteriors averaged over models, as distributions (Hoeting et al. 1999, https://doi.org/10.1214/ss/1009212519)."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints
from torch.distributions.constraints import Constraint

from pyro_bmrs.structure.coordinates import Block, push_forward
from pyro_bmrs.structure.joint_normal import square_root
from pyro_bmrs.structure.layers import is_point


class SwitchingAverage(TorchDistribution):
    """
    A site whose elements follow one distribution or another, all elements of a group together, groups independently.

    Where the second is a point, the average has mass there: at the point, ``log_prob`` is relative to counting, and
    elsewhere to length.

    :param full: distribution of the elements that keep their full prior, of batch shape ``label.shape``.
    :param reduced: distribution of those that take their reduced prior, of the same shape.
    :param label: the group of each element; -1 for elements that are always ``full``.
    :param inclusion: probability of each group to be ``full``.

    Example::

        >>> import pyro.distributions as dist
        >>> average = SwitchingAverage(
        ...     full=dist.Normal(torch.ones(2), 1.0),
        ...     reduced=dist.Delta(torch.zeros(2)),
        ...     label=torch.tensor([0, 1]),
        ...     inclusion=torch.tensor([0.9, 0.2]),
        ... )
        >>> average.mean
        tensor([0.9000, 0.2000])
        >>> average.log_prob(torch.zeros(2)).exp()
        tensor(0.0800)
    """

    arg_constraints: dict[str, Constraint] = {}

    def __init__(self, full: Distribution, reduced: Distribution, label: Tensor, inclusion: Tensor) -> None:
        self.full, self.reduced, self.label, self.inclusion = full, reduced, label, inclusion
        self._events = len(full.event_shape)
        super().__init__(event_shape=label.shape + full.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:
        return constraints.independent(self.full.support, self.label.dim())

    def _of_elements(self, of_groups: Tensor, ungrouped: float) -> Tensor:
        padded = torch.cat([of_groups, of_groups.new_full((*of_groups.shape[:-1], 1), ungrouped)], -1)
        return padded[..., self.label]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            kept = torch.bernoulli(self.inclusion.expand(shape + self.inclusion.shape))
            return self.sample_given(kept.bool(), shape)

    def sample_given(self, kept: Tensor, sample_shape: torch.Size) -> Tensor:
        """Draws for groups that are known to keep their full prior or not, ``kept`` of shape ``(*sample_shape, n)``."""
        chosen = self._of_elements(kept, True)[(...,) + (None,) * self._events]
        return torch.where(chosen, self.full.sample(sample_shape), self.reduced.sample(sample_shape))

    def _densities(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities of each element on either side."""
        full, reduced = self.full.log_prob(value), self.reduced.log_prob(value)
        if is_point(self.reduced):
            # What has mass has no density beside it.
            full = torch.where(reduced > -torch.inf, -torch.inf, full)
        return full, reduced

    def log_prob(self, value: Tensor) -> Tensor:
        full, reduced = self._densities(value)
        shape = full.shape[: full.dim() - self.label.dim()]
        label = self.label.reshape(-1) % (len(self.inclusion) + 1)
        log_weights = torch.stack([self.inclusion.log(), torch.log1p(-self.inclusion)])
        log_weights = torch.cat([log_weights, log_weights.new_tensor([[0.0], [-torch.inf]])], -1).to(full)
        totals = [
            weight.expand(*shape, -1).index_add(-1, label, density.reshape(*shape, -1))
            for weight, density in zip(log_weights, (full, reduced))
        ]
        return torch.logaddexp(*totals).sum(-1)

    @property
    def _weight(self) -> Tensor:
        weight = self._of_elements(self.inclusion, 1.0)[(...,) + (None,) * self._events]
        return weight.to(self.full.mean.dtype)

    @property
    def mean(self) -> Tensor:
        return self._weight * self.full.mean + (1 - self._weight) * self.reduced.mean

    @property
    def variance(self) -> Tensor:
        weight, gap = self._weight, self.full.mean - self.reduced.mean
        within = weight * self.full.variance + (1 - weight) * self.reduced.variance
        return within + weight * (1 - weight) * gap.square()


class SwitchingMixture(SwitchingAverage):
    """
    A site whose elements follow one distribution or another, as one of several models has it for all groups together.

    :param full: as for :class:`SwitchingAverage`, as are ``reduced`` and ``label``.
    :param kept: which groups are ``full`` in each model, shape ``(k, n)``, boolean.
    :param probability: of each model, shape ``(k,)``.

    Example::

        >>> import pyro.distributions as dist
        >>> sides = dist.Normal(torch.ones(2), 1.0), dist.Normal(torch.zeros(2), 1.0)
        >>> kept = torch.tensor([[True, True], [False, False]])
        >>> average = SwitchingMixture(*sides, torch.tensor([0, 1]), kept, torch.tensor([0.25, 0.75]))
        >>> average.mean
        tensor([0.2500, 0.2500])
    """

    def __init__(
        self, full: Distribution, reduced: Distribution, label: Tensor, kept: Tensor, probability: Tensor
    ) -> None:
        self.kept, self.probability = kept, probability
        super().__init__(full, reduced, label, probability @ kept.to(probability))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            chosen = torch.multinomial(self.probability, shape.numel(), replacement=True)
            return self.sample_given(self.kept[chosen].reshape(shape + self.kept.shape[1:]), shape)

    def log_prob(self, value: Tensor) -> Tensor:
        full, reduced = self._densities(value)
        dims = self.label.dim()
        shape = full.shape[: full.dim() - dims]
        kept = self._of_elements(self.kept, True).reshape((-1,) + (1,) * len(shape) + self.label.shape)
        of_models = torch.where(kept, full, reduced).reshape(len(self.kept), *shape, -1).sum(-1)
        log_weights = self.probability.log().to(of_models).reshape((-1,) + (1,) * len(shape))
        return (of_models + log_weights).logsumexp(0)


class NormalAverage(TorchDistribution):
    """
    A mixture of normals, in each of which some elements may be fixed at a point.

    Where elements are fixed the average has mass: ``log_prob`` is relative to counting in these elements and to length
    in the others.

    :param probability: of each component, shape ``(k,)``.
    :param loc: mean of each component, shape ``(k, n)``.
    :param scale_tril: Cholesky factor of each component's covariance, shape ``(k, n, n)``, with unit rows and columns
        for fixed elements.
    :param fixed: which elements are fixed in each component, shape ``(k, n)``, boolean.
    :param shape: shape of the value, of n elements; ``(n,)`` by default.
    :param transform: from a normal value to a value of the average, element by element; None where they are the same.

    Example::

        >>> loc, fixed = torch.tensor([[1.0], [0.0]]), torch.tensor([[False], [True]])
        >>> average = NormalAverage(torch.tensor([0.3, 0.7]), loc, torch.ones(2, 1, 1), fixed)
        >>> average.mean, average.log_prob(torch.zeros(1)).exp()
        (tensor([0.3000]), tensor(0.7000))
    """

    arg_constraints: dict[str, Constraint] = {}

    def __init__(
        self,
        probability: Tensor,
        loc: Tensor,
        scale_tril: Tensor,
        fixed: Tensor,
        shape: torch.Size | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.probability, self.loc, self.scale_tril, self.fixed = probability, loc, scale_tril, fixed
        self.transform = transform
        super().__init__(event_shape=loc.shape[1:] if shape is None else shape, validate_args=False)

    def site(self, block: Block) -> Distribution:
        """The marginal of the elements of one site, in the site's own coordinates."""
        at, whole = block.positions, block.positions == slice(0, self.loc.shape[-1])
        scale_tril = self.scale_tril if whole else square_root(self.scale_tril[:, at])
        parameters = self.probability, self.loc[:, at], scale_tril, self.fixed[:, at], block.shape
        if block.transform is None or not self.fixed[:, at].any():
            return push_forward(NormalAverage(*parameters), block.transform)
        return NormalAverage(*parameters, block.transform)

    @property
    def support(self) -> Constraint:
        inner = constraints.real if self.transform is None else self.transform.codomain
        return constraints.independent(inner, len(self.event_shape) - inner.event_dim)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            chosen = torch.multinomial(self.probability, shape.numel(), replacement=True)
            noise = torch.randn(shape.numel(), self.loc.shape[-1], dtype=self.loc.dtype, device=self.loc.device)
            noise = torch.where(self.fixed[chosen], torch.zeros_like(noise), noise)
            # One component at a time: its factor is used where it lies, not copied for each draw.
            value = torch.empty_like(noise)
            for component in chosen.unique().tolist():
                here = chosen == component
                value[here] = self.loc[component] + noise[here] @ self.scale_tril[component].mT
            value = value.reshape(shape + self.event_shape)
            return value if self.transform is None else self.transform(value)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = value.shape[: value.dim() - len(self.event_shape)] + (1, -1)
        inner, points = value, self.loc
        if self.transform is not None:
            inner, points = self.transform.inv(value), self.transform(self.loc)
        error = inner.reshape(shape) - self.loc
        fixed = self.fixed.expand_as(error)
        # An element at a component's point is there exactly; it is not compared after a transform and back.
        at_a_point = ((value.reshape(shape) == points) & fixed).any(-2, keepdim=True)
        fits = (at_a_point == fixed).all(-1)
        error = torch.where(fixed, torch.zeros_like(error), error)
        # The draws are the columns, so that the factors are not copied for each.
        columns = error.reshape(-1, *self.loc.shape).movedim(0, -1)
        scaled = torch.linalg.solve_triangular(self.scale_tril, columns, upper=False)
        distance = scaled.square().sum(-2).movedim(-1, 0).reshape(error.shape[:-1])
        free = (~self.fixed).sum(-1)
        log_norm = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * free * math.log(2 * math.pi)
        density = self.probability.log() - 0.5 * distance - log_norm
        if self.transform is not None:
            stretch = self.transform.log_abs_det_jacobian(inner, value).reshape(shape)
            density = density - torch.where(fixed, torch.zeros_like(error), stretch).sum(-1)
        return torch.where(fits, density, -torch.inf).logsumexp(-1)

    @property
    def mean(self) -> Tensor:
        self._needs_no_transform()
        return (self.probability @ self.loc).reshape(self.event_shape)

    @property
    def variance(self) -> Tensor:
        self._needs_no_transform()
        own = torch.where(self.fixed, torch.zeros_like(self.loc), self.scale_tril.square().sum(-1))
        gap = self.loc - self.probability @ self.loc
        return (self.probability @ (own + gap.square())).reshape(self.event_shape)

    def _needs_no_transform(self) -> None:
        if self.transform is not None:
            raise NotImplementedError("the moments of a transformed normal have no closed form; take draws")
