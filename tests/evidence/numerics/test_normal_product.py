# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
import math
from random import Random

import mpmath as mp
import pytest
import torch
from torch import Tensor

from pyro_bmrs.evidence.numerics.normal_product import IntervalNormal, IntervalUniform, normal_product
from tests.evidence.exact_interval_normal import log_mean_ratio

INF = math.inf
Member = IntervalNormal | IntervalUniform


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normal(loc: float, scale: float, low: float = -INF, high: float = INF) -> IntervalNormal:
    return IntervalNormal(*map(double, (loc, scale, low, high)))


def uniform(low: float, high: float) -> IntervalUniform:
    return IntervalUniform(double(low), double(high))


def described(member: Member) -> tuple[float, float, float, float]:
    """loc, scale (inf for a uniform), low, high."""
    values = [value.item() for value in member]
    return (0.0, INF, *values) if isinstance(member, IntervalUniform) else tuple(values)


KINDS = {
    "uniform": lambda random: uniform(-1.0, 1.0),
    "truncated": lambda random: normal(random.uniform(-3, 3), random.uniform(0.2, 3), -1.0, 1.0),
    "far out": lambda random: normal(random.uniform(20, 40), random.uniform(0.5, 2), -1.0, 1.0),
}


@pytest.mark.parametrize("kinds", list(itertools.product(KINDS, repeat=3)), ids="-".join)
def test_the_log_evidence_is_the_integral(kinds) -> None:
    random = Random("".join(kinds))
    for _ in range(2):
        q, p, r = (KINDS[kind](random) for kind in kinds)
        exact = log_mean_ratio(*map(described, (q, p, r)))
        assert normal_product(q, p, r).log_evidence.item() == pytest.approx(float(exact), rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("kinds", list(itertools.product(KINDS, repeat=3)), ids="-".join)
def test_the_product_is_the_parabola_that_the_members_add_up_to(kinds) -> None:
    random = Random("".join(kinds))
    q, p, r = (KINDS[kind](random) for kind in kinds)
    product = normal_product(q, p, r)
    precision = sum(sign / described(m)[1] ** 2 for sign, m in ((1, q), (-1, p), (1, r)))
    tangent = sum(sign * described(m)[0] / described(m)[1] ** 2 for sign, m in ((1, q), (-1, p), (1, r)))
    if product.precision is None:
        assert kinds == ("uniform",) * 3
        return
    assert product.precision.item() == pytest.approx(precision, rel=1e-12)
    if precision > 0:
        assert product.loc is not None
        assert product.loc.item() == pytest.approx(tangent / precision, rel=1e-9)


def test_a_uniform_is_the_limit_of_a_broad_normal() -> None:
    q, r = normal(0.3, 0.5, -1.0, 1.0), normal(0.1, 0.4, -1.0, 1.0)
    flat = normal_product(q, uniform(-1.0, 1.0), r)
    broad = normal_product(q, normal(0.0, 1e7, -1.0, 1.0), r)
    for of_flat, of_broad in zip(flat, broad):
        torch.testing.assert_close(of_broad, of_flat, rtol=1e-12, atol=1e-12)


def test_a_parabola_that_opens_downwards_is_lowest_at_an_end() -> None:
    # Both ends, and the middle, where it is highest: two modes.
    q, p, r = normal(0.2, 1.0, -1.0, 1.0), normal(0.0, 0.1, -1.0, 1.0), normal(-0.1, 0.9, -1.0, 1.0)
    product = normal_product(q, p, r)
    assert product.precision is not None and product.precision < 0
    exact = log_mean_ratio(*map(described, (q, p, r)))
    assert product.log_evidence.item() == pytest.approx(float(exact), rel=1e-11)


def test_what_has_no_integral_is_infinite_and_what_has_no_interval_minus_infinite() -> None:
    narrow, broad = normal(0.0, 0.5), normal(0.0, 2.0)
    assert normal_product(broad, narrow, broad).log_evidence == INF
    assert normal_product(normal(0.0, 1.0, -1.0, 0.0), broad, normal(0.0, 1.0, 1.0, 2.0)).log_evidence == -INF


def test_disjoint_elements_do_not_spoil_the_gradients_of_the_others() -> None:
    loc = torch.tensor([0.2, 0.3], dtype=torch.float64, requires_grad=True)
    low, high = torch.tensor([[0.0, 2.0], [1.0, 3.0]], dtype=torch.float64)
    q = IntervalNormal(loc, double(0.5), double(0.0), double(1.0))
    value = normal_product(q, uniform(0.0, 3.0), IntervalUniform(low, high)).log_evidence
    assert value[1] == -INF
    (gradient,) = torch.autograd.grad(value[0], loc)
    assert gradient.isfinite().all()
    alone = normal_product(q, uniform(0.0, 3.0), uniform(0.0, 1.0)).log_evidence[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(alone, loc)[0])


def test_a_narrow_reduced_prior_costs_no_digits() -> None:
    # The Savage-Dickey ratio, to first order in the variance of the reduced prior.
    q, p = normal(1e3, 1.0), normal(0.0, 1e4)
    value = normal_product(q, p, normal(1e3 + 2, 1e-6)).log_evidence
    exact = mp.log(mp.npdf(2)) - mp.log(mp.npdf(mp.mpf(1002) / 10**4) / 10**4)
    assert value.item() == pytest.approx(float(exact), rel=1e-11)
