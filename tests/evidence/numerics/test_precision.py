# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is asked in single precision is answered as in double precision, to the rounding of the answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bmrs import ReductionError
from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal, TruncatedNormal
from pyro_bmrs.evidence import Reduced, log_evidence_change, reduce, register_reduction
from pyro_bmrs.evidence.numerics.precision import in_double
from tests.evidence.numerical import CASES

Values = tuple[Any, ...]
Builder = Callable[..., Any]
Triple = tuple[tuple[Builder, Values], tuple[Builder, Values], tuple[Builder, Values]]

SPREAD = [[0.4, 0.0, 0.0], [0.1, 0.3, 0.0], [-0.2, 0.1, 0.5]]
EYE = torch.eye(3).tolist()


def scaled(matrix: list[list[float]], factor: float) -> list[list[float]]:
    return (torch.tensor(matrix) * factor).tolist()


def of(build: Builder, *triple: Values) -> Triple:
    return (build, triple[0]), (build, triple[1]), (build, triple[2])


def joint(loc: Tensor, scale_tril: Tensor) -> Any:
    return dist.MultivariateNormal(loc, scale_tril=scale_tril)


def low_rank(loc: Tensor, factor: Tensor, diagonal: Tensor) -> Any:
    return dist.LowRankMultivariateNormal(loc, factor, diagonal)


def independent(loc: Tensor, scale: Tensor) -> Any:
    return dist.Normal(loc, scale).to_event(1)


def wishart(df: Tensor, precision: Tensor) -> Any:
    return dist.Wishart(df, precision_matrix=precision)


def logits(build: Builder) -> Builder:
    return lambda value: build(logits=value)


# Reduced priors from wide to so narrow that the terms of their evidence are 1e7 nats and more.
TRIPLES: dict[str, list[Triple]] = {
    "Beta": [of(dist.Beta, (30.0, 20.0), (1.0, 1.0), (n, n / 3)) for n in (2.0, 1e3, 1e5, 1e7)],
    "Gamma": [of(dist.Gamma, (30.0, 20.0), (1.0, 1.0), (n, n / 1.45)) for n in (2.0, 1e3, 1e5, 1e8)],
    "InverseGamma": [of(dist.InverseGamma, (30.0, 20.0), (1.0, 1.0), (n, n / 1.45)) for n in (2.0, 1e4, 1e8)],
    "VonMises": [of(dist.VonMises, (0.3, 5.0), (0.0, 1.0), (0.3, n)) for n in (0.1, 1e3, 1e8)],
    "Poisson": [of(dist.Poisson, (1e7 + 500.0,), (1e7,), (1e7 + n,)) for n in (1.0, 3e3, -4e3)],
    "NegativeBinomial": [
        of(lambda x: dist.NegativeBinomial(1e6, x), (0.3,), (0.31,), (x,)) for x in (0.3001, 0.31, 0.30999)
    ],
    "Binomial": [of(lambda x: dist.Binomial(10**7, x), (0.3,), (0.3001,), (x,)) for x in (0.3, 0.29999, 0.3002)],
    "Bernoulli": [of(dist.Bernoulli, (0.3,), (0.5,), (x,)) for x in (0.4, 1e-30, 1.0)],
    "Laplace": [of(dist.Laplace, (0.5, 0.1), (0.5, 2.0), (0.5, x)) for x in (1.0, 1e-4, 1e-12)],
    "Dirichlet": [of(dist.Dirichlet, ([30.0, 20.0, 5.0],), ([1.0] * 3,), ([n, n, n / 2],)) for n in (2.0, 1e4, 1e7)],
    "Wishart": [of(wishart, (30.0, scaled(EYE, 25.0)), (4.0, EYE), (n, scaled(EYE, n))) for n in (5.0, 1e3, 1e6)],
    "Categorical": [of(logits(dist.Categorical), ([3.0, 1.0],), ([0.0, 0.0],), ([n, 0.0],)) for n in (1.0, 60.0)],
    # Of few counts: torch normalises the logits in the precision in which they are given.
    "Multinomial": [
        of(lambda x: dist.Multinomial(10**4, logits=x), ([0.1, 0.0],), ([0.0, 0.0],), ([n, 0.0],)) for n in (1e-3, -0.1)
    ],
    "Normal": [of(dist.Normal, (0.3, 0.2), (0.0, 1.0), (0.1, x)) for x in (0.9, 1e-3, 1e-9, 1e-18, 1e-25)],
    "HalfNormal": [of(dist.HalfNormal, (0.3,), (1.0,), (x,)) for x in (0.9, 1e-9, 1e-25)],
    "TruncatedNormal": [
        of(TruncatedNormal, (0.3, 0.2, -1.0, 2.0), (0.0, 1.0, -1.0, 2.0), (x, y, -1.0, 2.0))
        for x in (0.1, -300.0)
        for y in (0.9, 0.1, 1e-6, 1e-18, 1e-25)
        if x > 0 or y > 1e-3
    ],
    "TruncatedLogNormal": [
        (
            (TruncatedLogNormal, (-3.0, 0.5, 1e-6, 1.0)),
            (LogUniform, (1e-6, 1.0)),
            (TruncatedLogNormal, (-13.8, x, 1e-6, 1.0)),
        )
        for x in (2.0, 1e-6, 1e-20)
    ],
    "LogUniform": [of(LogUniform, (1e-6, 0.5), (1e-6, 1.0), (x, 0.3)) for x in (1e-6, 1e-3)],
    "LogNormal": [of(dist.LogNormal, (0.3, 0.2), (0.0, 1.0), (0.1, x)) for x in (0.9, 1e-6, 1e-20)],
    "point": [
        ((dist.Gamma, (1e6, 1e6)), (dist.Gamma, (1e6, 1.001e6)), (dist.Delta, (x,))) for x in (1.0, 1.002, 0.996)
    ],
    "point of a joint normal": [
        (
            (joint, ([0.1, 0.2, 0.3], scaled(SPREAD, x))),
            (joint, ([0.0] * 3, EYE)),
            (dist.Delta, ([0.1, 0.3, 0.2], 0.0, 1)),
        )
        for x in (1.0, 1e-3)
    ],
    "MultivariateNormal": [
        (
            (joint, ([0.1, 0.2, 0.3], SPREAD)),
            (independent, ([0.0] * 3, [1.0] * 3)),
            (independent, ([0.1, 0.0, -0.1], [0.9, x, math.sqrt(x)])),
        )
        for x in (0.5, 1e-4, 1e-9, 1e-18)
    ],
    "LowRankMultivariateNormal": [
        (
            (low_rank, ([0.1, 0.2, 0.3], [[0.3], [0.2], [-0.1]], [0.01, 0.02, 0.03])),
            (independent, ([0.0] * 3, [1.0] * 3)),
            (independent, ([0.1, 0.0, -0.1], [0.9, x, math.sqrt(x)])),
        )
        for x in (0.5, 1e-4, 1e-9)
    ],
    "quadrature": [
        ((dist.LogNormal, (0.0, 0.1)), (dist.HalfCauchy, (1.0,)), (dist.Gamma, (n, n / 1.2))) for n in (3.0, 1e3, 1e6)
    ],
    "quadrature, far away": [
        ((dist.Normal, (2000.0, 0.01)), (dist.StudentT, (3.0, 2000.0, 1.0)), (dist.Laplace, (2000.0 + x, 0.03)))
        for x in (0.0, 0.125)
    ],
}
DRAWN = {f"{name}, drawn": [of(case.build, *triple) for triple in case.triples(10)] for name, case in CASES.items()}


