# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The log-normal distribution truncated to an interval."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.types import _size

from pyro_bmrs.distributions.expanded import unexpanded
from pyro_bmrs.distributions.extended_interval import check_ends
from pyro_bmrs.distributions.log_interval import LogIntervalDistribution
from pyro_bmrs.distributions.numerics.normal_mass import AboutMode
from pyro_bmrs.distributions.truncated_normal import TruncatedNormal
from pyro_bmrs.errors import ReductionError


class TruncatedLogNormal(LogIntervalDistribution):
    """
    The exponential of a :class:`TruncatedNormal`: a log-normal truncated to the interval [``low``, ``high``].

    The posterior of a multiplicative noise variable in variational pruning (K. Neklyudov et al. (2017), *Structured
    Bayesian pruning via log-normal multiplicative noise*, https://arxiv.org/abs/1705.07283). Mean, variance and their
    ratio are computed relative to the modes of the tilted densities, and are accurate where the textbook formulas
    overflow.

    :param loc: location of the logarithm before truncation.
    :param scale: scale of the logarithm before truncation, positive.
    :param low: lower end of the variable itself (not of its logarithm), at least 0.
    :param high: upper end of the variable itself, may be inf; greater than ``low``.
    :raises ReductionError: for ends in the wrong order or below 0, or an infinite location or scale; plain
        ``ValueError`` where a parameter is NaN or the scale is not positive. Checked where arguments are validated at
        all.

    Shapes: the batch shape is the broadcast shape of the parameters.

    Example::

        >>> import math, torch
        >>> from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
        >>> noise = TruncatedLogNormal(loc=torch.tensor([-1.0, -25.0]), scale=0.5, low=math.exp(-20), high=1.0)
        >>> noise.mean / noise.stddev  # signal-to-noise ratio
        tensor([ 2.1703, 19.5825])
        >>> torch.distributions.kl_divergence(noise, LogUniform(math.exp(-20), 1.0))
        tensor([2.3482, 5.0108])
    """

    arg_constraints = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.dependent(is_discrete=False, event_dim=0),
        "high": constraints.dependent(is_discrete=False, event_dim=0),
    }
    base_dist: TruncatedNormal

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: Tensor | float,
        high: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        loc, scale, low, high = broadcast_all(loc, scale, low, high)
        if self._validate_args if validate_args is None else validate_args:
            check_ends(type(self).__name__, low, high)
            if (low < 0).any():
                raise ReductionError(
                    f"{type(self).__name__} is positive, but has a low of {low.min():.6g}. low and high bound the "
                    "variable itself; only loc and scale are those of its logarithm."
                )
        # An end at 0 has no influence, not even as a parameter: its logarithm has no gradient.
        end = unexpanded(low)
        log_low = torch.where(end > 0, torch.where(end > 0, end, 1.0).log(), -torch.inf)
        base_dist = TruncatedNormal(loc, scale, log_low, unexpanded(high).log(), validate_args=validate_args)
        super().__init__(base_dist, low, high, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: LogIntervalDistribution | None = None) -> TruncatedLogNormal:
        return super().expand(batch_shape, _instance=self._get_checked_instance(TruncatedLogNormal, _instance))

    @property
    def loc(self) -> Tensor:
        return self.base_dist.loc

    @property
    def scale(self) -> Tensor:
        return self.base_dist.scale

    @property
    def _about_mode(self) -> AboutMode:
        return self.base_dist._about_mode

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inside = (value >= self.low) & (value <= self.high) & (value > 0) & value.isfinite()
        log_value = torch.where(inside, torch.where(inside, value, 1.0).log(), self.base_dist.mode)
        return torch.where(inside, self.base_dist._log_density(log_value) - log_value, -torch.inf)

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_value = torch.clamp(value, self.low, self.high).log()
        return self.base_dist.cdf(torch.clamp(log_value, self.base_dist.low, self.base_dist.high))

    @property
    def mode(self) -> Tensor:
        log_mode = torch.clamp(self.loc - self.scale.square(), self.base_dist.low, self.base_dist.high)
        return log_mode.exp().clamp(self.low, self.high)
