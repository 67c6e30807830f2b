# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The likelihoods of the published models, with all integrated that can be in closed form, or one by one.

Each function takes the values of the remaining parameters, of shape (n,), and gives log likelihoods of that shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.float64]


def linear(x: Array, y: Array, loc: Array, scale: Array, sigma: Array) -> Array:
    """
    Normal regression with normal priors on all coefficients, integrated over these.

    :param x: shape (rows, coefficients), or with a leading dimension n.
    :param scale: prior scales; 0 for a coefficient that is fixed at ``loc``.
    """
    rows, count = x.shape[-2:]
    scaled = x * scale
    rest = y - x @ loc
    gram = np.swapaxes(scaled, -1, -2) @ scaled / (sigma**2)[:, None, None]
    cross = (np.swapaxes(scaled, -1, -2) @ rest[..., None])[..., 0] / sigma[:, None]
    matrix = np.eye(count) + gram
    solved = np.linalg.solve(matrix, cross[..., None])[..., 0]
    squares = (np.sum(rest**2, -1) - np.sum(cross * solved, -1)) / sigma**2
    log_det = 2 * rows * np.log(sigma) + np.linalg.slogdet(matrix)[1]
    return -0.5 * (rows * np.log(2 * np.pi) + log_det + squares)


def normal_group(y: Array, variance: Array, loc: float, scale: float) -> Array:
    """
    y ~ Normal(mu, variance) with mu ~ Normal(loc, scale), integrated over mu.

    :param y: shape (members,).
    :param variance: shape (n, members).
    """
    rest = y - loc
    precision = 1 / variance
    total = precision.sum(1)
    cross = precision @ rest
    shrunk = scale**2 * cross**2 / (1 + scale**2 * total)
    log_det = np.log(variance).sum(1) + np.log1p(scale**2 * total)
    return -0.5 * (len(y) * np.log(2 * np.pi) + log_det + precision @ rest**2 - shrunk)


def poisson_gamma(count: Array, time: Array, alpha: Array, beta: Array) -> Array:
    """Poisson counts over times, with rates of a gamma distribution, integrated over these."""
    a, b = alpha[:, None], beta[:, None]
    log_ratio = special.gammaln(a + count) - special.gammaln(a) - special.gammaln(count + 1)
    return np.sum(log_ratio + a * np.log(b) + count * np.log(time) - (a + count) * np.log(b + time), 1)


def binomial(count: Array, size: Array, eta: Array) -> Array:
    """Elementwise, without its factorials."""
    return count * eta - size * np.logaddexp(0, eta)


def poisson(count: Array, eta: Array) -> Array:
    """Elementwise, without its factorials."""
    return count * eta - np.exp(eta)


def binomial_factorials(count: Array, size: Array) -> float:
    return float(np.sum(special.gammaln(size + 1) - special.gammaln(count + 1) - special.gammaln(size - count + 1)))


def with_effects(count: Array, size: Array | None, eta: Array, sigma: Array) -> Array:
    """
    Counts with a normal effect of their own, each integrated over a lattice about its mode.

    :param count: shape (groups,).
    :param size: binomial sizes; None for Poisson counts.
    :param eta: linear predictor without the effects, shape (n, groups).
    :param sigma: scale of the effects, shape (n,).
    """
    variance = np.broadcast_to((sigma**2)[:, None], eta.shape)
    effect = np.zeros_like(eta)
    for _ in range(60):
        slope, curvature = derivatives(count, size, eta + effect)
        step = (slope - effect / variance) / (curvature + 1 / variance)
        effect = effect + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-8:
            break
    width = 1 / np.sqrt(derivatives(count, size, eta + effect)[1] + 1 / variance)
    total = np.full_like(eta, -np.inf)
    spacing = 0.5
    for node in np.arange(-10, 10 + spacing, spacing):
        at = effect + node * width
        kernel = poisson(count, eta + at) if size is None else binomial(count, size, eta + at)
        total = np.logaddexp(total, kernel - at**2 / (2 * variance))
    per_group = total + np.log(spacing * width) - 0.5 * np.log(2 * np.pi * variance)
    factorials = -special.gammaln(count + 1).sum() if size is None else binomial_factorials(count, size)
    return per_group.sum(1) + factorials


def derivatives(count: Array, size: Array | None, eta: Array) -> tuple[Array, Array]:
    """Slope and negative curvature of the log likelihood in the linear predictor."""
    if size is None:
        mean = np.exp(np.minimum(eta, 50.0))
        return count - mean, mean
    p = special.expit(eta)
    return count - size * p, size * p * (1 - p)


def predictor(x: Array, values: Sequence[Array]) -> Array:
    """Shape (n, rows), of columns (rows, coefficients) and coefficients of shape (n,) each."""
    return np.stack([np.broadcast_to(value, np.shape(values[0])) for value in values], -1) @ x.T


def student(y: Array, mean: Array, scale: Array, df: float) -> Array:
    return stats.t.logpdf((y - mean) / scale[:, None], df).sum(1) - len(y) * np.log(scale)


def two_normals(y: Array, share: Array, low: Array, gap: Array, sigma: Array) -> Array:
    z = (y - low[:, None]) / sigma[:, None]
    shifted = z - (gap / sigma)[:, None]
    first, second = np.log(share)[:, None] - z**2 / 2, np.log1p(-share)[:, None] - shifted**2 / 2
    return np.sum(np.logaddexp(first, second), 1) - len(y) * (np.log(sigma) + 0.5 * np.log(2 * np.pi))


def weibull(time: Array, seen: Array, location: Array, shape: Array) -> Array:
    """Times, some of which (``seen`` is 0) are known to be later only; ``location`` of shape (n, rows)."""
    ratio = np.log(time) - location
    hazard = np.log(shape)[:, None] - np.log(time) + shape[:, None] * ratio
    return np.sum(seen * hazard - np.exp(shape[:, None] * ratio), 1)
