# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import pickle
from random import Random

import mpmath as mp
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from mpmath import mpf
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_bmrs.evidence import ReweightedDistribution, log_evidence_change, reduce
from tests.evidence.log_densities import (
    beta,
    cauchy,
    gamma,
    gumbel,
    half_cauchy,
    laplace,
    log_normal,
    logistic,
    logit_normal,
    normal,
    student,
    weibull,
)
from tests.evidence.numerical import CASES, tensors


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


CONTINUOUS = {name: case for name, case in CASES.items() if not case.discrete and case.tolerance_of_torch == 1e-9}


@pytest.mark.parametrize("case", CONTINUOUS.values(), ids=CONTINUOUS)
def test_it_agrees_with_the_exact_rules(case) -> None:
    roles = [tensors(role) for role in zip(*case.triples(50, seed=3), strict=True)]
    triple = [case.build(*role) for role in roles]
    reduced = reduce(*triple, method="quadrature")
    torch.testing.assert_close(reduced.delta_evidence, log_evidence_change(*triple), rtol=1e-8, atol=1e-8)
    assert reduced.method == "quadrature"


def transformed(loc: Tensor, scale: Tensor, support: constraints.Constraint) -> dist.TransformedDistribution:
    """A guide as AutoNormal makes it."""
    return dist.TransformedDistribution(dist.Normal(loc, scale), [biject_to(support)])


# Ten or more random triples of each mixture; the integral is parted where its mass is.
MIXTURES = {
    "normal guide, Cauchy prior": lambda u: (
        (dist.Normal, normal, (u(-2, 2), u(0.1, 1))),
        (dist.Cauchy, lambda _, s: cauchy(s), (0.0, u(0.5, 2))),
        (dist.Normal, normal, (0.0, u(0.05, 2))),
        [-mp.inf, -1, 0, 1, mp.inf],
    ),
    "Student guide, Cauchy prior": lambda u: (
        (dist.StudentT, student, (u(2, 9),)),
        (dist.Cauchy, lambda _, s: cauchy(s), (0.0, u(0.5, 2))),
        (dist.StudentT, student, (u(3, 9),)),
        [-mp.inf, -3, 0, 3, mp.inf],
    ),
    "normal guide, Laplace priors": lambda u: (
        (dist.Normal, normal, (u(-1, 1), u(0.1, 1))),
        (dist.Laplace, lambda _, s: laplace(s), (0.0, u(0.5, 2))),
        (dist.Laplace, lambda _, s: laplace(s), (0.0, u(0.02, 0.5))),
        [-mp.inf, -0.2, 0, 0.2, mp.inf],
    ),
    "normal guide of a half-Cauchy site": lambda u: (
        (lambda m, s: transformed(m, s, constraints.positive), log_normal, (u(-1, 2), u(0.1, 1))),
        (dist.HalfCauchy, half_cauchy, (u(0.5, 3),)),
        (dist.Gamma, gamma, (u(0.5, 5), u(0.5, 5))),
        [0, 0.1, 0.5, 1, 3, mp.inf],
    ),
    "normal guide of a gamma site": lambda u: (
        (lambda m, s: transformed(m, s, constraints.positive), log_normal, (u(-1, 2), u(0.1, 1))),
        (dist.Gamma, gamma, (u(1, 2), u(0.5, 1))),
        (dist.Gamma, gamma, (u(0.5, 5), u(1, 5))),
        [0, 0.1, 0.5, 1, 3, mp.inf],
    ),
    "normal guide of a beta site": lambda u: (
        (lambda m, s: transformed(m, s, constraints.unit_interval), logit_normal, (u(-2, 2), u(0.1, 1))),
        (dist.Beta, beta, (u(0.5, 2), u(0.5, 2))),
        (dist.Beta, beta, (u(0.5, 9), u(0.5, 9))),
        [0, 0.1, 0.5, 0.9, 1],
    ),
    "Weibull guide, gamma prior": lambda u: (
        (dist.Weibull, weibull, (u(0.5, 2), u(1.2, 3))),
        (dist.Gamma, gamma, (u(1, 2), u(0.2, 0.4))),
        (dist.Weibull, weibull, (u(0.5, 2), u(1.2, 3))),
        [0, 0.3, 1, 2, mp.inf],
    ),
    "logistic guide, normal prior": lambda u: (
        (dist.Logistic, logistic, (u(-1, 1), u(0.1, 0.5))),
        (dist.Normal, normal, (0.0, u(2, 4))),
        (dist.Normal, normal, (0.0, u(0.1, 1))),
        [-mp.inf, -1, 0, 1, mp.inf],
    ),
    "Gumbel guide, logistic prior": lambda u: (
        (dist.Gumbel, gumbel, (u(-1, 1), u(0.1, 0.5))),
        (dist.Logistic, logistic, (0.0, u(1, 2))),
        (dist.Gumbel, gumbel, (u(-1, 1), u(0.1, 0.8))),
        [-8, -1, 0, 1, 3, mp.inf],  # below, exp(-exp(...)) is nothing, and takes mpmath for ever
    ),
}


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_mixtures_agree_with_mpmath(mixture) -> None:
    random = Random(4)
    for _ in range(10):
        *triple, breaks = mixture(random.uniform)
        distributions = [build(*map(scalar, parameters)) for build, _, parameters in triple]
        with mp.workdps(20):
            log_q, log_p, log_r = (density(*map(mpf, parameters)) for _, density, parameters in triple)
            exact = float(mp.log(mp.quad(lambda x: mp.exp(log_q(x) + log_r(x) - log_p(x)), breaks)))  # noqa: B023
        actual = reduce(*distributions, method="quadrature")
        assert actual.delta_evidence.item() == pytest.approx(exact, rel=1e-8, abs=1e-8)


