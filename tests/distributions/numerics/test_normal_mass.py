# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from random import Random

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pyro_bmrs.distributions.numerics.normal_mass import (
    about_mode,
    energy,
    log_fractions,
    log_mass,
    mean_and_variance,
    moments,
)
from pyro_bmrs.distributions.numerics.normal_quadrature import gauss_legendre

INF = math.inf
Shape = tuple[float, float, float, float]  # slope, precision, left, right


def exact_integrals(slope: float, precision: float, start: float, stop: float, order: int = 0) -> list[mpf]:
    """Integrals of t^k exp(-slope t - precision t²/2) from start to stop, k = 0 .. order, in mpmath."""
    if start == stop:
        return [mpf(0)] * (order + 1)
    with mp.workdps(30):
        slope, precision, start, stop = map(mpf, (slope, precision, start, stop))
        # From the mode and from both ends, in steps that grow from a fraction of the shortest distance of change.
        steepest = mpmath.sqrt(abs(precision)) + 1 / (stop - start)
        steepest += max(abs(slope + precision * t) for t in (mpf(0), start, stop) if mpmath.isfinite(t))
        steps = [mpf(0)] + [mpf(2) ** (k / mpf(2)) / steepest for k in range(-6, 80)]
        points = {at + side * step for at in (start, mpf(0), stop) for step in steps for side in (-1, 1)}
        edges = sorted(t for t in points if mpmath.isfinite(t) and start <= t <= stop)

        def exponent(t: mpf) -> mpf:
            return -slope * t - precision * t * t / 2

        top = max(map(exponent, edges))
        totals = [mpf(0)] * (order + 1)
        for a, b in zip(edges, edges[1:]):
            if max(exponent(a), exponent(b)) < top - 90:
                continue
            for x, weight in _rule():
                t = a + (b - a) * x
                density = (b - a) * weight * mpmath.exp(exponent(t))
                totals = [total + density * t**k for k, total in enumerate(totals)]
        return totals


_RULE: list[tuple[mpf, mpf]] = []


def _rule() -> list[tuple[mpf, mpf]]:
    """The Gauss-Legendre rule of 14 nodes on [0, 1]."""
    if not _RULE:
        n = 14
        with mp.workdps(40):
            for start in gauss_legendre(n)[0]:
                root = mpmath.findroot(lambda z: mpmath.legendre(n, z), 1 - 2 * mpf(start))
                slope = n * (mpmath.legendre(n - 1, root) - root * mpmath.legendre(n, root)) / (1 - root**2)
                _RULE.append(((1 - root) / 2, 1 / ((1 - root**2) * slope**2)))
    return _RULE


def _log_uniform(random: Random, low: float, high: float) -> float:
    return 10 ** random.uniform(low, high)


def _draw(regime: str, random: Random) -> Shape:
    """A density seen from its mode; ends of the scale of ``length``."""
    length = _log_uniform(random, -6, 6)
    slope, left, right = _log_uniform(random, -6, 9) / length, 0.0, length
    precision = _log_uniform(random, -6, 12) / length**2
    if regime == "interior":
        slope, left = 0.0, length * _log_uniform(random, -6, 6)
    elif regime == "tail":
        slope = math.sqrt(precision) * _log_uniform(random, 0, 9)
    elif regime == "half-line":
        right = INF
    elif regime == "line":
        slope, left, right = 0.0, INF, INF
    elif regime == "narrow":
        slope, precision = slope * 1e-9, _log_uniform(random, -9, 0) / length**2
    elif regime == "uniform":
        slope, precision, left = 0.0, 0.0, length * random.uniform(0, 2)
    elif regime == "exponential":
        precision = 0.0
    elif regime == "falling":  # all the way to the far end
        slope = _log_uniform(random, -3, 3) / length
        precision = -slope / length * random.uniform(0, 1)
    elif regime == "two modes":  # falling again towards the far end
        slope = _log_uniform(random, -3, 2.5) / length
        precision = -slope / length * random.uniform(1, 2)
    return (slope, precision, left, right) if random.random() < 0.5 else (-slope, precision, right, left)