def asked(triple: Triple, dtype: torch.dtype) -> tuple[Reduced, list[Tensor]]:
    """The answer for parameters that single precision holds, and these parameters."""
    # Numbers stay numbers, which no gradient is asked of: those of a Delta.
    parameters = [
        [
            torch.tensor(value).to(dtype).requires_grad_() if build is not dist.Delta or not number else value
            for number, value in enumerate(values)
        ]
        for build, values in triple
    ]
    q, p, r = (build(*values) for (build, _), values in zip(triple, parameters, strict=True))
    return reduce(q, p, r), [value for values in parameters for value in values if isinstance(value, Tensor)]


@pytest.mark.parametrize("name", [*TRIPLES, *DRAWN])
@pytest.mark.filterwarnings("ignore::pyro_bmrs.ReductionWarning")
def test_single_precision_has_the_evidence_and_gradients_of_double_precision(name: str) -> None:
    for triple in (TRIPLES | DRAWN)[name]:
        (said, single), (exact, double) = asked(triple, torch.float32), asked(triple, torch.float64)
        assert said.delta_evidence.dtype == torch.float32 and said.method == exact.method
        expected = exact.delta_evidence.float()
        torch.testing.assert_close(said.delta_evidence, expected, rtol=1e-5, atol=1e-4)
        with torch.no_grad():  # by other ways, where there are any
            torch.testing.assert_close(asked(triple, torch.float32)[0].delta_evidence, expected, rtol=1e-5, atol=1e-4)
        gradients, exact_gradients = (
            torch.autograd.grad(reduced.delta_evidence.sum(), leaves, allow_unused=True)
            for reduced, leaves in ((said, single), (exact, double))
        )
        for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
            if exact_gradient is not None:
                # As large a gradient as single precision does not hold is infinite.
                torch.testing.assert_close(gradient, exact_gradient.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("reach", [3.0, 1e3, 1e7])
@pytest.mark.parametrize("reduced_prior", [TruncatedNormal, dist.Uniform])
def test_normals_on_an_interval_under_a_uniform_prior_need_no_conversion(reach: float, reduced_prior: Builder) -> None:
    generator = torch.Generator().manual_seed(0)
    q_loc, r_loc = reach * (2 * torch.rand(2, 1000, generator=generator) - 1)
    q_scale, r_scale = 10 ** (10.9 * torch.rand(2, 1000, generator=generator) - 8.9)
    low, high, middle = torch.tensor([-20.0, 0.0, -10.0])
    inner = (r_loc, r_scale, low, high) if reduced_prior is TruncatedNormal else (low, middle + r_loc / reach)

    def evidence(dtype: torch.dtype) -> Tensor:
        q, p, r = ([value.to(dtype) for value in role] for role in ((q_loc, q_scale, low, high), (low, high), inner))
        return log_evidence_change(TruncatedNormal(*q), dist.Uniform(*p), reduced_prior(*r))

    torch.testing.assert_close(evidence(torch.float32), evidence(torch.float64).float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_posterior_has_the_dtype_of_the_triple_and_its_gradients(dtype: torch.dtype) -> None:
    concentration = torch.tensor([8.0, 4.0], dtype=dtype, requires_grad=True)
    one = torch.ones((), dtype=dtype)
    reduced = reduce(dist.Beta(concentration, one), dist.Beta(one, one), dist.Beta(one * 3, one * 2))
    posterior: Any = reduced.posterior
    assert reduced.delta_evidence.dtype == posterior.concentration1.dtype == dtype
    posterior.concentration1.sum().backward()
    assert concentration.grad is not None and torch.equal(concentration.grad, torch.ones(2, dtype=dtype))


def test_mixed_precisions_are_promoted_as_in_a_sum() -> None:
    single, double = torch.ones(2), torch.ones((), dtype=torch.float64)
    few = log_evidence_change(
        dist.Gamma(single * 3, single), dist.Gamma(double, double), dist.Gamma(double * 2, double)
    )
    assert few.dtype == torch.float32
    triple = dist.Gamma(single * 3, single), dist.Gamma(double.expand(1), double), dist.Gamma(single * 2, single)
    assert log_evidence_change(*triple).dtype == torch.float64


def test_ends_that_agree_in_single_precision_are_the_same() -> None:
    end = torch.tensor(0.1)
    q, p = TruncatedNormal(0.0, 0.3, 0.0, end), dist.Uniform(0.0, end)
    above = end.nextafter(torch.tensor(1.0))
    r = TruncatedNormal(0.0, 0.1, 0.0, above)
    assert log_evidence_change(q, p, r).isfinite()
    assert log_evidence_change(q, p, r, method="quadrature").isfinite()
    with pytest.raises(ReductionError, match="leaves the prior's"):
        log_evidence_change(q, p, TruncatedNormal(0.0, 0.1, 0.0, 0.1001))


def test_a_point_within_a_support_to_rounding_stays_within() -> None:
    factor = torch.tensor([[1.0, 0.0], [0.3, math.sqrt(1 - 0.3**2)]])
    assert factor.double().norm(dim=-1)[1] != 1
    q, p = dist.LKJCholesky(2, 4.0), dist.LKJCholesky(2, 1.0)
    assert log_evidence_change(q, p, dist.Delta(factor, event_dim=2)).isfinite()


class Network(dist.TorchDistribution):
    """A distribution of a kind that nobody else has."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self) -> None:
        self.network = torch.nn.Linear(1, 1)
        super().__init__()


def test_what_holds_a_network_is_reduced_in_its_own_precision(own_rules: None) -> None:
    @register_reduction(Network, dist.Normal, dist.Normal)
    def _by_network(posterior: Any, prior: Any, reduced_prior: Any) -> Reduced:
        return Reduced(posterior.network(prior.loc.reshape(1)).sum(), lambda: posterior)

    network = Network()
    assert reduce(network, dist.Normal(0.0, 1.0), dist.Normal(0.0, 0.5)).posterior is network


def test_what_all_elements_share_is_converted_once() -> None:
    shapes = []

    def rule(posterior: Any, prior: Any, reduced_prior: Any) -> Reduced:
        shapes.append(prior.loc.untyped_storage().nbytes())
        assert prior is reduced_prior and prior.loc is prior.scale
        return Reduced(prior.loc, lambda: prior)

    one = torch.ones(()).expand(1000)
    normal = dist.Normal(one, one, validate_args=False)
    normal.scale = normal.loc
    posterior: Any = in_double(rule, normal, normal, normal).posterior
    assert posterior.loc.dtype == torch.float32
    assert shapes == [8]


def test_a_distribution_that_holds_itself_is_converted_once():
    normal, wide = dist.Normal(0.5, 0.1), dist.Normal(0.0, 1.0)
    normal.origin = normal
    change = log_evidence_change(normal, wide, dist.Normal(0.0, 0.3))
    assert change == log_evidence_change(dist.Normal(0.5, 0.1), wide, dist.Normal(0.0, 0.3))
