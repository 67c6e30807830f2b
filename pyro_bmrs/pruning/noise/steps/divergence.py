# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Divergences of truncated log-normals from the log-uniform on the same interval, and their derivatives.

They are those of the logarithms, truncated normals from a uniform. With t measured from the mode, in the units of
:mod:`~pyro_bmrs.pruning.noise.steps.law`, which lies :math:`m = \max(a, 0)` of them from the location, the density
proportional to :math:`e^{-e(t)}`, and M its integral,

.. math:: \mathrm{KL} = \log(\text{width} / \sqrt2\,\sigma) - \log M - E[e], \qquad e(t) = 2 m t + t^2,

and its derivatives are :math:`-\sqrt2\,\mathrm{Cov}(t, e) / \sigma` in the location and :math:`-2\,\mathrm{Var}(e)` in
the log of the scale. All of these are expectations under one density, and come from one Gauss-Legendre rule.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pyro_bmrs.pruning.noise.steps.arrays import cast, empty, library, pair
from pyro_bmrs.pruning.noise.steps.law import Law, LogUniforms

_LOG_ROOT_2 = 0.5 * math.log(2.0)


class Divergence(NamedTuple):
    """Divergences, and what else is known of the densities of the logarithms, of shape ``(units,)``."""

    divergence: Any
    log_normaliser: Any  # the log of the integral of the density relative to its mode
    by_parameters: Any  # how the divergence changes with the location and the log of the scale, of shape (2, units)
    mean: Any  # of t
    energy: Any  # the mean of -e(t)

    def by_normaliser(self, law: Law) -> Any:
        """
        How the log normaliser changes with the location and the log of the scale, of shape ``(2, units)``.

        The mode stands still: where it moves with the location, the slope there is 0.
        """
        return pair(2 * self.mean / cast(law.unit, self.mean), -2 * self.energy, self.mean)


def find_divergence(law: Law, parameters: Any, priors: LogUniforms) -> Divergence:
    """
    The divergences of all units.

    :param law: of the logarithms.
    :param parameters: location and log of the scale, of shape ``(2, units)``; the results have their precision.
    :param priors: the intervals.
    """
    xp = library(parameters)
    start, length, unit = cast(law.ends[0], parameters), cast(law.length, parameters), cast(law.unit, parameters)
    mode = xp.maximum(start, priors.zero)
    # Where the density has fallen far enough: the root of 2 mode t + t² = reach².
    reach = priors.fall / (mode + xp.hypot(mode, priors.reach))
    inside = mode - start
    below, above = xp.minimum(inside, reach), xp.minimum(length - inside, reach)
    width, middle = below + above, 0.5 * (above - below)
    # The density, times -e, and times e² at the nodes, in one block, the units in a row: an operation costs as much as
    # its memory is far.
    block = empty((3, len(priors.nodes), len(width)), parameters)
    density, weighted, squared = block
    t = priors.nodes * width
    t += middle
    height = xp.subtract(-2 * mode, t, out=weighted)
    height *= t
    xp.exp(height, out=density)
    xp.multiply(height, height, out=squared)
    squared *= density
    weighted *= density
    # The integrals of each, and of each times the node; then means.
    integrals = priors.moments @ block
    mass = integrals[0, 0]
    (_, node), (height, cross), (square, _) = integrals / mass
    log_normaliser = xp.log(mass * width) + (parameters[1] + _LOG_ROOT_2)
    by_loc = (cross - node * height) * (2 * width / unit)
    by_parameters = pair(by_loc, -2 * (square - height * height), parameters)
    divergence = priors.log_widths - log_normaliser + height
    return Divergence(divergence, log_normaliser, by_parameters, width * node + middle, height)
