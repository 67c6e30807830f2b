# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.autograd import gradcheck
from torch.distributions import constraints, kl_divergence
from torch.distributions.transforms import ExpTransform

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal, TruncatedNormal
from pyro_bmrs.distributions.numerics.normal_quadrature import gauss_legendre

INF = math.inf


def number(value):
    return torch.tensor(value, dtype=torch.float64)


# On [0, 1], on the half line and on the line.
INSIDE = [
    TruncatedNormal(number(0.3), 0.5, 0.0, 1.0),
    TruncatedNormal(number(-30.0), 1.0, 0.1, 0.9),
    TruncatedNormal(number(30.0), 1.0, 0.1, 1.0),
    TruncatedNormal(number(0.2), 1e3, 0.2, 0.9),
    dist.Uniform(number(0.0), 1.0),
    dist.Uniform(number(0.2), 0.5),
]
HALF_LINES = [
    dist.HalfNormal(number(0.7)),
    TruncatedNormal(number(-5.0), 1.0, 0.0, INF),
    TruncatedNormal(number(0.2), 0.4, 0.0, INF),
]
LINES = [dist.Normal(number(0.4), 0.6), TruncatedNormal(number(-0.4), 1.5, -INF, INF)]
OURS = (TruncatedNormal, dist.Uniform)


def integrated_divergence(p, q):
    """By quadrature of f_p log(f_p / f_q) between quantiles of p, in many pieces."""
    nodes, weights = (number(values) for values in gauss_legendre(20))
    edges = p.icdf(torch.cat([number([1e-17, 1e-12, 1e-8]), torch.linspace(1e-5, 1, 101, dtype=torch.float64)]))
    if edges[-1].isinf():
        edges[-1] = p.icdf(number(1 - 1e-13))
    starts, widths = edges[:-1, None], edges.diff()[:, None]
    x = (starts + widths * nodes).clamp(max=edges[-1] * (1 - 1e-16))
    log_p = p.log_prob(x)
    return (widths * weights * log_p.exp() * (log_p - q.log_prob(x))).sum().item()


def describe(value):
    return type(value).__name__


