# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
The log likelihood of the data as a function of the noise of one unit, all others at their posterior mean.

It is evaluated at a few places, and interpolated in the noise (not in its logarithm), in which it is smooth. At the
mean, close to which the posterior has its mass, its slope is known too. Evidence is then an integral of its exponential
over a distribution of the noise, in logarithms throughout.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.distributions import LogUniform
from pyro_bmrs.errors import ReductionError

NUM_PLACES = 3
# Of the interval: how near to an end a mean may be, and below which it is low.
_LEAST, _SHARE = 1e-6, 0.3
_NUM_EVEN, _NUM_LOG, _NUM_QUANTILES = 4096, 256, 129


class Places(NamedTuple):
    """
    Where the log likelihood of each unit of a site is evaluated, besides the mean.

    :param mean: the posterior mean of the noise, of shape ``(units,)``; not quite at an end of its interval.
    :param noise: the low end of the interval, a place between, the high end; of shape ``(units, 3)``.
    :param is_low: whether the mean is so low that the place between is above it.
    """

    mean: Tensor
    noise: Tensor
    is_low: Tensor


def places(mean: Tensor, prior: LogUniform) -> Places:
    """
    Where to evaluate, given the posterior mean of each unit's noise.

    :param mean: of shape ``(units,)``.
    :param prior: of the units.

    Example::

        >>> import torch
        >>> from pyro_bmrs.distributions import LogUniform
        >>> from pyro_bmrs.pruning.criteria.evidence.unit_profile import places
        >>> places(torch.tensor([0.02, 0.6]), LogUniform(0.001, torch.ones(2))).noise
        tensor([[0.0010, 0.3140, 1.0000],
                [0.0010, 0.3005, 1.0000]])
    """
    least = _LEAST * (prior.high - prior.low)
    mean = torch.minimum(torch.maximum(mean, prior.low + least), prior.high - least)
    is_low = mean - prior.low < _SHARE * (prior.high - prior.low)
    between = torch.where(is_low, mean + _SHARE * (prior.high - mean), 0.5 * (prior.low + mean))
    return Places(mean, torch.stack([prior.low, between, prior.high], -1), is_low)


def without_between(at: Places, values: Tensor, slope: Tensor) -> Tensor:
    """
    Values as if that between had not been seen: it is that of a parabola through its neighbours, with the slope at one.

    :param at: where they are.
    :param values: the log likelihood at the places less that at the mean, of shape ``(units, 3)``.
    :param slope: its derivative in the noise at the mean, of shape ``(units,)``.
    """
    low, between, high = at.noise.unbind(-1)
    end, value = torch.where(at.is_low, high, low), torch.where(at.is_low, values[:, 2], values[:, 0])
    step, whole = between - at.mean, end - at.mean
    parabola = slope * step + (value - slope * whole) * (step / whole).square()
    return torch.stack([values[:, 0], parabola, values[:, 2]], -1)


