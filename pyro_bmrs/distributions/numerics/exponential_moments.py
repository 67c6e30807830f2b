# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
The moments of :math:`e^T`, where T is the displacement of a normal on an interval from its mode.

The density tilted by :math:`e^{kt}` is again a normal on the same interval, whose slope is less by k, so that
:math:`E[e^{kT}]` is a ratio of two masses, each measured from its own mode. The textbook form,
:math:`e^{\mu + \sigma^2/2} [\Phi(\beta - \sigma) - \Phi(\alpha - \sigma)] / Z` for k = 1, overflows long before the
mean does, which lies in the interval.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_bmrs.distributions.numerics.normal_mass import AboutMode, energy, log_mass, mean_and_variance
from pyro_bmrs.distributions.numerics.normal_quadrature import gauss_legendre

__all__ = ["log_exponential_moment", "log_squared_variation"]

# Below this, the log of 1 + (relative variance) is integrated: as a difference it would cancel. The integrand is then
# so nearly constant that a few nodes integrate it to rounding.
_SMALL_VARIATION = 0.1
_NUM_NODES = 5


def _tilted(order: Tensor | float, slope: Tensor, precision: Tensor, left: Tensor, right: Tensor) -> AboutMode:
    """The density times exp(``order`` t); its mode is a displacement from that of the original."""
    free = (order - slope) / precision
    mode = torch.minimum(torch.maximum(free, -left), right)
    new_slope = torch.where((free > -left) & (free < right), 0.0, slope - order + precision * mode)
    return AboutMode(mode, new_slope, precision.expand_as(mode), left + mode, right - mode)


def log_exponential_moment(order: float, slope: Tensor, precision: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """
    Log of E[exp(``order`` T)].

    :param order: a positive number.
    :param slope: with ``precision`` >= 0, ``left`` and ``right``, the density of T, as for
        :func:`~pyro_bmrs.distributions.numerics.normal_mass.log_mass`.
    :return: the logarithm, of the broadcast shape; inf where the moment does not exist.

    Example::

        >>> import torch
        >>> inf, zero, one = torch.tensor(torch.inf), torch.tensor(0.0), torch.tensor(1.0)
        >>> log_exponential_moment(2.0, zero, one, inf, inf)  # E[exp(2 T)] = exp(2)
        tensor(2.)
    """
    mode, *about = _tilted(order, slope, precision, left, right)
    return order * mode - energy(mode, slope, precision) + log_mass(*about) - log_mass(slope, precision, left, right)


def log_squared_variation(slope: Tensor, precision: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""
    Log of :math:`1 + \mathrm{Var}(e^T) / E[e^T]^2`, to full relative accuracy however narrow the density is.

    It is the second difference K(2) - 2 K(1) + K(0) of the cumulant generating function, and so an average of its
    second derivative, the variance of the tilted density.

    :param slope: with ``precision``, ``left`` and ``right``, as for :func:`log_exponential_moment`.

    Example::

        >>> import torch
        >>> inf, zero = torch.tensor(torch.inf), torch.tensor(0.0)
        >>> log_squared_variation(zero, torch.tensor(1e12), inf, inf)  # the variance
        tensor(1.0000e-12)
    """
    about = torch.broadcast_tensors(slope, precision, left, right)
    difference = log_exponential_moment(2.0, *about) - 2 * log_exponential_moment(1.0, *about)
    nodes, weights = map(slope.new_tensor, gauss_legendre(_NUM_NODES))
    orders = torch.stack([1 - nodes, 1 + nodes]).reshape((2, _NUM_NODES) + (1,) * slope.dim())
    variances = mean_and_variance(*_tilted(orders, *about)[1:])[1].sum(0)
    integral = torch.tensordot(weights * (1 - nodes), variances, dims=1)
    return torch.where(difference < _SMALL_VARIATION, integral, difference)