@pytest.mark.parametrize("p", INSIDE, ids=describe)
@pytest.mark.parametrize("q", INSIDE[:1] + INSIDE[4:5] + HALF_LINES + LINES, ids=describe)
def test_against_numerical_integration_on_bounded_intervals(p, q):
    assert kl_divergence(p, q).item() == pytest.approx(integrated_divergence(p, q), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("p", HALF_LINES, ids=describe)
@pytest.mark.parametrize("q", HALF_LINES + LINES[1:], ids=describe)
def test_against_numerical_integration_on_half_lines(p, q):
    assert kl_divergence(p, q).item() == pytest.approx(integrated_divergence(p, q), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("p", INSIDE + HALF_LINES + LINES, ids=describe)
def test_it_is_zero_from_itself(p):
    assert abs(kl_divergence(p, p).item()) < 1e-12


@pytest.mark.parametrize(
    "p, q",
    [
        (TruncatedNormal(0.3, 0.5, 0.0, 1.0), TruncatedNormal(0.3, 0.5, 0.0, 0.9)),
        (TruncatedNormal(0.3, 0.5, 0.0, 1.0), dist.Uniform(0.1, 1.0)),
        (TruncatedNormal(0.3, 0.5, -0.1, 1.0), dist.HalfNormal(1.0)),
        (dist.Normal(0.0, 1.0), TruncatedNormal(0.3, 0.5, 0.0, 1.0)),
        (dist.Normal(0.0, 1.0), TruncatedNormal(0.3, 0.5, 0.0, INF)),
        (dist.HalfNormal(1.0), TruncatedNormal(0.3, 0.5, 0.0, 9.0)),
        (dist.HalfNormal(1.0), dist.Uniform(0.0, 9.0)),
        (dist.Uniform(-0.1, 1.0), dist.HalfNormal(1.0)),
        (dist.Uniform(0.0, 1.0), TruncatedNormal(0.3, 0.5, 0.5, 1.0)),
    ],
    ids=describe,
)
def test_it_is_infinite_where_the_support_leaves_the_other(p, q):
    assert kl_divergence(p, q) == INF


def test_ends_that_differ_by_rounding_are_the_same():
    low = torch.tensor(-20.0)
    p = TruncatedNormal(0.3, 0.5, low, 1.0)
    assert kl_divergence(p, dist.Uniform(torch.nextafter(low, torch.tensor(0.0)), 1.0)).isfinite()


def test_log_distributions_have_the_divergence_of_their_logarithms():
    low, high = number(math.exp(-20)), 1.0
    p = TruncatedLogNormal(number([-3.0, -25.0, 4.0]), 0.7, low, high)
    others = [
        (LogUniform(low, high), dist.Uniform(low.log(), 0.0)),
        (TruncatedLogNormal(number(-20.0), 1e-2, low, high), TruncatedNormal(number(-20.0), 1e-2, low.log(), 0.0)),
        (dist.LogNormal(number(-1.0), 2.0), dist.Normal(number(-1.0), 2.0)),
        (
            dist.TransformedDistribution(dist.Normal(number(-1.0), 2.0), [ExpTransform()]),
            dist.Normal(number(-1.0), 2.0),
        ),
    ]
    for q, log_q in others:
        torch.testing.assert_close(kl_divergence(p, q), kl_divergence(p.base_dist, log_q))
        assert kl_divergence(p, q).shape == (3,)
    uniform = LogUniform(number(1e-3), 0.5)
    assert kl_divergence(uniform, LogUniform(low, high)).item() == pytest.approx(math.log(20 / math.log(500)))
    assert kl_divergence(LogUniform(low, high), uniform) == INF
    assert kl_divergence(uniform, p).isfinite().all()


def test_inside_independent_and_masked_wrappers():
    p = TruncatedLogNormal(torch.tensor([[-3.0, -1.0, 2.0]]), 0.7, 1e-3, 1.0).expand([2, 3])
    q = LogUniform(1e-3, 1.0).expand([2, 3])
    divergence = kl_divergence(p, q)
    torch.testing.assert_close(kl_divergence(p.to_event(1), q.to_event(1)), divergence.sum(-1))
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(kl_divergence(p.mask(mask), q.mask(mask)), divergence * mask)


PAIRS = [
    (p, q)
    for p, q in itertools.product(["truncated", "uniform", "half"], ["truncated", "normal", "half", "uniform"])
    if (p == "truncated" or q == "truncated" or {p, q} == {"uniform", "half"}) and (p, q) != ("half", "uniform")
]


@pytest.mark.parametrize("p, q", PAIRS)
def test_gradients_agree_with_finite_differences(p, q):
    parameters = [number(value).requires_grad_() for value in (0.3, 0.5, 0.1, 0.9, -0.7, 1.3, 0.05, 1.1)]

    def build(kind, loc, scale, low, high, whole):
        if kind == "truncated":
            return TruncatedNormal(loc, scale, 0.0, INF) if whole else TruncatedNormal(loc, scale, low, high)
        if kind == "uniform":
            return dist.Uniform(low, high)
        return dist.HalfNormal(scale) if kind == "half" else dist.Normal(loc, scale)

    def divergence(*parameters):
        return kl_divergence(build(p, *parameters[:4], False), build(q, *parameters[4:], p == "half"))

    assert gradcheck(divergence, parameters, atol=1e-7, rtol=1e-6)


LOW, HIGH = math.exp(-20), 1.0


def test_the_mean_field_elbo_uses_the_exact_divergence(double):
    prior = LogUniform(LOW, HIGH).expand([4]).to_event(1)
    loc = torch.tensor([-3.0, -25.0, 1.0, -10.0])

    def model():
        pyro.sample("x", prior)

    def guide():
        pyro.sample("x", TruncatedLogNormal(loc, 0.8, LOW, HIGH).to_event(1))

    losses = {TraceMeanField_ELBO().loss(model, guide) for _ in range(3)}
    assert len(losses) == 1
    exact = kl_divergence(TruncatedLogNormal(loc, 0.8, LOW, HIGH), LogUniform(LOW, HIGH)).sum()
    assert losses.pop() == pytest.approx(exact.item(), rel=1e-12)


def test_gradients_of_the_two_elbos_agree(double):
    prior = LogUniform(LOW, HIGH)

    def model():
        with pyro.plate("units", 3):
            x = pyro.sample("x", prior)
            pyro.sample("y", dist.Normal(x, 0.3), obs=torch.tensor([0.2, 0.5, 0.9]))

    def guide():
        loc = pyro.param("loc", torch.tensor([-1.0, -24.0, 3.0]))
        scale = pyro.param("scale", torch.tensor([0.5, 1.0, 1.0]), constraint=constraints.positive)
        with pyro.plate("units", 3):
            pyro.sample("x", TruncatedLogNormal(loc, scale, LOW, HIGH))

    gradients = []
    for elbo in (Trace_ELBO, TraceMeanField_ELBO):
        pyro.set_rng_seed(1)
        pyro.clear_param_store()
        draws = []
        for _ in range(60):
            elbo(num_particles=100, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(model, guide)
            unconstrained = [pyro.param(name).unconstrained() for name in ("loc", "scale")]
            draws.append(torch.cat([value.grad for value in unconstrained]))
            for value in unconstrained:
                value.grad = None
        gradients.append(torch.stack(draws))
    difference = gradients[0].mean(0) - gradients[1].mean(0)
    error = ((gradients[0].var(0) + gradients[1].var(0)) / 60).sqrt()
    assert (difference.abs() < 5 * error).all()
