# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Distributions over the packed vector of latent variables that joint autoguides draw in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import Empirical, MaskedMixture, TorchDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from pyro_bmrs.structure.layers import layers
from pyro_bmrs.structure.parameters import ParameterMap, map_parameters

_ONE = torch.Size()


def _flat(value: Tensor, part: Distribution) -> Tensor:
    """The value of a part as a vector, behind the sample dimensions."""
    dims = len(part.batch_shape) + len(part.event_shape)
    return value.reshape(value.shape[: value.dim() - dims] + (-1,))


def _unflat(vector: Tensor, part: Distribution) -> Tensor:
    return vector.reshape(vector.shape[:-1] + part.batch_shape + part.event_shape)


class _PackedSupport(Constraint):
    """Where every part of a vector is in its own support."""

    event_dim = 1

    def __init__(self, parts: Sequence[tuple[Any, slice | Tensor]]) -> None:
        self.parts = parts

    def check(self, value: Tensor) -> Tensor:
        inside = torch.ones(value.shape[:-1], dtype=torch.bool, device=value.device)
        for part, positions in self.parts:
            checked = part.support.check(_unflat(value[..., positions], part))
            inside = inside & checked.reshape(inside.shape + (-1,)).all(-1)
        return inside


class Packed(TorchDistribution):
    """
    A vector made of independent parts, each a distribution of any shape laid out flat at its own positions.

    :param parts: pairs of a distribution and the positions (a slice or an index tensor) of its flattened value.
    :param size: length of the vector.

    Example::

        >>> import pyro.distributions as dist
        >>> ones = dist.Delta(torch.ones(2), event_dim=1)
        >>> Packed([(dist.Normal(0.0, 1.0), slice(0, 1)), (ones, slice(1, 3))], 3).sample()[1:]
        tensor([1., 1.])
    """

    arg_constraints: dict[str, Constraint] = {}

    def __init__(self, parts: Sequence[tuple[Distribution, slice | Tensor]], size: int) -> None:
        self.parts = list(parts)
        self._size = size
        super().__init__(event_shape=torch.Size([size]), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Constraint:
        return _PackedSupport(self.parts)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(part.has_rsample for part, _ in self.parts)

    def _assemble(self, values: Sequence[Tensor], dim_shape: torch.Size) -> Tensor:
        result = values[0].new_empty(dim_shape + (self._size,))
        for (_, positions), value in zip(self.parts, values):
            result[..., positions] = value
        return result

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = torch.Size(sample_shape)
        return self._assemble([_flat(part.rsample(shape), part) for part, _ in self.parts], shape)

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            return self._assemble([_flat(part.sample(shape), part) for part, _ in self.parts], shape)

    def log_prob(self, value: Tensor) -> Tensor:
        total = value.new_zeros(value.shape[:-1])
        for part, positions in self.parts:
            density = part.log_prob(_unflat(value[..., positions], part))
            total = total + sum_rightmost(density, len(part.batch_shape))
        return total

    @property
    def mean(self) -> Tensor:
        return self._assemble([_flat(part.mean, part) for part, _ in self.parts], torch.Size())

    @property
    def variance(self) -> Tensor:
        return self._assemble([_flat(part.variance, part) for part, _ in self.parts], torch.Size())

    def _map_parameters(self, function: ParameterMap, prefix: str) -> Packed:
        mapped = [map_parameters(part, function, f"{prefix}part_{i}_") for i, (part, _) in enumerate(self.parts)]
        return Packed([(part, positions) for part, (_, positions) in zip(mapped, self.parts)], self._size)


def _covariance(root: Distribution) -> Tensor:
    if isinstance(root, Empirical):
        weights: Tensor = (root.log_weights - root.log_weights.logsumexp(-1)).exp()
        centred: Tensor = root.enumerate_support() - root.mean
        return (centred * weights.unsqueeze(-1)).mT @ centred
    covariance: Tensor = getattr(root, "covariance_matrix", root.variance.diag())
    return covariance


class RegressedNormal(TorchDistribution):
    r"""
    A vector whose root coordinates have any distribution and whose others are normal about a linear function of them.

    .. math:: x_\mathrm{root} \sim s, \qquad
        x_\mathrm{rest} \sim \mathcal{N}(\mathrm{intercept} + \mathrm{slope}\; x_\mathrm{root},\ L L^\top)

    It is what becomes of a joint normal posterior when some of its coordinates take a reduced prior that is not normal:
    given those, the others are distributed as before.

    :param root: distribution of the root coordinates, one event of shape ``(k,)``.
    :param intercept: shape ``(n - k,)``.
    :param slope: shape ``(n - k, k)``.
    :param scale_tril: the Cholesky factor L, shape ``(n - k, n - k)``.
    :param root_at: positions of the root coordinates in the vector, shape ``(k,)``.
    :param rest_at: positions of the others, shape ``(n - k,)``.
    """

    arg_constraints: dict[str, Constraint] = {}
    support = constraints.real_vector

    def __init__(
        self, root: Distribution, intercept: Tensor, slope: Tensor, scale_tril: Tensor, root_at: Tensor, rest_at: Tensor
    ) -> None:
        self.root, self.root_at, self.rest_at = root, root_at, rest_at
        self.intercept, self.slope, self.scale_tril = intercept, slope, scale_tril
        self._size = len(root_at) + len(rest_at)
        super().__init__(event_shape=torch.Size([self._size]), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.root.has_rsample

    def rest(self, root: Tensor) -> torch.distributions.MultivariateNormal:
        """The distribution of the other coordinates, given the root coordinates."""
        loc = self.intercept + (self.slope @ root.unsqueeze(-1)).squeeze(-1)
        return torch.distributions.MultivariateNormal(loc, scale_tril=self.scale_tril, validate_args=False)

    def _assemble(self, root: Tensor, rest: Tensor) -> Tensor:
        result = rest.new_empty(rest.shape[:-1] + (self._size,))
        result[..., self.root_at] = root
        result[..., self.rest_at] = rest
        return result

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        root = self.root.rsample(torch.Size(sample_shape))
        return self._assemble(root, self.rest(root).rsample())

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        with torch.no_grad():
            root = self.root.sample(torch.Size(sample_shape))
            return self._assemble(root, self.rest(root).sample())

    def log_prob(self, value: Tensor) -> Tensor:
        root = value[..., self.root_at]
        rest: Tensor = self.rest(root).log_prob(value[..., self.rest_at])
        return self.root.log_prob(root) + rest

    @property
    def mean(self) -> Tensor:
        return self._assemble(self.root.mean, self.rest(self.root.mean).mean)

    @property
    def variance(self) -> Tensor:
        """By the law of total variance."""
        noise = self.scale_tril.square().sum(-1)
        carried = ((self.slope @ _covariance(self.root)) * self.slope).sum(-1)
        return self._assemble(self.root.variance, noise + carried)

    def _map_parameters(self, function: ParameterMap, prefix: str) -> RegressedNormal:
        root = map_parameters(self.root, function, prefix + "root_")
        intercept = function(prefix + "intercept", self.intercept, constraints.real_vector, 1)
        slope = function(prefix + "slope", self.slope, constraints.independent(constraints.real, 2), 2)
        scale_tril = function(prefix + "scale_tril", self.scale_tril, constraints.lower_cholesky, 2)
        return RegressedNormal(root, intercept, slope, scale_tril, self.root_at, self.rest_at)


class Slice(TorchDistribution):
    """
    Some coordinates of a distribution over a vector whose marginal has no closed form: draws and moments, no density.

    :param joint: the distribution over the whole vector.
    :param at: positions of the coordinates.
    """

    arg_constraints: dict[str, Constraint] = {}
    support = constraints.real_vector

    def __init__(self, joint: Distribution, at: Tensor) -> None:
        self.joint, self.at = joint, at
        super().__init__(event_shape=torch.Size([len(at)]), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.joint.has_rsample

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        return self.joint.rsample(sample_shape)[..., self.at]

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        return self.joint.sample(sample_shape)[..., self.at]

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError("this marginal has no closed form; use draws, or the density of the joint posterior")

    @property
    def mean(self) -> Tensor:
        return self.joint.mean[..., self.at]

    @property
    def variance(self) -> Tensor:
        return self.joint.variance[..., self.at]


def holds_draws(distribution: Distribution) -> bool:
    """
    Whether a distribution is, or has a part that is, weighted draws: these have no density, and cannot be trained.

    Example::

        >>> draws = Empirical(torch.zeros(3), torch.zeros(3))
        >>> holds_draws(Packed([(draws, slice(0, 1))], 1)), holds_draws(torch.distributions.Normal(0.0, 1.0))
        (True, False)
    """
    parts: list[Distribution] = []
    for layer in layers(distribution):
        if isinstance(layer, Empirical):
            return True
        if isinstance(layer, Packed):
            parts += [part for part, _ in layer.parts]
        elif isinstance(layer, RegressedNormal):
            parts.append(layer.root)
        elif isinstance(layer, MaskedMixture):
            parts += [layer.component0, layer.component1]
    return any(map(holds_draws, parts))
