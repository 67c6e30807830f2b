# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Where a density has its mass, and what integrals are refused."""

from __future__ import annotations

import math

import mpmath as mp
import pyro.distributions as dist
import pytest
import torch
from mpmath import mpf
from torch import Tensor
from torch.distributions import constraints

from pyro_bmrs import ReductionError, ReductionWarning
from pyro_bmrs.evidence import log_evidence_change, reduce
from tests.evidence.log_densities import cauchy, normal, student


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


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
        with pytest.raises(ReductionError, match="reduced prior's support leaves the prior's at 1 of 1"):
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

    @pytest.mark.parametrize("make", [lambda s: dist.LogNormal(scalar(0.0), s), lambda s: dist.Gamma(1 / s, 1 / s)])
    def test_a_density_narrower_than_numbers_are_apart_is_in_doubt(self, make) -> None:
        q, p = dist.LogNormal(scalar(0.1), 0.3), dist.Gamma(scalar(2.0), 1.0)
        resolved = reduce(q, p, dist.LogNormal(scalar(0.0), 1e-5)).delta_evidence
        # The limit is the ratio of the densities at 1.
        assert resolved.item() == pytest.approx(float(q.log_prob(scalar(1.0)) - p.log_prob(scalar(1.0))), abs=1e-8)
        with pytest.warns(ReductionWarning, match="narrower than numbers are apart"):
            reduce(q, p, make(scalar(1e-18)))