REGIMES = [
    "interior", "tail", "half-line", "line", "narrow", "uniform", "exponential", "falling", "two modes", "edge"
]  # fmt: skip


def tensors(*values: float, dtype: torch.dtype = torch.float64, requires_grad: bool = False) -> list[Tensor]:
    return [torch.tensor(value, dtype=dtype, requires_grad=requires_grad) for value in values]


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.no_cover
def test_mass_and_moments_equal_their_integrals(regime: str) -> None:
    random = Random(regime)
    shapes = [_draw(regime, random) for _ in range(20)]
    arguments = [torch.tensor(column, dtype=torch.float64) for column in zip(*shapes)]
    values = log_mass(*arguments).tolist()
    powers = [moment.tolist() for moment in moments(*arguments, order=4)]
    means, variances = (moment.tolist() for moment in mean_and_variance(*arguments))
    for i, shape in enumerate(shapes):
        mass, *integrals = exact_integrals(shape[0], shape[1], -shape[2], shape[3], order=4)
        expected = mpmath.log(mass)
        assert abs(values[i] - expected) <= 1e-14 * max(1, abs(expected)), shape
        exact = [integral / mass for integral in integrals]
        for k, moment in enumerate(exact):
            # An odd moment may be a difference of equal halves: then it is exact relative to its size on one side.
            size = mpmath.sqrt(exact[1]) ** (k + 1) if shape[2] and shape[3] else moment
            assert abs(powers[k][i] - moment) <= 4e-14 * abs(size), (k, shape)
        variance = exact[1] - exact[0] ** 2
        assert abs(means[i] - exact[0]) <= 1e-14 * mpmath.sqrt(exact[1]), shape
        assert abs(variances[i] - variance) <= 1e-13 * variance, shape


@pytest.mark.parametrize("distance", [1e2, 1e4, 4e7, 1e9, 1e12])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tail_is_exponential_many_scales_out(distance: float, scale: float, dtype: torch.dtype) -> None:
    # Mills' ratio: with a = slope / sqrt(precision), mass 1/slope (1 - 1/a²), mean 1/slope (1 - 2/a²), and so on.
    slope = distance / scale
    arguments = tensors(slope, scale**-2, 0.0, INF, dtype=dtype)
    tolerance = 5 * distance**-4 + 8 * torch.finfo(dtype).eps
    mean, variance = mean_and_variance(*arguments)
    assert log_mass(*arguments).item() == pytest.approx(math.log1p(-(distance**-2)) - math.log(slope), rel=tolerance)
    assert mean.item() * slope == pytest.approx(1 - 2 / distance**2, rel=4 * tolerance)
    assert variance.item() * slope**2 == pytest.approx(1 - 6 / distance**2, rel=10 * tolerance)


@pytest.mark.parametrize("width", [1e-12, 1e-6, 1e-2])
@pytest.mark.parametrize("precision", [1.0, 0.0, -1.0])
def test_narrow_interval_is_uniform(width: float, precision: float) -> None:
    mean, variance = mean_and_variance(*tensors(1e-3, precision, 0.0, width))
    tolerance = 1e-14 + 2 * width * (1e-3 + width)
    assert log_mass(*tensors(1e-3, precision, 0.0, width)).item() == pytest.approx(math.log(width), rel=tolerance)
    assert mean.item() == pytest.approx(width / 2, rel=tolerance)
    assert variance.item() == pytest.approx(width**2 / 12, rel=tolerance)


EXPONENTS = st.floats(-6, 6)


