# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import math
from itertools import product
from pathlib import Path
from random import Random

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Distribution

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal, TruncatedNormal
from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence import log_evidence_change, reduce, reduced_posterior
from pyro_bmrs.evidence.quadrature.reweighted import ReweightedDistribution
from tests.evidence.exact_interval_normal import MIXTURES, draw, interval, log_mean_ratio

FAMILY = {
    "Normal": dist.Normal,
    "HalfNormal": dist.HalfNormal,
    "TruncatedNormal": TruncatedNormal,
    "Uniform": dist.Uniform,
}
INF = math.inf


def triple(mixture: tuple[str, ...], count: int, **options: tuple[float, float]) -> list[list[Tensor]]:
    """Parameters of posterior, prior and reduced prior, batched over random draws."""
    random = Random(f"{mixture} {options}")
    draws = [draw(mixture, random, **options) for _ in range(count)]
    return [[double(column) for column in zip(*role)] for role in zip(*draws)]


def build(mixture: tuple[str, ...], parameters: list[list[Tensor]]) -> list[Distribution]:
    return [FAMILY[name](*values) for name, values in zip(mixture, parameters)]


def double(value: float | list[float]) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("mixture", MIXTURES, ids="-".join)
def test_equals_numerical_expectation(mixture: tuple[str, str, str]) -> None:
    parameters = triple(mixture, 20)
    reduced = reduce(*build(mixture, parameters))
    assert reduced.method == "exact"
    for i, value in enumerate(reduced.delta_evidence.tolist()):
        members = [interval(name, [v[i].item() for v in values]) for name, values in zip(mixture, parameters)]
        expected = float(log_mean_ratio(*members))
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-12), members


@pytest.mark.parametrize("mixture", MIXTURES, ids="-".join)
def test_is_differentiable_in_all_parameters(mixture: tuple[str, str, str]) -> None:
    parameters = triple(mixture, 2, scales=(0.5, 2.0))
    flat = [value.requires_grad_() for values in parameters for value in values]
    ends = torch.tensor([len(values) for values in parameters]).cumsum(0).tolist()

    def delta_evidence(*flat: Tensor) -> Tensor:
        return log_evidence_change(*build(mixture, [flat[: ends[0]], flat[ends[0] : ends[1]], flat[ends[1] :]]))

    assert gradcheck(delta_evidence, flat, rtol=1e-4)


@pytest.mark.parametrize(
    "mixture",
    [
        ("Normal",) * 3,
        ("TruncatedNormal", "Normal", "TruncatedNormal"),
        ("Uniform", "Normal", "HalfNormal"),
    ],
    ids="-".join,
)
def test_is_differentiable_twice(mixture: tuple[str, str, str]) -> None:
    parameters = triple(mixture, 3, scales=(0.5, 2.0))
    flat = [value.requires_grad_() for values in parameters for value in values]
    ends = torch.tensor([len(values) for values in parameters]).cumsum(0).tolist()

    def delta_evidence(*flat: Tensor) -> Tensor:
        return log_evidence_change(*build(mixture, [flat[: ends[0]], flat[ends[0] : ends[1]], flat[ends[1] :]]))

    assert gradgradcheck(delta_evidence, flat, rtol=1e-4)


def posterior_density_error(q: Distribution, p: Distribution, r: Distribution) -> Tensor:
    """The largest difference of log s from log (q r / p) - ΔF at points within the common interval."""
    reduced = reduce(q, p, r)
    s = reduced.posterior
    assert s.batch_shape == reduced.delta_evidence.shape
    x = s.icdf(torch.linspace(0.01, 0.99, 9, dtype=torch.float64).reshape(-1, *[1] * len(s.batch_shape)))
    expected = q.log_prob(x) + r.log_prob(x) - p.log_prob(x) - reduced.delta_evidence
    error = (s.log_prob(x) - expected).abs() / (1 + q.log_prob(x).abs() + r.log_prob(x).abs() + p.log_prob(x).abs())
    return error.max()


