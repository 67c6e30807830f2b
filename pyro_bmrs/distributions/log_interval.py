# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What the exponentials of normals and uniforms on intervals have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import TransformedDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.transforms import ExpTransform
from torch.types import _size

from pyro_bmrs.distributions.extended_interval import extended_interval
from pyro_bmrs.distributions.numerics.exponential_moments import log_exponential_moment, log_squared_variation
from pyro_bmrs.distributions.numerics.normal_mass import AboutMode


class LogIntervalDistribution(TransformedDistribution):
    """
    The exponential of a distribution on the interval [log ``low``, log ``high``].

    :param base_dist: the distribution of the logarithm.
    :param low: lower end of the variable itself, of the base distribution's shape.
    :param high: its upper end, of the same shape.
    """

    has_rsample = True
    arg_constraints: dict[str, constraints.Constraint]

    def __init__(self, base_dist: Distribution, low: Tensor, high: Tensor, validate_args: bool | None = None) -> None:
        self.low, self.high = low, high
        super().__init__(base_dist, ExpTransform(), validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: LogIntervalDistribution | None = None) -> LogIntervalDistribution:
        checked: Callable[..., LogIntervalDistribution] = self._get_checked_instance
        new = checked(LogIntervalDistribution, _instance)
        new.low, new.high = self.low.expand(batch_shape), self.high.expand(batch_shape)
        expanded: LogIntervalDistribution = super().expand(batch_shape, _instance=new)
        return expanded

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in self.arg_constraints}
        shown = (f"{name}: {value if value.numel() == 1 else value.size()}" for name, value in values.items())
        return f"{type(self).__name__}({', '.join(shown)})"

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return extended_interval(self.low, self.high)

    @property
    def _about_mode(self) -> AboutMode:
        """The distribution of the logarithm, as a normal on an interval."""
        raise NotImplementedError

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        return self._exp(self.base_dist.rsample(sample_shape))

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def icdf(self, value: Tensor) -> Tensor:
        quantile = self._exp(self.base_dist.icdf(value))
        return torch.where(value <= 0, self.low, torch.where(value >= 1, self.high, quantile))

    def _exp(self, log_value: Tensor) -> Tensor:
        # exp(log(low)) may round to less than low. The derivatives are the exponential's nevertheless.
        constant = log_value.detach()
        return constant.exp().clamp(self.low, self.high).detach() * (log_value - constant).exp()

    @property
    def mean(self) -> Tensor:
        about = self._about_mode
        return (about.mode + log_exponential_moment(1.0, *about[1:])).exp().clamp(self.low, self.high)

    @property
    def stddev(self) -> Tensor:
        return self.mean * log_squared_variation(*self._about_mode[1:]).expm1().sqrt()

    @property
    def variance(self) -> Tensor:
        return self.stddev.square()

    def entropy(self) -> Tensor:
        entropy: Tensor = self.base_dist.entropy() + self.base_dist.mean
        return entropy
