# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The normal distribution truncated to an interval."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.types import _size

from pyro_bmrs.distributions.extended_interval import check_ends, extended_interval
from pyro_bmrs.distributions.numerics.normal_mass import (
    AboutMode,
    about_mode,
    energy,
    log_mass,
    mean_and_variance,
    moments,
)
from pyro_bmrs.distributions.numerics.truncated_quantile import truncated_cdf, truncated_quantile
from pyro_bmrs.errors import ReductionError


class TruncatedNormal(TorchDistribution):
    r"""
    A normal distribution truncated to the interval [``low``, ``high``].

    All values and gradients are accurate to rounding, in float32 and float64, wherever the location lies (also many
    interval widths or scales outside the interval) and however narrow or wide the scale is: everything is computed
    relative to the mode of the truncated density, never as a difference of distribution functions. Samples are
    reparametrised by the analytic derivative of the quantile (:func:`~.truncated_quantile.truncated_quantile`;
    M. Figurnov, S. Mohamed and A. Mnih (2018), *Implicit reparameterization gradients*,
    https://arxiv.org/abs/1805.08498), and are differentiable in all four parameters.

    A ``torch.jit.trace`` or ``torch.compile`` of it has the right values at any parameters. A trace calls Python, so
    that ``torch.jit.save`` refuses it.

    :param loc: location of the untruncated normal.
    :param scale: scale of the untruncated normal, positive.
    :param low: lower end of the interval, may be -inf.
    :param high: upper end of the interval, may be inf; greater than ``low``.
    :raises ReductionError: for ends in the wrong order, or an infinite location or scale; plain ``ValueError`` where a
        parameter is NaN or the scale is not positive. Checked where arguments are validated at all.

    Shapes: the batch shape is the broadcast shape of the parameters.

    Example::

        >>> import torch
        >>> from pyro_bmrs.distributions import TruncatedNormal
        >>> gate = TruncatedNormal(loc=torch.tensor([0.2, -40.0]), scale=1.0, low=0.0, high=1.0)
        >>> gate.mean, gate.stddev
        (tensor([0.4759, 0.0250]), tensor([0.2833, 0.0250]))
        >>> gate.log_prob(torch.tensor(0.5))
        tensor([  0.0374, -16.4355])
    """

    arg_constraints = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.dependent(is_discrete=False, event_dim=0),
        "high": constraints.dependent(is_discrete=False, event_dim=0),
    }
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: Tensor | float,
        high: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.low, self.high = broadcast_all(loc, scale, low, high)
        super().__init__(self.loc.shape, validate_args=validate_args)
        if self._validate_args:
            check_ends(type(self).__name__, self.low, self.high)
            for name in ("loc", "scale"):
                if not getattr(self, name).isfinite().all():
                    raise ReductionError(
                        f"{type(self).__name__} needs a finite {name}; for a flat density use Uniform or LogUniform."
                    )

    def expand(self, batch_shape: _size, _instance: TruncatedNormal | None = None) -> TruncatedNormal:
        checked: Callable[..., TruncatedNormal] = self._get_checked_instance
        new = checked(TruncatedNormal, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(TruncatedNormal, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return extended_interval(self.low, self.high)

    @property
    def _about_mode(self) -> AboutMode:
        return about_mode(self.loc, self.scale.reciprocal().square(), self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inside = (value >= self.low) & (value <= self.high) & value.isfinite()
        return torch.where(inside, self._log_density(torch.where(inside, value, self.mode)), -torch.inf)

    def _log_density(self, value: Tensor) -> Tensor:
        """The log density of a value that is known to lie in the interval, up to rounding."""
        about = self._about_mode
        return -energy(value - about.mode, about.slope, about.precision) - log_mass(*about[1:])

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        # A 0 stands for all that rounds to it, and would put the sample on an end, which may be infinite.
        uniform = uniform.clamp(min=0.25 * torch.finfo(uniform.dtype).eps)
        return truncated_quantile(uniform, self.loc, self.scale, self.low, self.high)

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value = torch.clamp(value, self.low, self.high)
        finite = value.isfinite()
        inside = torch.where(finite, value, self.mode)
        probability = truncated_cdf(inside, self.loc, self.scale, self.low, self.high)
        return torch.where(finite, probability, (value > 0).to(probability.dtype))

    def icdf(self, value: Tensor) -> Tensor:
        # The ends are exact, and reached with a derivative of 0, not the infinite one of an unbounded tail.
        at_low, at_high = value <= 0, value >= 1
        inside = torch.where(at_low | at_high, 0.5, value)
        quantile = truncated_quantile(inside, self.loc, self.scale, self.low, self.high)
        return torch.where(at_low, self.low, torch.where(at_high, self.high, quantile))

    @property
    def mode(self) -> Tensor:
        return self._about_mode.mode

    @property
    def mean(self) -> Tensor:
        about = self._about_mode
        return about.mode + moments(*about[1:], order=1)[0]

    @property
    def variance(self) -> Tensor:
        return mean_and_variance(*self._about_mode[1:])[1]

    def entropy(self) -> Tensor:
        about = self._about_mode
        first, second = moments(*about[1:], order=2)
        return log_mass(*about[1:]) + about.slope * first + 0.5 * about.precision * second
