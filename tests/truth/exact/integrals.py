# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The logarithm of an integral over a few real coordinates, by two ways that share nothing but the integrand.

``lattice`` sums over a regular lattice in coordinates that make the integrand's moments those of a standard normal. For
a smooth integrand that falls off on all sides, the error of such a sum falls faster than any power of the step (L. N.
Trefethen and J. A. C. Weideman 2014, The exponentially convergent trapezoidal rule, SIAM Review 56, 385-458).

``sampled`` weights points of scrambled Sobol sequences, moved to a Student t distribution, by integrand over density.
Its error is read off independent scramblings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Array = NDArray[np.float64]
LogDensity = Callable[[Array], Array]

CHUNK = 20_000
DEGREES_OF_FREEDOM = 5.0
# Of the proposal's scale: in few dimensions it costs little to look far out, where a second mode may be.
INFLATION = {1: 1.6, 2: 1.6, 3: 1.6, 4: 1.6}


@dataclass(frozen=True)
class Integral:
    """:param value: in nats. :param error: a bound that the two ways, or independent runs, give."""

    value: float
    error: float
    how: str


def integral(log_density: LogDensity, start: Array, *, by_lattice: bool = True) -> Integral:
    """
    :param log_density: of points of shape (n, dim); of shape (n,).
    :param start: shape (dim,), where the search for the mode begins.
    :param by_lattice: whether a lattice is affordable; otherwise only the sampled estimate is had.
    """
    if len(start) == 0:
        return Integral(float(log_density(np.zeros((1, 0)))[0]), 1e-10, "closed form")
    chunked = in_chunks(log_density)
    loc, root = moments(chunked, start)
    estimate, error = sampled(chunked, loc, INFLATION.get(len(start), 1.0) * root)
    if not by_lattice:
        return Integral(estimate, error, f"quasi-Monte Carlo in {len(start)} dimensions")
    coarse, fine = (lattice(chunked, loc, root, step) for step in STEPS[len(start)])
    if abs(fine - estimate) > 4 * error + 5e-3:
        raise ArithmeticError(f"a lattice gives {fine}, and quasi-Monte Carlo {estimate} with error {error}")
    how = f"lattice in {len(start)} dimensions; quasi-Monte Carlo differs by {abs(fine - estimate):.0e}"
    return Integral(fine, max(abs(fine - coarse), 1e-8), how)


# Coarse and fine steps for each number of dimensions.
STEPS = {1: (0.1, 0.05), 2: (0.25, 0.15), 3: (0.6, 0.45), 4: (0.75, 0.55), 5: (1.0, 0.85)}
# How far below the top the integrand is at the lattice's sides.
DEPTH = {1: 30.0, 2: 30.0, 3: 28.0, 4: 18.0, 5: 13.0}


def in_chunks(log_density: LogDensity) -> LogDensity:
    def chunked(points: Array) -> Array:
        with np.errstate(all="ignore"):
            parts = [log_density(points[i : i + CHUNK]) for i in range(0, len(points), CHUNK)]
        return np.where(np.isnan(values := np.concatenate(parts)), -np.inf, values)

    return chunked


def moments(log_density: LogDensity, start: Array) -> tuple[Array, Array]:
    """Mean, and the root of the covariance: first those of the mode, then those of weighted points."""
    loc, root = mode(log_density, start)
    for seed in range(6):
        points, log_weights = weighted(log_density, loc, root, seed, 12)
        weights = special.softmax(log_weights)
        # Weights that few points share are tempered, so that the moments do not collapse.
        while 1 / np.sum(weights**2) < 50 * len(start):
            log_weights = log_weights / 2
            weights = special.softmax(log_weights)
        loc = weights @ points
        centred = points - loc
        root = np.linalg.cholesky((centred * weights[:, None]).T @ centred)
    return loc, root


def mode(log_density: LogDensity, start: Array) -> tuple[Array, Array]:
    def loss(x: Array) -> float:
        return float(np.nan_to_num(-log_density(x[None])[0], nan=1e10, posinf=1e10))

    found = optimize.minimize(
        loss, start, method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-6, "adaptive": True}
    )
    found = optimize.minimize(loss, found.x, method="BFGS")
    dim, step = len(start), 1e-3
    hessian = np.empty((dim, dim))
    for i, j in product(range(dim), repeat=2):
        corners = [
            loss(found.x + step * (s * np.eye(dim)[i] + t * np.eye(dim)[j])) for s, t in product((1, -1), repeat=2)
        ]
        hessian[i, j] = (corners[0] - corners[1] - corners[2] + corners[3]) / (4 * step**2)
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    covariance = (vectors / np.maximum(values, 1e-2)) @ vectors.T
    return found.x, np.linalg.cholesky(covariance)


def weighted(log_density: LogDensity, loc: Array, root: Array, seed: int, power: int) -> tuple[Array, Array]:
    """Points of a Student t distribution, and integrand over density."""
    dim, df = len(loc), DEGREES_OF_FREEDOM
    uniform = stats.qmc.Sobol(dim + 1, seed=seed).random_base2(power).clip(1e-12, 1 - 1e-12)
    scale = np.sqrt(df / stats.chi2.ppf(uniform[:, -1:], df))
    standard = special.ndtri(uniform[:, :-1]) * scale
    log_norm = special.gammaln((df + dim) / 2) - special.gammaln(df / 2) - dim / 2 * np.log(df * np.pi)
    log_proposal = log_norm - (df + dim) / 2 * np.log1p(np.sum(standard**2, 1) / df) - np.log(np.diag(root)).sum()
    points = loc + standard @ root.T
    return points, log_density(points) - log_proposal


def sampled(log_density: LogDensity, loc: Array, root: Array) -> tuple[float, float]:
    """Estimate and standard error of eight scramblings, each of 2^13 points."""
    power, runs = 13, 8
    log_weights = [weighted(log_density, loc, root, 100 + seed, power)[1] for seed in range(runs)]
    each = special.logsumexp(np.array(log_weights), axis=1) - power * np.log(2)
    return float(special.logsumexp(each) - np.log(runs)), float(np.std(each, ddof=1) / np.sqrt(runs))


def lattice(log_density: LogDensity, loc: Array, root: Array, step: float) -> float:
    """The sum over a box whose sides are moved out until the integrand is low on each."""
    dim = len(loc)
    low, high = np.full(dim, -5.0), np.full(dim, 5.0)

    def at(standard: Array) -> Array:
        return log_density(loc + standard @ root.T)

    top = at(np.zeros((1, dim))).max()
    for axis, side in product(range(dim), (0, 1)):
        while True:
            grids = [np.arange(a, b + 1e-9, 1.0) for a, b in zip(low, high)]
            grids[axis] = np.array([(low, high)[side][axis]])
            values = at(np.stack(np.meshgrid(*grids, indexing="ij"), -1).reshape(-1, dim))
            top = max(top, values.max())
            if values.max() < top - DEPTH[dim]:
                break
            if abs((low, high)[side][axis]) > 500:
                raise ArithmeticError("the integrand does not fall off")
            (low, high)[side][axis] += 2 * side - 1
    grids = [np.arange(a, b + step, step) for a, b in zip(low, high)]
    total = -np.inf
    # One slice of the first axis after another, for the memory's sake.
    for first in grids[0]:
        points = np.stack(np.meshgrid(np.array([first]), *grids[1:], indexing="ij"), -1).reshape(-1, dim)
        total = np.logaddexp(total, special.logsumexp(at(points)))
    return float(total + dim * np.log(step) + np.log(np.diag(root)).sum())
