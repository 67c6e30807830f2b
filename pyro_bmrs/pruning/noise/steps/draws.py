# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Draws of truncated log-normals, of which training needs many at a time, and how a loss changes with their parameters.

With z, :math:`a` and :math:`L` as in :mod:`~pyro_bmrs.pruning.noise.steps.law` and s the probability beyond z, a draw
solves :math:`\mathrm{erf}(z) = \mathrm{erf}(a + L) - s\,(\mathrm{erf}(a + L) - \mathrm{erf}(a))`. That is inverted in
double precision as it stands, as long as the interval begins before the tail of the normal, three scales from the
location. Beyond, :math:`\mathrm{erf}` is all but 1, and the upper tail is inverted, which does not cancel; beyond 30
scales, where the hazard is linear to rounding, by a quadratic.

The derivatives are those of the implicit function (M. Figurnov, S. Mohamed and A. Mnih (2018), *Implicit
reparameterization gradients*, https://arxiv.org/abs/1805.08498). With f the density, the logarithm x moves by

.. math:: \frac{dx}{d\,\mathrm{loc}} = 1 - n - p, \qquad \frac{dx}{d \log\sigma} = \sqrt2\,\sigma\,(z - a n -
   (a + L) p), \qquad n = s\,\frac{f(a)}{f(z)}, \quad p = (1 - s)\,\frac{f(a + L)}{f(z)}.

What is of the unit alone stands outside the sum over draws: of a draw no more is kept than z, s and 1 / f(z). Where the
interval begins in the tail, z is counted from there.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bmrs.pruning.noise.steps.arrays import cast, empty, exponentiate, library, overwrite, pair, special
from pyro_bmrs.pruning.noise.steps.law import Law, LogUniforms

_ROOT_2, _ROOT_HALF = math.sqrt(2.0), math.sqrt(0.5)
# A probability of 0 stands for what rounds to it, in numbers of so many bytes.
_LEAST = {2: 2.0**-13, 4: 2.0**-25, 8: 2.0**-54}
# From so many scales beyond the location on, an interval is in the tail.
_TAIL = 3.0
# From here on the hazard of the normal is linear, as far as a quantile is concerned.
_FAR = 30.0
# So near to 1 are error functions, by rounding.
_LAST = 1 - 2.0**-52
# On intervals of fewer scales, as in the tail, derivatives are small differences, and taken in double precision.
_SHORT = 1.0
# So many draws are computed at a time that what is computed of them stays in the cache.
_NUM_TOGETHER = 8192


class Draws(NamedTuple):
    """Draws, and what their derivatives are made of; all but the last of shape ``(draws, units)``."""

    values: Any  # in the precision of the parameters
    beyond: Any  # s
    places: Any  # z, from the reference on
    rises: Any  # 1 / f(z), of a density that is 1 at the reference
    reference: Any  # where z is counted from: 0, or the start of an interval that lies in the tail


def draw(uniform: Any, law: Law, parameters: Any, priors: LogUniforms) -> Draws:
    """
    Quantiles.

    :param uniform: probabilities in [0, 1) as generators give them, which 1 less is exact; shape ``(draws, units)``.
    :param law: of the logarithms.
    :param parameters: whose precision the draws have.
    :param priors: the intervals.
    """
    xp, (num_draws, num_units) = library(uniform), uniform.shape
    inversion = _inversion(xp, law, priors)
    rows = max(num_draws if xp is torch else _NUM_TOGETHER // max(num_units, 1), 1)
    # Of few draws it costs less to leave them as they are.
    is_double = num_draws <= rows or inversion.has_tail or law.length.min() < _SHORT * _ROOT_HALF
    like = law.unit if is_double else parameters
    values, beyond, places, rises = (empty(uniform.shape, part) for part in (parameters, uniform, like, like))
    draws = Draws(values, beyond, places, rises, inversion.reference)
    is_lower, least = cast(law.is_lower, uniform), empty((1,), uniform)
    least[0] = _LEAST[uniform.dtype.itemsize]
    for row in range(0, num_draws, rows):
        part = draws if num_draws <= rows else _rows(draws, slice(row, row + rows))
        xp.subtract(uniform[row : row + rows], is_lower, out=part.beyond)
        xp.abs(part.beyond, out=part.beyond)
        xp.maximum(part.beyond, least, out=part.beyond)
        if is_double:
            _fill(xp, part, law, priors, inversion)
        else:
            work = part._replace(places=empty(part.places.shape, law.unit), rises=empty(part.rises.shape, law.unit))
            _fill(xp, work, law, priors, inversion)
            part.places[...], part.rises[...] = work.places, work.rises
    return draws


class _Inversion(NamedTuple):
    """How quantiles of all units are found."""

    has_tail: bool  # whether any interval is in the tail
    reference: Any
    origin: Any  # the logarithm at the reference
    first: Any  # the function that is inverted, at the start: erf, or half of erfc where there is a tail
    last: Any  # and at the end


def _inversion(xp: Any, law: Law, priors: LogUniforms) -> _Inversion:
    start, loc = law.ends[0], law.loc
    is_in_tail = start > _TAIL * _ROOT_HALF
    # Not so near to where the inverses are infinite.
    if not is_in_tail.any():
        return _Inversion(False, 0.0, loc, *(special(torch.erf, law.ends) * _LAST))
    low, high = priors.log_ends
    reference = xp.where(is_in_tail, start, 0.0)
    origin = xp.where(is_in_tail, xp.where(law.is_lower, low, high), loc)
    return _Inversion(True, reference, origin, *(special(torch.special.erfc, law.ends) * (0.5 * _LAST)))


def _fill(xp: Any, draws: Draws, law: Law, priors: LogUniforms, inversion: _Inversion) -> None:
    """Finds all of draws by the probabilities beyond them."""
    place = xp.multiply(draws.beyond, inversion.first - inversion.last, out=draws.places)
    place += inversion.last
    if inversion.has_tail:
        _invert_tails(xp, place, draws, law)
    else:
        overwrite(place, _inverse_erf)
    log = xp.multiply(place, law.unit, out=draws.rises)
    log += inversion.origin
    xp.maximum(log, priors.inside[0], out=log)
    xp.minimum(log, priors.inside[1], out=log)
    exponentiate(log)
    draws.values[...] = log
    rise = xp.multiply(place, place, out=draws.rises)
    if inversion.has_tail:
        rise += 2 * inversion.reference * place
    exponentiate(rise)


def _rows(draws: Draws, rows: slice) -> Draws:
    values, beyond, places, rises, reference = draws
    return Draws(values[rows], beyond[rows], places[rows], rises[rows], reference)


def _inverse_erf(values: Tensor, out: Tensor) -> Tensor:
    # Without MKL, torch's own takes a Newton step by two more special functions, and ndtri none.
    if values.device.type != "cpu" or torch.backends.mkl.is_available():
        return torch.erfinv(values, out=out)
    torch.special.ndtri(torch.add(values, 1, out=out).mul_(0.5), out=out)
    return out.mul_(_ROOT_HALF)


def _invert_tails(xp: Any, tails: Any, draws: Draws, law: Law) -> None:
    """Puts places from the reference on in the place of the probabilities beyond them in the whole normal."""
    overwrite(tails, torch.special.ndtri)
    tails *= -_ROOT_HALF
    tails -= draws.reference
    is_far = law.ends[0] > _FAR * _ROOT_HALF
    if is_far.any():
        # Of the others anything that is finite.
        start = xp.where(is_far, law.ends[0] * _ROOT_2, _FAR)
        tails[...] = xp.where(is_far, _far_quantile(xp, draws.beyond, start, law.length * _ROOT_2) * _ROOT_HALF, tails)


def _far_quantile(xp: Any, beyond: Any, start: Any, length: Any) -> Any:
    """How many scales quantiles are from the start, in normals of which nothing but the upper tail is inside."""
    first, last = (special(torch.special.erfcx, _ROOT_HALF * place) for place in (start, start + length))
    depth = -xp.log(beyond + (1 - beyond) * (xp.exp(-length * (start + 0.5 * length)) * last / first))
    # The hazard less the start, which as a difference would cancel.
    inverse = 1 / start
    gap = inverse * (1 - inverse * inverse * (2 - 10 * inverse * inverse))
    hazard = start + gap
    return 2 * depth / (hazard + xp.sqrt(hazard * hazard + 2 * depth * hazard * gap))


def gradient(draws: Draws, law: Law, weights: Any, parameters: Any) -> Any:
    """
    The gradient of a weighted sum of draws in the parameters.

    :param draws: the draws.
    :param law: what they were drawn from.
    :param weights: of their shape, or of one that broadcasts to it.
    :param parameters: whose precision it has.
    :return: shape ``(2, units)``.
    """
    xp, is_one = library(draws.values), len(draws.values) == 1
    # Of the logarithms.
    weights = weights * cast(draws.values, draws.rises)
    risen = weights * draws.rises
    parts = weights, weights * draws.places, risen, risen * draws.beyond
    total, along, both, near = (part[0] if is_one else part.sum(0) for part in parts)
    before, after = from_ends = law.ends - draws.reference
    falls = xp.exp(-from_ends * (law.ends + draws.reference))
    near, far = falls[0] * near, falls[1] * (both - near)
    by_loc = total - near - far
    return pair(by_loc, law.unit * (along + draws.reference * by_loc - before * near - after * far), parameters)
