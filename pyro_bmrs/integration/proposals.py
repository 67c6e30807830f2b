# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What draws of importance sampling are made from: heavy-tailed, of given moments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# From tails that hold any posterior to a normal, which wastes no draws on one that is.
DEGREES_OF_FREEDOM = (4.0, 15.0, 100.0)


class StudentMixture:
    """
    An equal mixture of multivariate Student-t distributions of one location and one shape, which differ in their tails.

    A single tail suits few dimensions: heavy ones waste most draws in many, and light ones miss what a posterior has
    far out. The draws are spread evenly over the parts, not at random, and weighted by the whole mixture's density.

    :param loc: shape ``(dim,)``.
    :param covariance: shape ``(dim, dim)``, of the part with the lightest tails.
    :param degrees_of_freedom: of the parts.
    :raises torch.linalg.LinAlgError: for a covariance that is not positive definite.

    Example::

        >>> import torch
        >>> mixture = StudentMixture(torch.zeros(2), torch.eye(2))
        >>> mixture.sample(1000).shape, mixture.log_prob(torch.zeros(1, 2))
        (torch.Size([1000, 2]), tensor([-1.8379]))
    """

    def __init__(
        self, loc: Tensor, covariance: Tensor, degrees_of_freedom: Sequence[float] = DEGREES_OF_FREEDOM
    ) -> None:
        self.loc = loc
        self.scale_tril = torch.linalg.cholesky(covariance)
        self._df = loc.new_tensor(degrees_of_freedom)

    def sample(self, num_samples: int) -> Tensor:
        """Draws of shape ``(num_samples, dim)``, from torch's global generator."""
        df = self._df[torch.arange(num_samples, device=self.loc.device) % len(self._df)]
        precision = torch.distributions.Gamma(df / 2, df / 2).sample()
        normal = torch.randn(num_samples, len(self.loc), dtype=self.loc.dtype, device=self.loc.device)
        draws: Tensor = self.loc + (normal / precision.sqrt().unsqueeze(-1)) @ self.scale_tril.mT
        return draws

    def log_prob(self, points: Tensor) -> Tensor:
        """The log density at points of shape ``(num_points, dim)``."""
        centred = (points - self.loc).mT
        distance = torch.linalg.solve_triangular(self.scale_tril, centred, upper=False).square().sum(0)
        df, dim = self._df.unsqueeze(-1), len(self.loc)
        normaliser = torch.lgamma((df + dim) / 2) - torch.lgamma(df / 2) - dim / 2 * (df * math.pi).log()
        parts = normaliser - (df + dim) / 2 * (distance / df).log1p()
        total: Tensor = parts.logsumexp(0) - math.log(len(self._df)) - self.scale_tril.diagonal().log().sum()
        return total