@pytest.mark.parametrize("mixture", MIXTURES, ids="-".join)
def test_posterior_is_the_product(mixture: tuple[str, str, str]) -> None:
    # That it is normalised follows: each of these families is, in its own tests, and equal densities are.
    assert posterior_density_error(*build(mixture, triple(mixture, 8))) < 1e-11


@pytest.mark.parametrize(
    ("q", "p", "r", "expected"),
    [
        (dist.Normal(1.0, 0.5), dist.Normal(0.0, 1.0), dist.Normal(0.0, 0.5), dist.Normal),
        (dist.HalfNormal(0.5), dist.HalfNormal(1.0), dist.HalfNormal(0.5), dist.HalfNormal),
        (dist.Normal(0.1, 0.5), dist.HalfNormal(1.0), dist.HalfNormal(0.5), TruncatedNormal),
        (dist.Uniform(0.0, 2.0), dist.Uniform(-1.0, 2.0), dist.Uniform(-1.0, 1.0), dist.Uniform),
        (dist.Normal(0.0, 1.0), dist.Uniform(-1.0, 2.0), dist.Uniform(-1.0, 1.0), TruncatedNormal),
        (dist.Uniform(-1.0, 1.0), dist.Normal(0.0, 1.0), dist.Uniform(-1.0, 1.0), ReweightedDistribution),
    ],
)
def test_posterior_has_its_simplest_name(q, p, r, expected: type[Distribution]) -> None:
    assert type(reduced_posterior(q, p, r)) is expected


def test_opposite_tails_make_a_density_with_two_modes() -> None:
    # A prior much narrower than posterior and reduced prior: the product is U-shaped.
    q, p, r = (TruncatedNormal(double(0.1), double(scale), -1.0, 1.0) for scale in (2.0, 0.3, 3.0))
    s = reduced_posterior(q, p, r)
    x = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    assert torch.trapezoid(s.log_prob(x).exp(), x).item() == pytest.approx(1, abs=1e-6)
    assert s.log_prob(double(0.0)) < s.log_prob(double(-1.0)) < INF
    assert posterior_density_error(q, p, r) < 1e-9


@pytest.mark.parametrize(("low", "high"), [(0.0, INF), (-INF, 0.0), (0.0, 2.0), (-2.0, 0.0)])
def test_equal_precisions_leave_an_exponential(low: float, high: float) -> None:
    # q and r are half-normals of scale 1; p has half their variance, and a location at distance 1 inside.
    side = 1.0 if low == 0 else -1.0
    q = r = TruncatedNormal(double(0.0), double(1.0), low, high)
    p = TruncatedNormal(double(side), double(math.sqrt(0.5)), low, high)
    length = high if low == 0 else -low
    # q r / p is exp(1 - 2 |x|) times the masses of p over those of q and r.
    masses = [
        math.sqrt(math.pi / 2) * math.erf(length / math.sqrt(2)),
        math.sqrt(math.pi) / 2 * (math.erf(length - 1) + math.erf(1)),
    ]
    expected = 1 + math.log(-math.expm1(-2 * length) / 2) + math.log(masses[1]) - 2 * math.log(masses[0])
    assert log_evidence_change(q, p, r).item() == pytest.approx(expected, abs=1e-14)


def test_normal_normal_is_the_difference_of_exact_evidences() -> None:
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(20, generator=generator, dtype=torch.float64) + 0.3

    def log_marginal(loc: Tensor, scale: Tensor) -> Tensor:
        covariance = torch.eye(20, dtype=torch.float64) + scale**2
        return dist.MultivariateNormal(loc.expand(20), covariance).log_prob(data)

    prior, other = (double(0.5), double(2.0)), (double(-0.2), double(0.1))
    precision = 20 + prior[1] ** -2
    exact = dist.Normal((data.sum() + prior[0] * prior[1] ** -2) / precision, precision.rsqrt())
    value = log_evidence_change(exact, dist.Normal(*prior), dist.Normal(*other))
    torch.testing.assert_close(value, log_marginal(*other) - log_marginal(*prior), rtol=0, atol=1e-12)


