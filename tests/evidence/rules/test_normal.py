# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
from random import Random

import mpmath as mp
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bmrs import ReductionError
from pyro_bmrs.evidence import log_evidence_change
from pyro_bmrs.evidence.registry import find_rules
from pyro_bmrs.evidence.rules.interval_normal import reduce_interval_normals
from pyro_bmrs.evidence.rules.normal import reduce_normals


def normal(loc: list[float] | float, scale: list[float] | float) -> dist.Normal:
    return dist.Normal(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))


def exact_change(q: tuple[float, float], p: tuple[float, float], r: tuple[float, float]) -> float:
    """From the integrals of products of densities, of which each is a Gaussian in the differences of locations."""
    with mp.workdps(60):
        (m, s), (m_p, s_p), (m_r, s_r) = ([mp.mpf(x) for x in pair] for pair in (q, p, r))
        a = 1 / s**2 + 1 / s_r**2 - 1 / s_p**2
        b = m / s**2 + m_r / s_r**2 - m_p / s_p**2
        c = m**2 / s**2 + m_r**2 / s_r**2 - m_p**2 / s_p**2
        return float(mp.log(s_p / (s * s_r)) - mp.log(a) / 2 + (b**2 / a - c) / 2)


def random_triples(count: int) -> list[list[tuple[float, float]]]:
    random = Random(3)
    scales = [(0.1, 1.0), (1.0, 3.0), (1e-4, 1.0)]
    return [[(random.uniform(-5, 5), random.uniform(*scale)) for scale in scales] for _ in range(count)]


def test_random_triples_agree_with_the_formula_in_sixty_digits() -> None:
    triples = random_triples(50)
    q, p, r = (normal(*map(list, zip(*role))) for role in zip(*triples))
    exact = torch.tensor([exact_change(*triple) for triple in triples], dtype=torch.float64)
    torch.testing.assert_close(reduce_normals(q, p, r).delta_evidence, exact, rtol=1e-11, atol=1e-11)


def test_some_agree_with_numerical_integrals() -> None:
    for q, p, r in random_triples(5):
        with mp.workdps(30):
            breaks = sorted([q[0], *(loc + k * scale for loc, scale in (q, r) for k in (-20, -3, 3, 20))])
            integral = mp.quad(lambda x: mp.npdf(x, *q) * mp.npdf(x, *r) / mp.npdf(x, *p), breaks)  # noqa: B023
        actual = reduce_normals(normal(*q), normal(*p), normal(*r)).delta_evidence
        assert actual.item() == pytest.approx(float(mp.log(integral)), rel=1e-9, abs=1e-9)


def test_it_is_the_untruncated_case_of_normals_on_intervals() -> None:
    q, p, r = (normal(*map(list, zip(*role))) for role in zip(*random_triples(20)))
    ours, general = reduce_normals(q, p, r), reduce_interval_normals(q, p, r)
    torch.testing.assert_close(ours.delta_evidence, general.delta_evidence, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours.posterior.loc, general.posterior.loc)
    torch.testing.assert_close(ours.posterior.scale, general.posterior.scale)
    assert find_rules(dist.Normal, dist.Normal, dist.Normal)[0] is reduce_normals


def test_the_posterior_is_the_normalised_product() -> None:
    q, p, r = (normal(*map(list, zip(*role))) for role in zip(*random_triples(20)))
    reduced = reduce_normals(q, p, r)
    x = reduced.posterior.sample((10,))
    product = q.log_prob(x) + r.log_prob(x) - p.log_prob(x) - reduced.delta_evidence
    torch.testing.assert_close(reduced.posterior.log_prob(x), product, rtol=1e-9, atol=1e-9)


def test_gradients_in_all_parameters() -> None:
    parameters = [
        torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.3, 0.5, -0.2, 2.0, 0.7, 0.4)
    ]

    def change(*parameters: Tensor) -> Tensor:
        return log_evidence_change(*itertools.starmap(dist.Normal, zip(parameters[::2], parameters[1::2])))

    assert torch.autograd.gradcheck(change, parameters)
    assert torch.autograd.gradgradcheck(change, parameters)


def test_exactly_nothing_changes_where_the_reduced_prior_or_the_posterior_is_the_prior() -> None:
    q, p, _ = (normal(*map(list, zip(*role))) for role in zip(*random_triples(50)))
    torch.testing.assert_close(reduce_normals(q, p, p).delta_evidence, torch.zeros(50).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(reduce_normals(p, p, q).delta_evidence, torch.zeros(50).double(), rtol=0, atol=1e-12)


def test_an_integral_that_diverges_is_refused_and_counted() -> None:
    q, p, r = normal([2.0, 0.5], [1.0, 1.0]), normal(0.0, 0.5), normal(0.0, 3.0)
    with pytest.raises(ReductionError, match="broader than the prior .* at 2 of 2 elements"):
        reduce_normals(q, p, r)
    with pytest.raises(ReductionError, match="at 1 of 2 elements"):
        reduce_normals(normal(0.0, [1.0, 0.4]), p, r)