@given(EXPONENTS, st.floats(-12, 12), EXPONENTS, EXPONENTS, st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=300, deadline=None)
def test_mass_is_finite_symmetric_and_scales(slope: float, precision: float, right: float, unit: float, dtype) -> None:
    shape = [torch.tensor(10.0, dtype=dtype) ** exponent for exponent in (slope, precision, right)]
    shape.insert(2, torch.zeros((), dtype=dtype))
    value = log_mass(*shape)
    assert value.isfinite()
    assert log_mass(-shape[0], shape[1], shape[3], shape[2]) == value
    u = torch.tensor(10.0, dtype=dtype) ** unit
    scaled = log_mass(shape[0] / u, shape[1] / u**2, shape[2], shape[3] * u)
    torch.testing.assert_close(scaled, value + u.log(), rtol=0, atol=64 * torch.finfo(dtype).eps)


# Location, scale, low and high; every way of computing the mass is among them.
PARAMETERS = [
    (0.3, 1.0, -1.0, 2.0),  # the mode interior
    (5.0, 1.0, -1.0, 2.0),  # beyond the high end
    (-40.0, 0.7, -1.0, 2.0),  # far beyond the low end
    (0.2, 30.0, -1.0, 2.0),  # narrow
    (9.0, 30.0, -1.0, 2.0),  # narrow, beyond the high end
    (0.0, 0.1, -1.0, 2.0),  # both ends out of reach
    (-1.0, 0.5, -1.0, 2.0),  # exactly at the low end
]
# The same for slope, precision, left and right, with precisions that a normal cannot have.
SHAPES = [
    (3.0, 0.0, 0.0, 1.5),
    (3.0, -1.5, 0.0, 1.5),
    (3.0, -2.9, 0.0, 1.5),
    (-3.0, -2.9, 1.5, 0.0),
    (-20.0, 1.0, 3.0, 0.0),
]


def columns(rows: list[Shape]) -> list[Tensor]:
    return [torch.tensor(column, dtype=torch.float64, requires_grad=True) for column in zip(*rows)]