def test_gradients_in_all_parameters() -> None:
    def delta_evidence(loc: Tensor, scale: Tensor, prior: Tensor, shape: Tensor, rate: Tensor) -> Tensor:
        q = transformed(loc, scale, constraints.positive)
        return log_evidence_change(q, dist.HalfCauchy(prior), dist.Gamma(shape, rate))

    parameters = [double(0.0, 1.0), double(0.3, 0.5), double(1.0), double(2.0, 1.0), double(3.0, 0.7)]
    assert torch.autograd.gradcheck(delta_evidence, [x.requires_grad_() for x in parameters])


def test_gradients_in_the_ends_of_a_support() -> None:
    def delta_evidence(low: Tensor, high: Tensor) -> Tensor:
        return log_evidence_change(
            dist.Cauchy(scalar(0.2), 0.5), dist.Cauchy(scalar(0.0), 1.0), dist.Uniform(low, high)
        )

    assert torch.autograd.gradcheck(delta_evidence, [scalar(-0.5).requires_grad_(), scalar(0.7).requires_grad_()])


def test_events_of_independent_elements_sum() -> None:
    q = dist.StudentT(4.0, double(0.3, 0.1), 1.0)
    p, r = dist.Cauchy(double(0.0, 0.0), 1.0), dist.Normal(double(0.0, 0.0), 0.3)
    reduced = reduce(q.to_event(1), p.to_event(1), r.to_event(1))
    torch.testing.assert_close(reduced.delta_evidence, log_evidence_change(q, p, r).sum())
    assert reduced.posterior.event_shape == (2,)


def test_single_precision() -> None:
    q, p, r = (
        dist.LogNormal(torch.zeros(3), 0.3),
        dist.HalfCauchy(torch.ones(3)),
        dist.Gamma(torch.tensor([1.0, 2.0, 3.0]), 1.0),
    )
    wide = [dist.LogNormal(double(0, 0, 0), 0.3), dist.HalfCauchy(double(1, 1, 1)), dist.Gamma(double(1, 2, 3), 1.0)]
    reduced = reduce(q, p, r)
    assert reduced.delta_evidence.dtype == torch.float32
    torch.testing.assert_close(reduced.delta_evidence.double(), log_evidence_change(*wide), rtol=1e-5, atol=1e-5)


