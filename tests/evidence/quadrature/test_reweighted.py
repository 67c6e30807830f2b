# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from random import Random

import mpmath as mp
import pyro.distributions as dist
import pytest
import torch
from mpmath import mpf
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_bmrs import ReductionError, ReductionWarning
from pyro_bmrs.evidence import log_evidence_change, reduce
from tests.evidence.numerical import CASES, LogDensity, tensors


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


def normal(loc: mpf, scale: mpf) -> LogDensity:
    constant = -mp.log(scale) - mp.log(2 * mp.pi) / 2
    return lambda x: constant - ((x - loc) / scale) ** 2 / 2


def log_normal(loc: mpf, scale: mpf) -> LogDensity:
    density = normal(loc, scale)
    return lambda x: density(mp.log(x)) - mp.log(x)


def cauchy(scale: mpf) -> LogDensity:
    return lambda x: mp.log(scale / mp.pi) - mp.log(scale**2 + x**2)


def half_cauchy(scale: mpf) -> LogDensity:
    density = cauchy(scale)
    return lambda x: density(x) + mp.log(2)


def student(df: mpf) -> LogDensity:
    constant = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(df * mp.pi) / 2
    return lambda x: constant - (df + 1) / 2 * mp.log1p(x * x / df)


def laplace(scale: mpf) -> LogDensity:
    return lambda x: -mp.log(2 * scale) - abs(x) / scale


def logistic(loc: mpf, scale: mpf) -> LogDensity:
    return lambda x: -(x - loc) / scale - mp.log(scale) - 2 * mp.log1p(mp.exp(-(x - loc) / scale))


def gumbel(loc: mpf, scale: mpf) -> LogDensity:
    return lambda x: -(x - loc) / scale - mp.exp(-(x - loc) / scale) - mp.log(scale)


def weibull(scale: mpf, shape: mpf) -> LogDensity:
    return lambda x: mp.log(shape / scale) + (shape - 1) * mp.log(x / scale) - (x / scale) ** shape


def gamma(a: mpf, b: mpf) -> LogDensity:
    return CASES["Gamma"].log_density(a, b)


def beta(a: mpf, b: mpf) -> LogDensity:
    return CASES["Beta"].log_density(a, b)


def logit_normal(loc: mpf, scale: mpf) -> LogDensity:
    density = normal(loc, scale)
    return lambda x: density(mp.log(x) - mp.log1p(-x)) - mp.log(x) - mp.log1p(-x)


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


def gaussian_change(q: tuple[float, float], p: tuple[float, float], r: tuple[float, float]) -> float:
    with mp.workdps(60):
        (mq, sq), (m_p, sp), (mr, sr) = ([mpf(x) for x in pair] for pair in (q, p, r))
        lq, lp, lr = sq**-2, sp**-2, sr**-2
        ls = lq + lr - lp
        squares = lq * lr * (mq - mr) ** 2 - lq * lp * (mq - m_p) ** 2 - lr * lp * (mr - m_p) ** 2
        return float((mp.log(lq * lr / (lp * ls)) - squares / ls) / 2)


@pytest.mark.parametrize(
    ("q", "p", "r"),
    [
        ((0.0, 1.0), (0.0, 2.0), (3.0, 1e-6)),  # a spike in the flank
        ((0.0, 1.0), (0.0, 2.0), (0.0, 1e-8)),
        ((0.0, 1e-2), (0.0, 2.0), (1.0, 1e-2)),  # all mass where neither of the two has any
        ((1.0, 1e-6), (0.0, 1e6), (0.0, 1e-2)),
        ((100.0, 1.0), (0.0, 1e3), (0.0, 1e-6)),
        ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0)),
        ((-1e4, 3.0), (0.0, 1e5), (-1e4, 1.0)),
        ((0.0, 2.0), (0.0, 1.0), (0.0, 0.9)),
    ],
)
def test_mass_is_found_wherever_it_is(q, p, r) -> None:
    triple = [dist.Normal(scalar(loc), scalar(scale)) for loc, scale in (q, p, r)]
    actual = reduce(*triple, method="quadrature")
    assert actual.delta_evidence.item() == pytest.approx(gaussian_change(q, p, r), rel=1e-10, abs=1e-8)
    assert actual.posterior.mean.item() == pytest.approx(gaussian_mean(q, p, r), rel=1e-8, abs=1e-8 * r[1])


def gaussian_mean(q, p, r) -> float:
    with mp.workdps(60):
        weights = [mpf(s) ** -2 for _, s in (q, r, p)]
        weights[2] = -weights[2]
        return float(mp.fsum(w * mpf(m) for w, (m, _) in zip(weights, (q, r, p))) / mp.fsum(weights))


def test_a_light_narrow_component_of_a_mixture_is_found() -> None:
    weight, scale = 1e-3, 1e-7
    components = dist.Normal(double(0.0, 0.6543), double(1.0, scale))
    mixture = dist.MixtureSameFamily(dist.Categorical(double(1 - weight, weight)), components)
    q, p = dist.Normal(scalar(0.3), 0.5), dist.Normal(scalar(0.0), 2.0)
    broad = log_evidence_change(q, p, dist.Normal(scalar(0.0), 1.0))
    narrow = log_evidence_change(q, p, dist.Normal(scalar(0.6543), scalar(scale)))
    exact = torch.logaddexp(broad + math.log1p(-weight), narrow + math.log(weight))
    torch.testing.assert_close(log_evidence_change(q, p, mixture), exact, rtol=0, atol=1e-8)
    # ... and behind a transform that hides it
    logs = [dist.TransformedDistribution(d, [torch.distributions.ExpTransform()]) for d in (q, p, mixture)]
    torch.testing.assert_close(log_evidence_change(*logs, method="quadrature"), exact, rtol=0, atol=1e-8)