def log_normaliser(loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Of exp(-(x - loc)² / (2 scale²)); unlike the mass alone, smooth in its parameters wherever the mode goes."""
    mode, *shape = about_mode(loc, scale**-2, low, high)
    return log_mass(*shape) - energy(mode - loc, torch.zeros_like(loc), shape[1])


def absolute_moments(loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    mode, *shape = about_mode(loc, scale**-2, low, high)
    mean, variance = mean_and_variance(*shape)
    return mode + mean, variance


def one_sided(slope: Tensor, precision: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The mass of a density whose mode is an end: the other distance is 0, not a parameter."""
    zero = torch.zeros_like(left)
    return log_mass(slope, precision, torch.where(slope > 0, zero, left), torch.where(slope < 0, zero, right))


@pytest.mark.parametrize("function", [log_normaliser, absolute_moments])
def test_derivatives_in_location_scale_and_ends(function) -> None:
    assert gradcheck(function, columns(PARAMETERS))
    assert gradgradcheck(function, columns(PARAMETERS))


def test_derivatives_with_precisions_that_are_not_positive() -> None:
    assert gradcheck(one_sided, columns(SHAPES))
    assert gradgradcheck(one_sided, columns(SHAPES))


def test_derivatives_of_fractions() -> None:
    x = torch.tensor([0.5, -0.5, 0.4, 0.3, 1.0, 0.5, 0.1], dtype=torch.float64, requires_grad=True)

    def fractions(x: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        mode, *shape = about_mode(loc, scale**-2, low, high)
        return log_fractions(x - mode, *shape)

    assert gradcheck(fractions, [x, *columns(PARAMETERS)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_in_the_deep_tail_is_minus_the_moments(dtype: torch.dtype) -> None:
    shape = tensors(4e7, 1.0, 0.0, 1e-3, dtype=dtype, requires_grad=True)
    slope, precision, _, right = torch.autograd.grad(log_mass(*shape), shape)
    torch.testing.assert_close(slope, torch.tensor(-1 / 4e7, dtype=dtype))
    torch.testing.assert_close(precision, torch.tensor(-1 / 4e7**2, dtype=dtype))
    assert right == 0


@pytest.mark.parametrize(
    "shape", [(0.0, 1.0, INF, INF), (3e3, 1.0, 0.0, INF), (3.0, 0.0, 0.0, INF), (-1.0, 2.0, INF, 0.0)]
)
def test_infinite_ends_have_no_gradient(shape: Shape) -> None:
    arguments = tensors(*shape, requires_grad=True)
    gradients = torch.autograd.grad(log_mass(*arguments), arguments, create_graph=True)
    curvatures = torch.autograd.grad(gradients[0] + gradients[1], arguments)
    assert all(gradient.isfinite() for gradient in (*gradients, *curvatures))
    assert all(gradients[k] == 0 and curvatures[k] == 0 for k in (2, 3) if shape[k] == INF)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_finite_40_widths_outside_and_over_12_orders_of_scale(dtype: torch.dtype) -> None:
    scale = torch.logspace(-6, 6, 25, dtype=dtype)[:, None].requires_grad_()
    loc = torch.linspace(-40, 41, 82, dtype=dtype).requires_grad_()
    low, high = tensors(0.0, 1.0, dtype=dtype, requires_grad=True)
    about = about_mode(loc, scale**-2, low, high)
    values = [log_mass(*about[1:]), *mean_and_variance(*about[1:])]
    for value in values:
        gradients = torch.autograd.grad(value.sum(), (loc, scale, low, high), create_graph=True)
        curvatures = torch.autograd.grad(sum(g.sum() for g in gradients), (loc, scale, low, high), retain_graph=True)
        assert all(tensor.isfinite().all() for tensor in (value, *gradients, *curvatures))
    assert (values[2] > 0).all()


@pytest.mark.parametrize(
    "shape", [(0.0, 1.0, 30.0, 50.0), (5.0, 1.0, 0.0, INF), (-2.0, 0.25, 8.0, 0.0), (0.0, 0.0, 1.0, 2.0)]
)
def test_fractions_of_both_sides(shape: Shape) -> None:
    slope, precision, left, right = shape
    whole = exact_integrals(slope, precision, -left, right)[0]
    for fraction in (1.0, 0.999999, 0.3, 1e-9, 0.0):
        for t in (-min(left, 40.0) * fraction, min(right, 40.0) * fraction):
            below, above = log_fractions(*tensors(t, *shape))
            for value, start, stop in ((below, -left, t), (above, t, right)):
                part = exact_integrals(slope, precision, start, stop)[0]
                expected = float(mpmath.log(part / whole)) if part else -INF
                assert value.item() == pytest.approx(expected, rel=1e-13, abs=1e-14)


def test_float32_agrees_with_float64() -> None:
    random = Random(2)
    shapes = [_draw(regime, random) for regime in REGIMES for _ in range(50)]
    single = [torch.tensor(column, dtype=torch.float32) for column in zip(*shapes)]
    double = [column.double() for column in single]
    torch.testing.assert_close(log_mass(*single).double(), log_mass(*double), rtol=2e-6, atol=2e-6)
    for one, two in zip(mean_and_variance(*single), mean_and_variance(*double)):
        # What is below the range of float32 is 0 there.
        torch.testing.assert_close(one.double(), two, rtol=2e-5, atol=torch.finfo(torch.float32).tiny)


def test_broadcasts_and_promotes() -> None:
    slope = torch.zeros(3, 1)
    value = log_mass(slope, torch.ones(4, dtype=torch.float64), torch.tensor(INF), torch.tensor(INF))
    assert value.shape == (3, 4) and value.dtype == torch.float64
    torch.testing.assert_close(value, torch.full((3, 4), 0.5 * math.log(2 * math.pi), dtype=torch.float64))
    assert log_mass(*[torch.zeros(0)] * 4).shape == (0,)
    assert [moment.shape for moment in moments(*[torch.zeros(2, 0)] * 4, order=2)] == [(2, 0), (2, 0)]


def test_functional_gradient_equals_the_other() -> None:
    slope = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    rest = tensors(1.0, 0.0, 1.5)
    functional = torch.func.grad(lambda s: log_mass(s, *rest))(slope.detach())
    torch.testing.assert_close(functional, torch.autograd.grad(log_mass(slope, *rest), slope)[0])