def reweighted() -> tuple[ReweightedDistribution, dist.Normal]:
    """A reweighted distribution that is a normal one."""
    q, p, r = (
        dist.Normal(double(1.0, -2.0, 0.0), double(1.0, 0.5, 1e-3)),
        dist.Normal(0.0, 2.0),
        dist.Normal(scalar(0.3), 1.5),
    )
    posterior = reduce(q, p, r, method="quadrature").posterior
    precision = q.scale**-2 + r.scale**-2 - 0.25
    return posterior, dist.Normal((q.loc / q.scale**2 + r.loc / r.scale**2) / precision, precision**-0.5)


def test_moments_and_quantiles() -> None:
    posterior, exact = reweighted()
    torch.testing.assert_close(posterior.mean, exact.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(posterior.variance, exact.variance, rtol=1e-10, atol=0)
    levels = torch.linspace(1e-6, 1 - 1e-6, 101, dtype=torch.float64).unsqueeze(-1).expand(101, 3)
    x = exact.icdf(levels)
    torch.testing.assert_close(posterior.log_prob(x), exact.log_prob(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(posterior.cdf(x), levels, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(posterior.icdf(levels), x, rtol=1e-8, atol=1e-9)
    assert posterior.icdf(torch.tensor(0.5, dtype=torch.float64)).shape == (3,)


def test_draws_are_from_it() -> None:
    posterior, exact = reweighted()
    draws = posterior.sample((4000,))
    for k in range(3):
        test = scipy.stats.kstest(exact.cdf(draws)[:, k].numpy(), "uniform")
        assert test.pvalue > 1e-3


def test_gradients_of_cdf_quantiles_and_moments() -> None:
    def functions(loc: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        q, r = dist.Normal(loc, 0.7), dist.Laplace(scalar(0.0), scale)
        posterior = reduce(q, dist.Cauchy(scalar(0.0), 2.0), r).posterior
        x = scalar(0.4)
        return posterior.cdf(x), posterior.icdf(x), posterior.mean, posterior.variance, posterior.log_prob(x)

    parameters = [scalar(0.8).requires_grad_(), scalar(0.5).requires_grad_()]
    assert torch.autograd.gradcheck(functions, parameters)
    # the value's own gradients: the density, and one over the density
    posterior, _ = reweighted()
    x = double(0.4, -1.0, 1e-4).requires_grad_()
    (slope,) = torch.autograd.grad(posterior.cdf(x).sum(), x)
    torch.testing.assert_close(slope, posterior.log_prob(x).exp(), rtol=1e-9, atol=0)
    level = double(0.4, 0.1, 0.9).requires_grad_()
    (slope,) = torch.autograd.grad(posterior.icdf(level).sum(), level)
    torch.testing.assert_close(slope, (-posterior.log_prob(posterior.icdf(level))).exp(), rtol=1e-7, atol=0)


def test_pathwise_gradients_of_draws() -> None:
    loc = scalar(0.5).requires_grad_()
    posterior = reduce(
        dist.Normal(loc, 1.0), dist.Normal(0.0, 2.0), dist.Normal(scalar(0.0), 1.0), method="quadrature"
    ).posterior
    (slope,) = torch.autograd.grad(posterior.rsample((50,)).mean(), loc)
    torch.testing.assert_close(slope, scalar(1 / 1.75), rtol=1e-8, atol=0)  # every draw moves with the mean


def test_densities_that_pile_up_at_both_ends() -> None:
    # As of a normal on an interval with negative precision: exp(lambda x^2 / 2) on [-1, 1].
    for curvature in (1.0, 50.0, 2000.0):
        scale = scalar(curvature**-0.5)

        class Bowl(dist.Uniform):
            def log_prob(self, value: Tensor) -> Tensor:
                return super().log_prob(value) - dist.Normal(scalar(0.0), scale).log_prob(value)  # noqa: B023

        box = dist.Uniform(scalar(-1.0), scalar(1.0), validate_args=False)
        bowl = Bowl(scalar(-1.0), scalar(1.0))
        log_evidence = reduce(bowl, box, box, method="quadrature").delta_evidence
        posterior = ReweightedDistribution(bowl, box, box, log_evidence)
        with mp.workdps(30):
            mass = mp.quad(lambda x: mp.exp(curvature * (x * x - 1) / 2), [-1, 0, 1])  # noqa: B023
            square = mp.quad(lambda x: x * x * mp.exp(curvature * (x * x - 1) / 2), [-1, 0, 1])  # noqa: B023
            part = mp.quad(lambda x: mp.exp(curvature * (x * x - 1) / 2), [-1, -0.99])  # noqa: B023
        assert posterior.mean.item() == pytest.approx(0, abs=1e-12)
        assert posterior.variance.item() == pytest.approx(float(square / mass), rel=1e-10)
        assert posterior.cdf(scalar(-0.99)).item() == pytest.approx(float(part / mass), rel=1e-9)
        levels = double(1e-9, 0.1, 0.499, 0.501, 0.9, 1 - 1e-9)
        torch.testing.assert_close(posterior.cdf(posterior.icdf(levels)), levels, rtol=1e-9, atol=1e-12)
        draws = posterior.sample((1000,))
        assert ((draws > -1) & (draws < 1)).all()


def test_it_behaves_as_a_pyro_distribution() -> None:
    posterior, _ = reweighted()
    assert posterior.batch_shape == (3,)
    assert posterior.event_shape == ()
    assert posterior.expand([5, 3]).sample((2,)).shape == (2, 5, 3)
    assert posterior.to_event(1).log_prob(torch.zeros(3, dtype=torch.float64)).shape == ()
    assert posterior.support == constraints.real
    assert posterior.mask(torch.tensor([True, False, True])).log_prob(double(0.0, 0.0, 0.0))[1] == 0
    assert posterior.has_rsample
    copy = pickle.loads(pickle.dumps(posterior))
    torch.testing.assert_close(copy.mean, posterior.mean)

    def model() -> Tensor:
        with pyro.plate("elements", 3):
            return pyro.sample("x", posterior)

    assert pyro.poutine.trace(model).get_trace().log_prob_sum().isfinite()


def test_values_outside_its_support_are_refused() -> None:
    q, p, r = dist.Gamma(scalar(2.0), 1.0), dist.HalfCauchy(scalar(1.0)), dist.Uniform(scalar(0.5), scalar(1.0))
    posterior = reduce(q, p, r).posterior
    bounds = posterior.support
    assert (bounds.lower_bound, bounds.upper_bound) == (0.5, 1.0)
    with pytest.raises(ValueError, match="within the support"):
        posterior.log_prob(scalar(1.5))
    assert posterior.cdf(scalar(1.0)).item() == pytest.approx(1)
    assert posterior.cdf(scalar(0.5)).item() == pytest.approx(0, abs=1e-12)


def test_it_keeps_the_evidence_it_is_given() -> None:
    q, p, r = (dist.Normal(scalar(0.0), s) for s in (1.0, 2.0, 1.0))
    exact = scalar(-math.log(7 / 4) / 2 + math.log(2))
    posterior = ReweightedDistribution(q, p, r, exact)
    assert posterior.log_evidence == exact
    total = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    assert torch.trapezoid(posterior.log_prob(total).exp(), total).item() == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_one_of_a_batch_cannot_be_evaluated_it_has_no_mass(dtype: torch.dtype) -> None:
    """Weibull distributions next to 0, where torch's density of the larger is 0 / 0, and the smaller has its mass."""
    k, scales = torch.full((3,), 2.0, dtype=dtype), torch.tensor([0.5, 1.0, 1.5], dtype=dtype, requires_grad=True)
    priors = dist.Weibull(2.0 * torch.ones_like(k), k), dist.Weibull(torch.ones_like(k), k)
    reduced = reduce(dist.Weibull(scales, k), *priors).posterior
    assert isinstance(reduced, ReweightedDistribution)
    exact = dist.Weibull((scales**-2 + 1.0 - 0.25) ** -0.5, k)
    torch.testing.assert_close(reduced.mean, exact.mean, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(reduced.variance, exact.variance, rtol=1e-3, atol=0.0)
    tiny = torch.full((3,), 1e-25, dtype=dtype)
    torch.testing.assert_close(reduced.cdf(tiny), torch.zeros_like(tiny), rtol=0.0, atol=1e-12)
    (slope,) = torch.autograd.grad(reduced.mean.sum(), scales)
    torch.testing.assert_close(slope, torch.autograd.grad(exact.mean.sum(), scales)[0], rtol=1e-3, atol=0.0)
