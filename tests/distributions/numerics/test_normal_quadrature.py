# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
import torch

from pyro_bmrs.distributions.numerics.normal_quadrature import gauss_legendre, quadrature_moments


@pytest.mark.parametrize("number", [1, 2, 7, 40])
def test_gauss_legendre_is_exact_for_polynomials(number: int) -> None:
    nodes, weights = gauss_legendre(number)
    for degree in range(2 * number):
        total = math.fsum(weight * node**degree for node, weight in zip(nodes, weights))
        assert total == pytest.approx(1 / (degree + 1), rel=1e-14)


def test_nodes_and_weights_are_those_of_numpy_to_its_accuracy() -> None:
    points, weights = np.polynomial.legendre.leggauss(40)
    own_nodes, own_weights = gauss_legendre(40)
    np.testing.assert_allclose(sorted(own_nodes), 0.5 * (1 + points), rtol=1e-12)
    np.testing.assert_allclose(sorted(own_weights), sorted(0.5 * weights), rtol=1e-11)


# Slope, precision, and distances to both ends from the mode, where the density is highest on the interval.
DENSITIES = {
    "interior": (0.0, 1.0, 0.3, 0.2),
    "flat": (0.0, 0.0, 1.0, 2.0),
    "at the low end": (3.0, 2.0, 0.0, 0.4),
    "at the high end": (-3.0, 2.0, 0.4, 0.0),
    "exponential": (5.0, 0.0, 0.0, 30.0),
    "steep": (1e6, 1.0, 0.0, 1.0),
    "opening downwards": (1.0, -2.0, 0.0, 0.8),
    "two modes": (4.0, -9.0, 0.0, 0.88),
    "tiny": (0.0, 1.0, 1e-12, 1e-12),
}


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_integrals_of_powers_agree_with_mpmath(density) -> None:
    slope, precision, left, right = map(mp.mpf, density)
    with mp.workdps(90):
        steps = [0.0] if not slope else [k / abs(slope) for k in (1, 3, 10, 30, 100)]
        breaks = sorted({-left, mp.mpf(0), right, *(x for s in steps for x in (s, -s) if -left < x < right)})
        exact = [
            mp.quad(lambda t: t**k * mp.exp(-slope * t - precision * t * t / 2), breaks)  # noqa: B023
            for k in range(5)
        ]
    unit, integrals = quadrature_moments(*(torch.tensor([x], dtype=torch.float64) for x in density), 4)
    scale = unit.item()
    highest = float(exact[0])
    for k in range(5):
        value = integrals[k].item() * scale ** (k + 1)
        # An odd power about an interior mode may cancel: then the error is one of the mass times the unit.
        assert value == pytest.approx(float(exact[k]), rel=1e-12, abs=1e-14 * highest * scale**k)