SCALES = [1e-3, 0.1, 1.0, 30.0]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("loc", [-25.0, -20.0, -19.9, -7.0, 0.0, 3.0])
def test_narrow_reduced_prior_is_a_savage_dickey_ratio(loc: float, scale: float) -> None:
    q = TruncatedNormal(double(loc), double(scale), -20.0, 0.0)
    for point in (-20.0, -12.5, 0.0):
        ratio = math.log(20.0) + q.log_prob(double(point))
        slope = (point - loc) / scale**2
        for width in (1e-9, 1e-12):
            r = TruncatedNormal(double(point), double(width), -20.0, 0.0)
            value = log_evidence_change(q, dist.Uniform(double(-20.0), double(0.0)), r)
            # To first order the reduced prior moves the point by its mean absolute deviation.
            tolerance = 2 * abs(slope) * width + (width / scale) ** 2 + 1e-14 * abs(ratio)
            assert abs(value - ratio) <= tolerance


MEMBERS = st.tuples(st.floats(-60, 60), st.floats(-3, 3), st.floats(-10, 9), st.floats(0.001, 1))


@given(MEMBERS, st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True), st.floats(-60, 60), st.floats(-6, 6))
@settings(max_examples=60, deadline=None)
def test_is_exactly_zero_where_the_posterior_is_the_prior(member, ends, loc: float, exponent: float) -> None:
    q_loc, log_scale, low, width = member
    high = low + 10 * width
    start, stop = (low + (high - low) * end for end in sorted(ends))
    if not low <= start < stop <= high:
        return
    q = TruncatedNormal(double(q_loc), double(10**log_scale), low, high)
    p = TruncatedNormal(double(q_loc), double(10**log_scale), low, high)
    for r in (
        TruncatedNormal(double(loc), double(10**exponent), start, stop),
        dist.Uniform(double(start), double(stop)),
    ):
        assert log_evidence_change(q, p, r) == 0
        assert (
            log_evidence_change(dist.Uniform(double(low), double(high)), dist.Uniform(double(low), double(high)), r)
            == 0
        )
        # However the two are batched.
        assert (log_evidence_change(q.expand([5]), p, r.expand([3, 5])) == 0).all()
    normal = dist.Normal(double(q_loc), double(10**log_scale))
    assert (
        log_evidence_change(
            normal, dist.Normal(normal.loc, normal.scale), dist.Normal(double(loc), double(10**exponent))
        )
        == 0
    )


@given(MEMBERS, MEMBERS, st.floats(-5, 3))
@settings(max_examples=60, deadline=None)
def test_reducing_twice_is_reducing_once(first, second, log_scale: float) -> None:
    low, high = double(-10.0), double(10.0)
    p = TruncatedNormal(double(0.5), double(20.0), low, high)
    q, middle = (
        TruncatedNormal(double(loc / 3), double(10 ** (log / 2)), low, high) for loc, log, _, _ in (first, second)
    )
    last = TruncatedNormal(double(1.0), double(10**log_scale), low, high)
    step = reduce(q, p, middle)
    if not isinstance(step.posterior, TruncatedNormal):
        return
    once = log_evidence_change(q, p, last)
    twice = step.delta_evidence + log_evidence_change(step.posterior, middle, last)
    torch.testing.assert_close(twice, once, rtol=1e-9, atol=1e-9)


@given(MEMBERS, MEMBERS, st.floats(-3, 3), st.floats(-100, 100))
@settings(max_examples=60, deadline=None)
def test_does_not_change_under_shift_scale_and_reflection(first, second, log_unit: float, shift: float) -> None:
    def members(unit: float, shift: float) -> list[Distribution]:
        ends = sorted((shift - 10 * unit, shift + 10 * unit))
        q, r = (
            TruncatedNormal(double(shift + unit * loc), double(abs(unit) * 10**log), *map(double, ends))
            for loc, log, _, _ in (first, second)
        )
        return [q, dist.Uniform(*map(double, ends)), r]

    value = log_evidence_change(*members(1.0, 0.0))
    moved = log_evidence_change(*members(-(2.0 ** round(log_unit)), round(shift)))
    # Rounding of the moved locations is magnified by the steepness of the densities there.
    steepness = sum((abs(loc) + 10) * 10 ** (-2 * log) for loc, log, _, _ in (first, second))
    tolerance = 1e-13 * (1 + abs(value.item()) + steepness * (10 + abs(shift)))
    assert abs(moved - value) <= tolerance


