# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A family that the package does not know, stated from outside."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random

import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from pyro_bmrs import ReductionError, ReductionWarning
from pyro_bmrs.evidence import log_evidence_change, reduce
from pyro_bmrs.evidence.rules.exponential_family import Family, Member, Natural

SHAPE = 1.7


class Lifetime(dist.Weibull):
    """A Weibull distribution, of which those of one shape are a family."""


class Rayleigh(Lifetime):
    """The Weibull distribution of shape 2."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__(scale, torch.full_like(scale, 2.0))


def natural(distribution: Lifetime) -> Natural:
    return (distribution.scale**-distribution.concentration,)


def lifetimes() -> Family:
    return Family(
        {
            Rayleigh: Member(natural, lambda d, s: Rayleigh(s[0] ** -0.5)),
            Lifetime: Member(natural, lambda d, s: Lifetime(s[0] ** (-1 / d.concentration), d.concentration)),
        },
        growth=lambda before, after, step: -torch.log1p(step[0] / before[0]),
        valid=lambda natural: natural[0] > 0,
        in_common=("concentration",),
    )


@pytest.fixture(autouse=True)
def family(own_rules: None) -> Family:
    return lifetimes().register()


def lifetime(*scales: float, shape: float = SHAPE) -> Lifetime:
    values = torch.tensor(scales, dtype=torch.float64)
    return Lifetime(values, torch.full_like(values, shape))


def log_mean_ratio(q: float, p: float, r: float) -> float:
    """The logarithm of the integral of q r / p."""

    def density(x: float, scale: float) -> float:
        y = x / scale
        return SHAPE / scale * y ** (SHAPE - 1) * math.exp(-(y**SHAPE))

    def product(x: float) -> float:
        return density(x, q) * density(x, r) / density(x, p) if x else 0.0

    ends = [0.0, *(x * min(q, r) for x in (0.3, 1, 2, 4, 9))]
    return math.log(sum(quad(product, low, high, epsabs=1e-14)[0] for low, high in pairwise(ends)))


@pytest.mark.no_cover
def test_fifty_triples_agree_with_numerical_integrals() -> None:
    random = Random(0)
    scales = [(random.uniform(0.2, 1), random.uniform(1, 4), random.uniform(0.3, 1)) for _ in range(50)]
    reduced = reduce(*(lifetime(*role) for role in zip(*scales, strict=True)))
    assert reduced.method == "exact"
    exact = torch.tensor([log_mean_ratio(*triple) for triple in scales], dtype=torch.float64)
    torch.testing.assert_close(reduced.delta_evidence, exact, rtol=1e-9, atol=1e-9)


def test_the_posterior_is_the_normalised_product_in_the_family() -> None:
    q, p, r = lifetime(0.5, 0.9), lifetime(3.0, 1.0), lifetime(0.7, 0.6)
    reduced = reduce(q.to_event(1), p.to_event(1), r.to_event(1))
    x = q.sample((20,))
    product = (q.log_prob(x) + r.log_prob(x) - p.log_prob(x)).sum(-1) - reduced.delta_evidence
    torch.testing.assert_close(reduced.posterior.log_prob(x), product, rtol=1e-10, atol=1e-10)
    assert type(reduced.posterior.base_dist) is Lifetime


def test_the_first_type_that_all_three_are_is_built_else_the_last() -> None:
    one, two, three = (Rayleigh(torch.tensor(scale, dtype=torch.float64)) for scale in (1.0, 2.0, 3.0))
    assert type(reduce(one, three, two).posterior) is Rayleigh
    mixed = reduce(one, lifetime(3.0, shape=2.0), two)
    assert type(mixed.posterior) is Lifetime
    torch.testing.assert_close(mixed.delta_evidence.squeeze(), log_evidence_change(one, three, two))


def test_what_differs_in_what_all_have_in_common_is_of_no_family() -> None:
    with pytest.raises(ReductionError, match="no exact rule"):
        reduce(lifetime(1.0), lifetime(2.0), lifetime(1.0, shape=1.0), method="exact")


def test_parameters_that_are_not_valid_are_refused() -> None:
    with pytest.raises(ReductionError, match="Lifetime: the reduced posterior has no valid parameters at 1 of 2"):
        reduce(lifetime(2.0, 1.0), lifetime(1.0), lifetime(1.9))


def test_a_family_says_its_name_where_another_takes_its_place() -> None:
    lifetimes().register()  # the same again, as when a cell of a notebook is run twice
    other = Family(
        {Lifetime: Member(natural, lambda d, s: d)}, lambda *_: torch.zeros(()), lambda natural: natural[0] > 0
    )
    with pytest.warns(
        ReductionWarning, match="the family of Lifetime takes the place of .*family of Rayleigh, Lifetime"
    ):
        other.register()