def test_a_batch_holds_elements_of_every_scale() -> None:
    scale = torch.logspace(-6, 6, 13, dtype=torch.float64)
    q, p, r = dist.Cauchy(scale, scale), dist.Cauchy(0 * scale, 2 * scale), dist.Normal(0 * scale, 0.1 * scale)
    # The change in evidence knows no unit.
    actual = log_evidence_change(q, p, r)
    torch.testing.assert_close(actual, actual[6].expand(13), rtol=1e-9, atol=1e-9)


def test_supports_differ_from_element_to_element() -> None:
    r = dist.Uniform(double(-1.0, 0.0, 2.0), double(1.0, 0.5, 2.5))
    actual = log_evidence_change(dist.StudentT(4.0, double(0.3), 1.0), dist.Cauchy(double(0.0), 1.0), r)
    for k, (low, high) in enumerate(zip(r.low.tolist(), r.high.tolist())):
        with mp.workdps(20):
            log_q, log_p = student(mpf(4)), cauchy(mpf(1))
            integral = mp.quad(lambda x: mp.exp(log_q(x - mpf(0.3)) - log_p(x)), [low, high])  # noqa: B023
            assert actual[k].item() == pytest.approx(float(mp.log(integral / (high - low))), abs=1e-9)


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


class Rough(dist.Normal):
    """A standard normal with a kink and a jump that nothing tells of."""

    def __init__(self, kink: float, jump: float) -> None:
        self.kink, self.jump = kink, jump
        super().__init__(scalar(0.0), scalar(1.0))

    def log_prob(self, value: Tensor) -> Tensor:
        rough = self.kink * (value - 0.1234).abs() + self.jump * (value > 0.5678)
        return super().log_prob(value) - rough


@pytest.mark.parametrize(("kink", "jump"), [(3.0, 0.0), (0.0, 1.0), (1.0, -1.0)])
def test_kinks_and_jumps_are_found(kink: float, jump: float) -> None:
    p = dist.Normal(scalar(0.0), scalar(2.0))
    actual = reduce(Rough(kink, jump), p, p, method="quadrature").delta_evidence.item()
    with mp.workdps(20):
        log_normal = normal(mpf(0), mpf(1))
        exact = mp.quad(
            lambda x: mp.exp(log_normal(x) - kink * abs(x - mpf(0.1234)) - jump * (x > 0.5678)),
            [-mp.inf, 0.1234, 0.5678, mp.inf],
        )
    assert actual == pytest.approx(float(mp.log(exact)), abs=1e-9)


class TestErrors:
    @pytest.mark.parametrize(
        "triple",
        [
            (dist.Normal(double(0.0, 0.0), double(0.5, 2.0)), dist.Normal(0.0, 1.0), dist.Normal(0.0, 3.0)),
            (dist.LogNormal(double(0.0), 1.0), dist.Gamma(1.0, 1.0), dist.HalfCauchy(1.0)),
            (dist.StudentT(2.0, double(0.0), 1.0), dist.Normal(0.0, 1.0), dist.Normal(0.0, 2.0)),
        ],
    )
    def test_an_integral_that_diverges_is_refused(self, triple) -> None:
        with pytest.raises(ReductionError, match="evidence integral diverges.* at 1 of"):
            reduce(*triple, method="quadrature")

    def test_a_logarithmic_divergence_is_refused(self) -> None:
        # x^-2 of the posterior and of r over x^-3 of the prior: the integrand falls off as 1/x.
        with pytest.raises(ReductionError, match="diverges"):
            reduce(dist.Cauchy(scalar(0.0), 1.0), dist.StudentT(2.0, scalar(0.0), 1.0), dist.Cauchy(scalar(0.0), 1.0))

    def test_a_reduced_prior_beyond_the_prior_is_refused(self) -> None:
        with pytest.raises(ReductionError, match="support of the reduced prior leaves the prior's at 1 of 1"):
            reduce(dist.LogNormal(scalar(0.0), 1.0), dist.HalfCauchy(scalar(1.0)), dist.Cauchy(scalar(0.0), 1.0))

    def test_supports_that_do_not_overlap_are_refused(self) -> None:
        prior = dist.Cauchy(scalar(0.0), 1.0)
        with pytest.raises(ReductionError, match="do not overlap at 1 of 2"):
            reduce(dist.Beta(scalar(2.0), 2.0), prior, dist.Uniform(double(2.0, 0.5), 3.0))

    def test_joint_and_discrete_distributions_are_refused(self) -> None:
        joint = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
        for distribution in (joint, dist.Poisson(1.0)):
            with pytest.raises(ReductionError, match="Quadrature takes continuous distributions of scalars"):
                reduce(distribution, distribution, distribution, method="quadrature")

    def test_an_improper_prior_is_refused(self) -> None:
        improper = dist.ImproperUniform(constraints.real, (), ())
        with pytest.raises(ReductionError, match="The prior is improper"):
            reduce(dist.Normal(0.0, 1.0), improper, dist.Normal(0.0, 1.0))

    def test_doubt_is_told(self) -> None:
        # So far from each other and so narrow that the log density, of 10^11 nats, is rounded to 10^-5.
        q, p, r = (dist.Normal(scalar(m), scalar(s)) for m, s in ((0.0, 1e-6), (0.0, 2.0), (1.0, 1e-6)))
        with pytest.warns(ReductionWarning, match="Quadrature may be wrong by .*e-05 nats"):
            reduce(q, p, r, method="quadrature")
