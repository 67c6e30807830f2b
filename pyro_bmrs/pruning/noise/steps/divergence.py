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
    """
    Divergences, and the logs of the integrals of the densities relative to their modes, of shape ``(units,)``.

    The derivatives are in the location and the log of the scale, of shape ``(2, units)``. The mode of the normaliser
    stands still: where it moves with the location, the slope there is 0.
    """

    divergence: Any
    log_normaliser: Any
    by_divergence: Any
    by_normaliser: Any


def find_divergence(law: Law, parameters: Any, priors: LogUniforms) -> Divergence:
    """
    The divergences of all units.

    :param law: of the logarithms.
    :param parameters: location and log of the scale, of shape ``(2, units)``; the results have their precision.
    :param priors: the intervals.
    """
    xp = library(parameters)
    start, length, unit = cast(law.ends[0], parameters), cast(law.length, parameters), cast(law.unit, parameters)
    mode = xp.where(start > 0, start, 0.0)
    # Where the density has fallen far enough: the root of 2 mode t + t² = reach².
    reach = priors.reach * priors.reach / (mode + xp.hypot(mode, priors.reach))
    below = mode - start
    below, above = xp.minimum(below, reach), xp.minimum(length - below, reach)
    width, middle = below + above, 0.5 * (above - below)
    # The density, times -e, and times e² at the nodes, in one block, the units in a row: an operation costs as much as
    # its memory is far.
    block = empty((3, len(priors.nodes), len(width)), parameters)
    density, weighted, squared = block
    t = priors.nodes[:, None] * width
    t += middle
    height = xp.subtract(-2 * mode, t, out=weighted)
    height *= t
    xp.exp(height, out=density)
    xp.multiply(height, height, out=squared)
    squared *= density
    weighted *= density
    # The integrals of each, and of each times the node.
    (mass, node), (height, cross), (square, _) = priors.moments @ block
    height, node = height / mass, node / mass
    log_normaliser = xp.log(mass * width) + (parameters[1] + _LOG_ROOT_2)
    divergence = priors.log_widths - log_normaliser + height
    by_loc = (cross / mass - node * height) * width * 2 / unit
    by_log_scale = -2 * (square / mass - height * height)
    by_normaliser = pair(2 * (width * node + middle) / unit, -2 * height, parameters)
    return Divergence(divergence, log_normaliser, pair(by_loc, by_log_scale, parameters), by_normaliser)
