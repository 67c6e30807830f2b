# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What draws of importance sampling are made from: a mixture with a component for each mode, and with heavy tails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# From tails that hold any posterior to a normal, which wastes no draws on one that is.
DEGREES_OF_FREEDOM = (4.0, 15.0, 100.0)


class StudentMixture:
    """
    A mixture of components, each of several multivariate Student-t distributions of one location and one shape.

    A single tail suits few dimensions: heavy ones waste most draws in many, and light ones miss what a posterior has
    far out. The draws are spread over the parts by their shares, not at random, and weighted by the whole mixture's
    density.

    :param loc: of the components, shape ``(num_components, dim)``.
    :param covariance: their shapes, ``(num_components, dim, dim)``.
    :param shares: of components and tails in the draws, shape ``(num_components, num_tails)``; by default all alike.
    :param degrees_of_freedom: of the tails.
    :raises torch.linalg.LinAlgError: for a covariance that is not positive definite.

    Example::

        >>> import torch
        >>> mixture = StudentMixture(torch.zeros(1, 2), torch.eye(2).unsqueeze(0))
        >>> mixture.sample(1000).shape, mixture.log_prob(torch.zeros(1, 2))
        (torch.Size([1000, 2]), tensor([-1.8379]))
    """

    def __init__(
        self,
        loc: Tensor,
        covariance: Tensor,
        shares: Tensor | None = None,
        degrees_of_freedom: Sequence[float] = DEGREES_OF_FREEDOM,
    ) -> None:
        self.loc, self.covariance = loc, covariance
        self.scale_tril = torch.linalg.cholesky(covariance)
        self.df = loc.new_tensor(degrees_of_freedom)
        alike = loc.new_ones(len(loc), len(self.df)) if shares is None else shares
        self.shares = alike / alike.sum()

    def sample(self, num_samples: int) -> Tensor:
        """Draws of shape ``(num_samples, dim)``, from torch's global generator."""
        ends = self.shares.flatten().cumsum(0)
        middles = (torch.arange(num_samples, device=ends.device) + 0.5) / num_samples
        part = torch.searchsorted(ends, middles.to(ends)).clamp(max=len(ends) - 1)
        component, df = part // len(self.df), self.df[part % len(self.df)]
        precision = torch.distributions.Gamma(df / 2, df / 2).sample()
        # In single precision, which takes a quarter of the time: draws need not be exact, their densities are.
        normal = torch.randn(num_samples, self.loc.shape[1], dtype=torch.float32, device=self.loc.device)
        standard = normal.to(self.loc.dtype) / precision.sqrt().unsqueeze(-1)
        parts = [
            loc + standard[component == place] @ scale_tril.mT
            for place, (loc, scale_tril) in enumerate(zip(self.loc, self.scale_tril))
        ]
        return torch.cat(parts)

    def squared_distance(self, points: Tensor) -> Tensor:
        """
        The squared distance of points to each component, in units of the component's spread.

        :param points: shape ``(num_points, dim)``.
        :return: shape ``(num_points, num_components)``.
        """
        rows = [
            torch.linalg.solve_triangular(scale_tril, (points - loc).mT, upper=False).square().sum(0)
            for loc, scale_tril in zip(self.loc, self.scale_tril)
        ]
        return torch.stack(rows, -1)

    def log_parts(self, squared_distance: Tensor) -> Tensor:
        """
        The log density of each part, with its share, at points of given distances.

        :param squared_distance: as :meth:`squared_distance` gives it.
        :return: shape ``(num_points, num_components, num_tails)``.
        """
        df, dim = self.df, self.loc.shape[1]
        normaliser = torch.lgamma((df + dim) / 2) - torch.lgamma(df / 2) - dim / 2 * (df * math.pi).log()
        log_scale = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        kernel = (df + dim) / 2 * (squared_distance.unsqueeze(-1) / df).log1p()
        parts: Tensor = self.shares.log() + normaliser - log_scale - kernel
        return parts

    def log_prob(self, points: Tensor) -> Tensor:
        """The log density at points of shape ``(num_points, dim)``."""
        total: Tensor = self.log_parts(self.squared_distance(points)).flatten(1).logsumexp(-1)
        return total
