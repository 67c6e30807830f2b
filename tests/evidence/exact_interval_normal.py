# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Normals on intervals in mpmath: densities written as in a textbook, and E_q[r/p] by numerical integration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from random import Random

import mpmath
from mpmath import mp, mpf

DIGITS = 25
INF = math.inf

Parameters = tuple[float, ...]


def interval(name: str, parameters: Parameters) -> tuple[float, float, float, float]:
    """loc, scale (inf for a uniform), low, high."""
    if name == "Normal":
        return (*parameters, -INF, INF)
    if name == "HalfNormal":
        return (0.0, *parameters, 0.0, INF)
    if name == "Uniform":
        return (0.0, INF, *parameters)
    return parameters  # TruncatedNormal


def log_density(loc: float, scale: float, low: float, high: float) -> Callable[[mpf], mpf]:
    """Inside the interval; exact in 25 digits also where the location lies far outside."""
    if math.isinf(scale):
        constant = -mpmath.log(mpf(high) - mpf(low))
        return lambda x: constant
    loc, scale = mpf(loc), mpf(scale)
    a, b = ((mpf(end) - loc) / (scale * mpmath.sqrt(2)) for end in (low, high))
    if a > 0:  # from the side of the smaller tail
        a, b = -b, -a
    with mp.workdps(3 * DIGITS):
        mass = (mpmath.erfc(-b) - mpmath.erfc(-a)) / 2
    constant = -mpmath.log(mass * scale * mpmath.sqrt(2 * mpmath.pi))
    return lambda x: constant - ((x - loc) / scale) ** 2 / 2


def log_mean_ratio(q: tuple, p: tuple, r: tuple) -> mpf:
    """log E_q[r/p] by Gauss-Legendre quadrature on panels that double in width away from the product's lowest point."""
    with mp.workdps(DIGITS):
        log_q, log_p, log_r = (log_density(*member) for member in (q, p, r))

        def log_ratio(x: mpf) -> mpf:
            return log_q(x) + log_r(x) - log_p(x)

        low, high = max(q[2], r[2]), min(q[3], r[3])
        precisions = [0 if math.isinf(m[1]) else 1 / mpf(m[1]) ** 2 for m in (q, r, p)]
        precision = precisions[0] + precisions[1] - precisions[2]
        mean = sum(s * w * mpf(m[0]) for s, w, m in zip((1, 1, -1), precisions, (q, r, p)))
        points = {mpf(end) for end in (low, high) if math.isfinite(end)}
        if precision > 0:
            mean, width = mean / precision, 1 / mpmath.sqrt(precision)
            mode = min(max(mean, mpf(low)), mpf(high))
            # In the tail beyond an end the density falls over a shorter distance than its scale.
            width = min(width, 1 / (precision * abs(mode - mean))) if mode != mean else width
            reach = [width * mpf(2) ** (k / mpf(2)) for k in range(-2, 12)]
            points |= {mode} | {mode + side * step for step in reach for side in (-1, 1)}
        else:
            points |= {
                end + side * (mpf(high) - mpf(low)) / 2**k for k in range(13) for end, side in ((low, 1), (high, -1))
            }
        edges = sorted(point for point in points if low <= point <= high)
        top = max(map(log_ratio, edges))
        nodes = _nodes()
        total = mpmath.fsum(
            (b - a) * mpmath.fsum(w * mpmath.exp(log_ratio(a + (b - a) * x) - top) for x, w in nodes)
            for a, b in zip(edges, edges[1:])
            if max(log_ratio(a), log_ratio(b)) - top > -40
        )
        return mpmath.log(total) + top


_NODES: list[tuple[mpf, mpf]] = []


def _nodes() -> Sequence[tuple[mpf, mpf]]:
    """Of the Gauss-Legendre rule of order 16 on [0, 1]."""
    if not _NODES:
        n = 16
        for root in mpmath.polyroots(
            mpmath.taylor(lambda x: mpmath.legendre(n, x), 0, n)[::-1], maxsteps=500, extraprec=200
        ):
            slope = n * (mpmath.legendre(n - 1, root) - root * mpmath.legendre(n, root)) / (1 - root**2)
            _NODES.append(((1 + root) / 2, 1 / ((1 - root**2) * slope**2)))
    return _NODES


NAMES = ("Normal", "HalfNormal", "TruncatedNormal", "Uniform")
_INSIDE = {
    "Normal": NAMES,
    "HalfNormal": ("HalfNormal", "TruncatedNormal", "Uniform"),
    "TruncatedNormal": ("TruncatedNormal", "Uniform"),
    "Uniform": ("TruncatedNormal", "Uniform"),
}
# Every mixture of posterior, prior and reduced prior in which the reduced prior's support lies within the prior's.
MIXTURES = [(q, p, r) for q, p in product(NAMES, repeat=2) for r in _INSIDE[p]]


def draw(
    names: tuple[str, str, str], random: Random, scales: tuple[float, float] = (0.1, 5.0)
) -> tuple[Parameters, Parameters, Parameters]:
    """Random parameters of posterior, prior and reduced prior with a finite log evidence."""

    def draw_one(name: str, low: float, high: float) -> Parameters:
        loc, scale = random.uniform(-4, 4), math.exp(random.uniform(*map(math.log, scales)))
        ends = sorted(random.uniform(low, high) for _ in range(2))
        return {"Normal": (loc, scale), "HalfNormal": (scale,), "Uniform": (*ends,)}.get(name, (loc, scale, *ends))

    while True:
        p = draw_one(names[1], -3.0, 3.0)
        low, high = interval(names[1], p)[2:]
        r = draw_one(names[2], max(low, -3.0), min(high, 3.0))
        q = draw_one(names[0], -3.0, 3.0)
        members = [interval(name, parameters) for name, parameters in zip(names, (q, p, r))]
        start, stop = max(members[0][2], members[2][2]), min(members[0][3], members[2][3])
        precision = sum(sign / member[1] ** 2 for sign, member in zip((1, -1, 1), members))
        bounded = math.isfinite(start) and math.isfinite(stop)
        if stop - start > 0.05 and (bounded or precision > 0.05):
            return q, p, r
