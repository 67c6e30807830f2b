# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The log-uniform distribution."""

from __future__ import annotations

import torch
from pyro.distributions import Uniform
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.types import _size

from pyro_bmrs.distributions.extended_interval import check_ends
from pyro_bmrs.distributions.log_interval import LogIntervalDistribution
from pyro_bmrs.distributions.numerics.normal_mass import AboutMode
from pyro_bmrs.errors import ReductionError


class LogUniform(LogIntervalDistribution):
    """
    A variable whose logarithm is uniform, with density 1 / (x log(high / low)) on [``low``, ``high``].

    The prior of a multiplicative noise variable in variational pruning (K. Neklyudov et al. (2017), *Structured
    Bayesian pruning via log-normal multiplicative noise*, https://arxiv.org/abs/1705.07283).

    :param low: lower end of the variable itself (not of its logarithm), greater than 0.
    :param high: upper end of the variable itself, finite; greater than ``low``.
    :raises ReductionError: for ends in the wrong order, not positive or not finite. Checked where arguments are
        validated at all.

    Shapes: the batch shape is the broadcast shape of the parameters.

    Example::

        >>> from pyro_bmrs.distributions import LogUniform
        >>> prior = LogUniform(1e-3, 1.0)
        >>> prior.mean, prior.icdf(prior.low.new_tensor(0.5))
        (tensor(0.1446), tensor(0.0316))
    """

    arg_constraints = {
        "low": constraints.dependent(is_discrete=False, event_dim=0),
        "high": constraints.dependent(is_discrete=False, event_dim=0),
    }
    base_dist: Uniform

    def __init__(self, low: Tensor | float, high: Tensor | float, validate_args: bool | None = None) -> None:
        low, high = broadcast_all(low, high)
        if self._validate_args if validate_args is None else validate_args:
            check_ends(type(self).__name__, low, high)
            if not ((low > 0) & high.isfinite()).all():
                raise ReductionError(
                    f"{type(self).__name__} has no density on an interval that reaches from {low.min():.6g} to "
                    f"{high.max():.6g}: its ends must be positive and finite. They bound the variable itself, not its "
                    "logarithm."
                )
        base_dist = Uniform(low.log(), high.log(), validate_args=validate_args)
        super().__init__(base_dist, low, high, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: LogIntervalDistribution | None = None) -> LogUniform:
        return super().expand(batch_shape, _instance=self._get_checked_instance(LogUniform, _instance))

    @property
    def _width(self) -> Tensor:
        """Of the interval of the logarithm."""
        return self.base_dist.high - self.base_dist.low

    @property
    def _about_mode(self) -> AboutMode:
        zero = torch.zeros_like(self.low)
        return AboutMode(self.base_dist.low, zero, zero, zero, self._width)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inside = (value >= self.low) & (value <= self.high)
        return torch.where(inside, -value.log() - self._width.log(), -torch.inf)

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_value = torch.clamp(value, self.low, self.high).log()
        return ((log_value - self.base_dist.low) / self._width).clamp(min=0, max=1)

    @property
    def mode(self) -> Tensor:
        return self.low