@given(
    st.floats(-40, 41), st.floats(-6, 6), st.floats(-40, 41), st.floats(-6, 6), st.floats(0, 0.9),
    st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_is_finite_for_extreme_parameters(q_loc, q_exponent, r_loc, r_exponent, start, dtype: torch.dtype) -> None:
    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=dtype, requires_grad=True)

    parameters = [number(v) for v in (q_loc, 10**q_exponent, r_loc, 10**r_exponent)]
    q = TruncatedNormal(parameters[0], parameters[1], number(0.0), number(1.0))
    r = TruncatedNormal(parameters[2], parameters[3], number(start), number(1.0))
    for p, other in product((dist.Uniform(number(0.0), number(1.0)), q), (r, dist.Uniform(r.low, r.high))):
        value = log_evidence_change(q, p, other)
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        assert value.isfinite()
        assert all(gradient is None or gradient.isfinite() for gradient in gradients)


def test_float32_keeps_its_digits() -> None:
    generator = torch.Generator().manual_seed(3)
    loc, scale = -25 + 30 * torch.rand(1000, generator=generator), 10 ** (4 * torch.rand(1000, generator=generator) - 3)
    for r in (TruncatedNormal(-20.0, 1e-6, -20.0, 0.0), dist.Uniform(-20.0, -5.5)):
        single = log_evidence_change(TruncatedNormal(loc, scale, -20.0, 0.0), dist.Uniform(-20.0, 0.0), r)
        q = TruncatedNormal(loc.double(), scale.double(), -20.0, 0.0)
        exact = log_evidence_change(q, dist.Uniform(-20.0, 0.0), r)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), exact.double(), rtol=1e-5, atol=1e-5)


def test_exponentials_are_the_same() -> None:
    loc, scale = double([-3.0, -25.0, 2.0]), double([0.5, 2.0, 0.1])
    low, high = math.exp(-20), 1.0
    q, r = TruncatedLogNormal(loc, scale, low, high), TruncatedLogNormal(double(-20.0), double(1.0), low, high)
    p = LogUniform(double(low), double(high))
    reduced = reduce(q, p, r)
    bare = [d.base_dist for d in (q, p, r)]
    torch.testing.assert_close(reduced.delta_evidence, log_evidence_change(*bare))
    assert isinstance(reduced.posterior, TruncatedLogNormal)
    assert isinstance(reduced_posterior(p, p, LogUniform(double(low), double(0.1))), LogUniform)
    a, b, c = (dist.LogNormal(double(m), double(s)) for m, s in ((0.5, 0.3), (0.0, 1.0), (0.2, 0.4)))
    assert log_evidence_change(a, b, c) == log_evidence_change(a.base_dist, b.base_dist, c.base_dist)
    assert isinstance(reduced_posterior(a, b, c), dist.LogNormal)


def test_disjoint_supports_leave_nothing() -> None:
    low = double([0.0, 0.0, 2.0]).requires_grad_()
    q = TruncatedNormal(double(0.3), double(1.0), low, low + 1)
    p, r = dist.Uniform(double(0.0), double(4.0)), dist.Uniform(double(0.5), double([2.0, 2.0, 1.5]))
    reduced = reduce(q, p, r)
    assert reduced.delta_evidence.isfinite().tolist() == [True, True, False]
    assert reduced.delta_evidence[2] == -INF
    (gradient,) = torch.autograd.grad(reduced.delta_evidence[:2].sum(), low)
    assert gradient.isfinite().all()
    with pytest.raises(ReductionError, match=r"no reduced posterior at 1 of 3 elements.*share no interval"):
        _ = reduced.posterior


