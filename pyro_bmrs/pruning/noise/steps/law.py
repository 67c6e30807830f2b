# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Truncated normals as a step of training sees them: the logarithms of the noise of all units.

Each is looked at from the end of its interval that is nearer to the location, in units of :math:`\sqrt2` scales, in
which the density falls as :math:`e^{-z^2}`: the interval is :math:`z \in [a, a + L]`, negative a where the location is
inside.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_bmrs.distributions.numerics.normal_quadrature import gauss_legendre
from pyro_bmrs.pruning.noise.steps.arrays import cast, empty, is_numpys

_ROOT_2 = math.sqrt(2.0)
# Beyond so many e-folds below the mode a density is 0, and so many nodes integrate it, in single precision and double.
_SINGLE, _DOUBLE = (24.0, 24), (40.0, 48)
# How far an exponential is off, at most, by that of its argument relative to its size.
_MARGIN = 2.0**-50


class LogUniforms(NamedTuple):
    """
    The priors of all units, as a step computes with them: arrays of NumPy on the CPU, elsewhere of torch.

    Made by :meth:`of`, once for as long as the priors stay.
    """

    log_ends: Any  # of the logarithm, in double precision, of shape (2, units)
    inside: Any  # so near to those that exponentials are not outside the ends of the variable by rounding
    widths: Any  # how far those are apart, in double precision
    log_widths: Any  # the log of that, in the precision of the parameters
    # A Gauss-Legendre rule that integrates to rounding in that precision.
    nodes: Any  # on [-1/2, 1/2], symmetric to the last bit, below each other
    moments: Any  # the weights of the integral, and of the integral times the node
    fall: Any  # so many e-folds below its mode a density is nothing
    reach: Any  # how far a normal takes to fall so much, in units of its law
    zero: Any

    @classmethod
    def of(cls, ends: Tensor, dtype: torch.dtype) -> LogUniforms:
        """
        The priors on given intervals.

        :param ends: the ends of the variable, positive and finite, shape ``(2, units)``.
        :param dtype: that of the parameters.
        """
        log_ends = ends.double().log()
        num_folds, num_nodes = _SINGLE if torch.finfo(dtype).bits <= 32 else _DOUBLE
        nodes, weights = log_ends.new_tensor(gauss_legendre(num_nodes))
        nodes = 0.5 * (nodes - nodes.flip(0))
        moments, fall, zero = (
            torch.stack([weights, weights * nodes]),
            log_ends.new_tensor(num_folds),
            log_ends.new_zeros(()),
        )
        margin, widths = _MARGIN * (1 + log_ends.abs()), log_ends[1] - log_ends[0]
        inside = log_ends + torch.stack([margin[0], -margin[1]])
        rounded = widths.log(), nodes.unsqueeze(-1), moments, fall, fall.sqrt(), zero
        tables = log_ends, inside, widths, *(table.to(dtype) for table in rounded)
        return cls(*(table.numpy() if is_numpys(table.device, dtype) else table for table in tables))

    def at(self, units: Tensor) -> LogUniforms:
        """
        Those of some of the units.

        :param units: their numbers.
        """
        numbers: Any = units.numpy() if isinstance(self.log_ends, np.ndarray) else units
        names = ("log_ends", "inside", "widths", "log_widths")
        return self._replace(**{name: getattr(self, name)[..., numbers] for name in names})


class Law(NamedTuple):
    """The truncated normals of all units, in double precision; the logarithm is ``loc + unit * z``."""

    is_lower: Any  # whether the nearer end is the lower one
    loc: Any
    unit: Any  # the square root of 2 times the scale, negative where the interval extends downwards from that end
    ends: Any  # where z begins and ends, of shape (2, units)
    length: Any  # how far these are apart

    def at(self, units: Any) -> Law:
        """Those of some of the units."""
        return Law(*(part[..., units] for part in self))


def find_law(xp: Any, parameters: Any, priors: LogUniforms) -> Law:
    """
    The laws at given parameters.

    :param xp: the library of the arrays.
    :param parameters: location and log of the scale, of shape ``(2, units)``.
    :param priors: the intervals.
    """
    loc, log_scale = cast(parameters, priors.log_ends)
    unit = xp.exp(log_scale)
    unit *= _ROOT_2
    low, high = (priors.log_ends - loc) / unit
    middle, length, ends = low + high, priors.widths / unit, empty(priors.log_ends.shape, unit)
    xp.maximum(low, -high, out=ends[0])
    xp.add(ends[0], length, out=ends[1])
    return Law(middle >= 0, loc, xp.copysign(unit, middle), ends, length)