class UnitProfile:
    """
    The log likelihood of each unit's noise, relative to that at its mean: cubic polynomials between the places.

    Their slopes are those of the polynomials through four conditions that lie together, but no steeper than a monotone
    curve has them (F. Fritsch and R. Carlson (1980), *Monotone piecewise cubic interpolation*,
    https://doi.org/10.1137/0717021): where a unit is worth a thousand nats, an overshoot would be worth hundreds.

    :param at: where it was evaluated.
    :param values: the log likelihood at the places less that at the mean, of shape ``(units, 3)``.
    :param slope: its derivative in the noise at the mean, of shape ``(units,)``.

    Example::

        >>> import torch
        >>> from pyro_bmrs.distributions import LogUniform
        >>> from pyro_bmrs.pruning.criteria.evidence.unit_profile import UnitProfile, places
        >>> at = places(torch.tensor([0.5]), LogUniform(1e-9, torch.ones(1)))
        >>> parabola = UnitProfile(at, -8 * (at.noise - 0.5).square(), torch.zeros(1))
        >>> parabola(torch.tensor([[0.0, 0.4, 0.75]]))
        tensor([[-2.0000, -0.0800, -0.5000]])
    """

    def __init__(self, at: Places, values: Tensor, slope: Tensor) -> None:
        low, between, high = at.noise.unbind(-1)
        zero, (at_low, at_between, at_high) = torch.zeros_like(slope), values.unbind(-1)
        # Where the mean is low all is seen in a mirror, so that between comes before the mean.
        self._sign = torch.where(at.is_low, -1.0, 1.0).to(slope)
        first, last = torch.where(at.is_low, high, low), torch.where(at.is_low, low, high)
        self._at = self._sign.unsqueeze(-1) * torch.stack([first, between, at.mean, last], -1)
        first, last = torch.where(at.is_low, at_high, at_low), torch.where(at.is_low, at_low, at_high)
        self._values = torch.stack([first, at_between, zero, last], -1)
        self._width = self._at.diff(dim=-1)
        self._slopes = _slopes(self._values.diff(dim=-1) / self._width, self._width, self._sign * slope)

    def __call__(self, noise: Tensor) -> Tensor:
        """
        The log likelihood relative to that at the mean.

        :param noise: of shape ``(units, ...)``.
        """
        flat = self._sign.unsqueeze(-1) * noise.flatten(1)
        left = (flat.unsqueeze(-1) > self._at[:, 1:3].unsqueeze(1)).sum(-1)
        width = self._width.gather(-1, left)
        share = (flat - self._at.gather(-1, left)) / width
        rest = 1 - share
        start, end = self._values.gather(-1, left), self._values.gather(-1, left + 1)
        out, into = self._slopes.gather(-1, left) * width, self._slopes.gather(-1, left + 1) * width
        ends = start * rest * rest * (1 + 2 * share) + end * share * share * (1 + 2 * rest)
        return (ends + share * rest * (out * rest - into * share)).reshape(noise.shape)

    def log_mean_likelihood(self, distribution: Distribution) -> Tensor:
        """
        The log of the mean of the likelihood, relative to that at the mean, of shape ``(units,)``.

        The exponential of a function that is linear between the points of a fine grid is integrated exactly, so that no
        peak is too narrow, and nothing is lost in a tail. The grid holds the quantiles of the distribution.

        :param distribution: of the noise: the prior, or the reduced prior; of batch shape ``(units,)``.
        :raises ReductionError: for one that has no quantiles.
        """
        low, high = (self._sign.unsqueeze(-1) * self._at[:, [0, -1]]).sort(-1).values.split(1, -1)
        if isinstance(distribution, Delta):
            return self(distribution.v.expand(len(low)).unsqueeze(-1)).squeeze(-1)
        bare: Any = copy.copy(distribution)
        bare._validate_args = False  # rounding may put an end of the grid outside
        try:
            quantiles = bare.icdf(torch.linspace(0, 1, _NUM_QUANTILES).to(low).unsqueeze(-1))
        except NotImplementedError as error:
            raise ReductionError(
                f"the reduced prior, a {type(distribution).__name__}, has no quantiles (icdf), by which evidence that "
                "is evaluated is integrated: take one that has, or evidence='closed'"
            ) from error
        quantiles = quantiles.expand(_NUM_QUANTILES, len(low)).T.clamp(low, high)
        even = _grid(low, high)
        low, high = quantiles[:, :1], quantiles[:, -1:]
        points = torch.cat([even.clamp(low.log(), high.log()), quantiles.log()], -1)
        grid = points.sort(-1).values
        # exp(log(low)) may round to less than low, where there is no density.
        noise = grid.exp().clamp(low, high)
        log_density = bare.log_prob(noise.T).T + grid
        return _log_integral(grid, log_density + self(noise)) - _log_integral(grid, log_density)


def _slopes(secants: Tensor, widths: Tensor, slope: Tensor) -> Tensor:
    """At four places, of which the slope at the third is known, given the secants and the widths between them."""
    (first, second, last), (below, near, above) = secants.unbind(-1), widths.unbind(-1)
    # Divided differences: of the cubic that meets the first two, and the third with its slope ...
    curved, bent = (second - first) / (below + near), (slope - second) / near
    cubic = (bent - curved) / (below + near)
    at_first = first - curved * below + cubic * below * (below + near)
    at_second = first + curved * below - cubic * below * near
    # ... and of that which meets the last instead of the first.
    cubic = ((last - slope) / above - bent) / (near + above)
    at_last = second + bent * (2 * above + near) + cubic * above * (3 * above + 2 * near)
    at_first = _limited(at_first, first.abs())
    at_last = _limited(at_last, torch.maximum(last.abs(), slope.abs()))
    # Where the values rise on both sides, or fall, so does the curve; but there may be a peak before the third.
    at_second = _limited(at_second, torch.minimum(first.abs(), torch.maximum(second.abs(), slope.abs())))
    at_second = torch.where((first * second > 0) & (at_second * first < 0), 0.0, at_second)
    return torch.stack([at_first, at_second, slope, at_last], -1)


def _limited(slope: Tensor, secant: Tensor) -> Tensor:
    """A slope no steeper than three times a secant, either way."""
    return torch.minimum(torch.maximum(slope, -3 * secant), 3 * secant)


def _grid(low: Tensor, high: Tensor) -> Tensor:
    """Logarithms of the noise: evenly spaced themselves, and so that the noise is."""
    even = low + (high - low) * torch.linspace(0, 1, _NUM_EVEN + 1).to(low)
    log = low.log() + (high / low).log() * torch.linspace(0, 1, _NUM_LOG + 1).to(low)
    return torch.cat([even.log(), log], -1)


def _log_integral(grid: Tensor, height: Tensor) -> Tensor:
    """The log of the integral of the exponential of what is linear between grid points, along the last dimension."""
    left, right, width = height[:, :-1], height[:, 1:], grid.diff(dim=-1)
    top = torch.maximum(left, right)
    fall = torch.where(top > -math.inf, left - right, 0.0).abs()
    is_flat = fall < 1e-5
    steep = torch.where(is_flat, 1.0, fall)
    mean = torch.where(is_flat, -0.5 * fall, torch.log(-torch.expm1(-steep)) - steep.log())
    inside = torch.where(width > 0, width, 1.0).log()
    cells = torch.where(width > 0, top + mean + inside, -math.inf)
    return torch.logsumexp(cells, -1)