NORMAL, HALF, UNIT = dist.Normal(0.0, 1.0), dist.HalfNormal(1.0), dist.Uniform(0.0, 1.0)
HALVES = dist.HalfNormal(torch.tensor([2.0, 0.5]))
INFINITE = dist.Normal(0.0, torch.tensor([1.0, INF]))


@pytest.mark.parametrize(
    ("q", "p", "r", "message"),
    [
        (NORMAL, HALF, NORMAL, "support leaves the prior's at 1 of 1"),
        (UNIT, UNIT, dist.Uniform(-1.0, torch.ones(3)), "support leaves the prior's at 3 of 3"),
        (dist.Normal(0.0, 2.0), NORMAL, dist.Normal(0.0, 3.0), "broader than the prior .* at 1 of 1"),
        (HALVES, HALF, dist.HalfNormal(9.0), "broader than the prior .* at 1 of 2"),
        (INFINITE, dist.Normal(0.0, 2.0), HALF, "posterior's scale is .*infinite at 1 of 2"),
        (NORMAL, INFINITE, HALF, "prior's scale is .*infinite at 1 of 2"),
    ],
)
def test_mistakes_are_named(q: Distribution, p: Distribution, r: Distribution, message: str) -> None:
    with pytest.raises(ReductionError, match=message):
        reduce(q, p, r)


def test_nan_is_named_by_role() -> None:
    q = dist.Normal(torch.tensor([0.0, math.nan]), 1.0, validate_args=False)
    with pytest.raises(ReductionError, match=r"posterior's loc is NaN.* at 1 of 2"):
        reduce(q, dist.Normal(0.0, 2.0), dist.Normal(0.0, 1.0))


def test_ends_that_differ_by_rounding_are_the_same() -> None:
    end = torch.tensor(-20.0)
    r = dist.Uniform(torch.nextafter(end, torch.tensor(-INF)), -5.0)
    assert log_evidence_change(TruncatedNormal(-3.0, 1.0, end, 0.0), dist.Uniform(end, 0.0), r).isfinite()


# 200 truncated log-normal posteriors on [e^-20, 1], of log-location mu and log-scale sigma, against the log-uniform
# prior there, in 60-digit arithmetic that is not this project's. delta_n and delta_n_scale1 reduce to a truncated
# log-normal of log-location -20 and log-scale 1e-6 or 1 on the same interval, delta_u8 and delta_u4 to a log-uniform on
# [2^-23, 2^-8] and [2^-23, 2^-4].
REFERENCE = Path(__file__).parents[2] / "reference"


def log_uniform(low: float, high: float) -> LogUniform:
    return LogUniform(double(low), double(high))


def truncated_log_normal(loc: Tensor, scale: Tensor) -> TruncatedLogNormal:
    return TruncatedLogNormal(loc, scale, double(math.exp(-20)), double(1.0))


REDUCED_PRIORS = {
    "delta_n": truncated_log_normal(double(-20.0), double(1e-6)),
    "delta_n_scale1": truncated_log_normal(double(-20.0), double(1.0)),
    "delta_u8": log_uniform(2**-23, 2**-8),
    "delta_u4": log_uniform(2**-23, 2**-4),
}


@pytest.mark.parametrize(("column", "reduced_prior"), REDUCED_PRIORS.items(), ids=REDUCED_PRIORS)
def test_truncated_log_normals_to_ten_digits(column: str, reduced_prior: Distribution) -> None:
    with (REFERENCE / "truncated_log_normal.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    loc, scale, expected = (
        torch.tensor([float(row[name]) for row in rows], dtype=torch.float64) for name in ("mu", "sigma", column)
    )
    prior = log_uniform(math.exp(-20), 1.0)
    value = log_evidence_change(truncated_log_normal(loc, scale), prior, reduced_prior)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
