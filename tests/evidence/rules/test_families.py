# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
import math
from random import Random

import mpmath as mp
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from pyro_bmrs import ReductionError
from pyro_bmrs.evidence import log_evidence_change, reduce, reduced_posterior
from tests.evidence.numerical import CASES, Case, tensors

each_family = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def build(case: Case, count: int, requires_grad: bool = False):
    roles = [tensors(role, requires_grad) for role in zip(*case.triples(count), strict=True)]
    return [case.build(*role) for role in roles], [parameter for role in roles for parameter in role]


@each_family
def test_fifty_triples_agree_with_numerical_integrals(case: Case) -> None:
    (q, p, r), _ = build(case, 50)
    exact = double(*(case.log_mean_ratio(*triple) for triple in case.triples(50)))
    torch.testing.assert_close(log_evidence_change(q, p, r, method="exact"), exact, rtol=1e-9, atol=1e-9)


@each_family
def test_gradients_in_all_parameters(case: Case) -> None:
    _, parameters = build(case, 4, requires_grad=True)
    each = len(parameters) // 3

    def delta_evidence(*parameters: Tensor) -> Tensor:
        triple = (case.build(*parameters[i : i + each]) for i in (0, each, 2 * each))
        return log_evidence_change(*triple, method="exact")

    assert torch.autograd.gradcheck(delta_evidence, parameters)


@each_family
def test_reduced_posterior_is_the_normalised_product(case: Case) -> None:
    (q, p, r), _ = build(case, 20)
    reduced = reduce(q, p, r, method="exact")
    x = q.sample((30,))
    product = q.log_prob(x) + r.log_prob(x) - p.log_prob(x) - reduced.delta_evidence
    tolerance = case.tolerance_of_torch
    torch.testing.assert_close(reduced.posterior.log_prob(x), product, rtol=tolerance, atol=tolerance)
    assert type(reduced.posterior) is type(q)


@each_family
def test_nothing_changes_where_two_of_the_three_are_the_same(case: Case) -> None:
    (q, p, r), _ = build(case, 20)
    assert (log_evidence_change(p, p, r) == 0).all()
    assert (log_evidence_change(q, p, p) == 0).all()
    x = q.sample((10,))
    torch.testing.assert_close(reduced_posterior(q, p, p).log_prob(x), q.log_prob(x), rtol=1e-12, atol=1e-12)


@each_family
def test_single_precision_stays_single(case: Case) -> None:
    (q, p, r), _ = build(case, 20)
    narrow = [case.build(*(t.float() for t in tensors(role))) for role in zip(*case.triples(20), strict=True)]
    reduced = reduce(*narrow)
    assert reduced.delta_evidence.dtype == torch.float32
    assert reduced.posterior.sample().dtype == torch.float32
    torch.testing.assert_close(reduced.delta_evidence.double(), log_evidence_change(q, p, r), rtol=1e-4, atol=1e-4)


@pytest.mark.no_cover
def test_dirichlet_agrees_with_integrals_over_the_simplex() -> None:
    random = Random(1)
    for _ in range(50):
        p = [random.uniform(0.5, 3) for _ in range(3)]
        q = [x + random.uniform(0, 9) for x in p]
        r = [random.uniform(0.5, 5) for _ in range(3)]
        a, b, c = (x + y - z for x, y, z in zip(q, r, p))

        def log_normaliser(alpha: list[float]) -> mp.mpf:
            return mp.fsum(map(mp.loggamma, alpha)) - mp.loggamma(mp.fsum(alpha))

        # Broken like a stick, (u, (1 - u) v, (1 - u) (1 - v)), the integral over the simplex falls into two, of powers.
        first = quad(lambda u: 1.0, 0, 1, weight="alg", wvar=(a - 1, b + c - 1), epsabs=0)[0]
        second = quad(lambda v: 1.0, 0, 1, weight="alg", wvar=(b - 1, c - 1), epsabs=0)[0]
        exact = mp.log(first * second) - log_normaliser(q) - log_normaliser(r) + log_normaliser(p)
        triple = (dist.Dirichlet(double(*alpha)) for alpha in (q, p, r))
        assert log_evidence_change(*triple).item() == pytest.approx(float(exact), rel=1e-9, abs=1e-9)


def test_dirichlet_gradients_and_posterior() -> None:
    p = torch.rand(5, 3, dtype=torch.float64) + 0.5
    q = p + torch.rand(5, 3, dtype=torch.float64) * 4
    r = torch.rand(5, 3, dtype=torch.float64) * 4 + 0.2
    parameters = [x.requires_grad_() for x in (q, p, r)]
    assert torch.autograd.gradcheck(lambda *a: log_evidence_change(*map(dist.Dirichlet, a)), parameters)
    triple = [dist.Dirichlet(x.detach()) for x in parameters]
    check_product(*triple)


def check_product(q, p, r, x: Tensor | None = None) -> None:
    reduced = reduce(q, p, r, method="exact")
    x = q.sample((30,)) if x is None else x
    product = q.log_prob(x) + r.log_prob(x) - p.log_prob(x) - reduced.delta_evidence
    torch.testing.assert_close(reduced.posterior.log_prob(x), product, rtol=1e-9, atol=1e-9)


def random_logits(*shape: int) -> list[Tensor]:
    return [3 * torch.randn(shape, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize(
    "family",
    [
        lambda logits: dist.Categorical(logits=logits),
        lambda logits: dist.Categorical(probs=logits.exp()),
        lambda logits: dist.OneHotCategorical(logits=logits),
        lambda logits: dist.OneHotCategorical(probs=logits.exp()),
        lambda logits: dist.OneHotCategoricalStraightThrough(logits=logits),
        lambda logits: dist.Multinomial(3, logits=logits),
        lambda logits: dist.Multinomial(3, probs=logits.exp()),
    ],
)
def test_categorical_families_are_finite_sums(family) -> None:
    logits = random_logits(50, 4)
    q, p, r = map(family, logits)
    count = getattr(q, "total_count", 1)
    log_q, log_p, log_r = (x.log_softmax(-1) for x in logits)
    exact = count * (log_q + log_r - log_p).exp().sum(-1).log()
    torch.testing.assert_close(log_evidence_change(q, p, r, method="exact"), exact, rtol=1e-10, atol=1e-10)
    check_product(q, p, r)
    narrow = [x[:3].clone().requires_grad_() for x in logits]
    assert torch.autograd.gradcheck(lambda *a: log_evidence_change(*map(family, a)), narrow)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_wishart_is_the_normalised_product(size: int) -> None:
    eye = torch.eye(size, dtype=torch.float64)

    def spread(scale: float) -> Tensor:
        half = torch.randn(6, size, size, dtype=torch.float64)
        return scale * eye + 0.2 * half @ half.mT

    p = dist.Wishart(double(size + 1.5), precision_matrix=spread(1.0))
    q = dist.Wishart(p.df + 3.7, precision_matrix=p.precision_matrix + spread(0.5))
    r = dist.Wishart(double(size + 2.2), precision_matrix=spread(2.0))
    check_product(q, p, r, torch.stack([spread(scale) for scale in (0.3, 1.0, 3.0)]))

    def delta_evidence(*parameters: Tensor) -> Tensor:
        dfs, halves = parameters[:3], parameters[3:]
        matrices = [half @ half.mT + eye for half in halves]
        matrices[0] = matrices[0] + matrices[1]
        triple = (dist.Wishart(df, precision_matrix=matrix) for df, matrix in zip(dfs, matrices))
        return log_evidence_change(*triple)

    dfs = [double(size + 6.0), double(size + 1.5), double(size + 2.2)]
    halves = [torch.randn(size, size, dtype=torch.float64) for _ in range(3)]
    assert torch.autograd.gradcheck(delta_evidence, [x.requires_grad_() for x in dfs + halves])


def test_wishart_of_one_dimension_is_a_gamma() -> None:
    for seed in range(10):
        random = Random(seed)
        shapes, rates = ([random.uniform(1.0, 4.0) for _ in range(3)] for _ in range(2))
        shapes[0], rates[0] = shapes[0] + shapes[1], rates[0] + rates[1]
        gammas = [dist.Gamma(double(a), double(b)) for a, b in zip(shapes, rates)]
        wisharts = [dist.Wishart(double(2 * a), precision_matrix=double(2 * b)[None]) for a, b in zip(shapes, rates)]
        torch.testing.assert_close(log_evidence_change(*wisharts), log_evidence_change(*gammas), rtol=1e-12, atol=1e-12)


def test_gamma_exponential_and_chi2_are_one_family() -> None:
    same = {
        "Gamma": lambda a, b: dist.Gamma(double(a), double(b)),
        "Exponential": lambda a, b: dist.Exponential(double(b)),
        "Chi2": lambda a, b: dist.Chi2(double(2 * a)),
    }
    for names in itertools.product(same, repeat=3):
        # Shape 1 and rate 0.5 is a gamma, an exponential and a chi-squared alike.
        triple = [same[name](1.0, 0.5) for name in names]
        reduced = reduce(*triple, method="exact")
        assert reduced.delta_evidence.item() == pytest.approx(0, abs=1e-15)
        expected = names[0] if len(set(names)) == 1 else "Gamma"
        assert type(reduced.posterior).__name__ == expected


@pytest.mark.parametrize("largest", [1e2, 1e4, 1e6])
def test_gamma_and_dirichlet_keep_nine_digits_over_nine_orders_of_magnitude(largest: float) -> None:
    random = Random(2)

    def spread() -> float:
        return math.exp(random.uniform(math.log(1e-3), math.log(largest)))

    def gamma(a: mp.mpf, b: mp.mpf) -> mp.mpf:
        return mp.loggamma(a) - a * mp.log(b)

    def dirichlet(*alpha: mp.mpf) -> mp.mpf:
        return mp.fsum(map(mp.loggamma, alpha)) - mp.loggamma(mp.fsum(alpha))

    for log_normaliser, family, size in ((gamma, lambda x: dist.Gamma(*x), 2), (dirichlet, dist.Dirichlet, 4)):
        for _ in range(100):
            p, r = ([spread() for _ in range(size)] for _ in range(2))
            q = [x + spread() for x in p]
            with mp.workdps(50):
                wide = [[mp.mpf(x) for x in natural] for natural in (q, p, r)]
                s = [x + z - y for x, y, z in zip(*wide)]
                terms = [log_normaliser(*natural) for natural in (s, *wide)]
                exact = float(terms[0] - terms[1] + terms[2] - terms[3])
            actual = log_evidence_change(*(family(double(*natural)) for natural in (q, p, r))).item()
            assert actual == pytest.approx(exact, rel=1e-9, abs=1e-9 * max(1.0, largest / 1e6 * 3))


def test_dirichlet_reductions_over_a_grid_of_counts() -> None:
    x = torch.linspace(1, 32, 128, dtype=torch.float64)
    posterior = torch.stack(torch.meshgrid(x, x, indexing="ij"), -1)
    prior, reduced_prior = double(1, 1), double(1, 8)
    actual = log_evidence_change(*map(dist.Dirichlet, (posterior, prior, reduced_prior)))

    def log_normaliser(alpha: list[mp.mpf]) -> mp.mpf:
        return mp.fsum(map(mp.loggamma, alpha)) - mp.loggamma(mp.fsum(alpha))

    for i, j in itertools.product(range(0, 128, 21), repeat=2):
        with mp.workdps(40):
            q = [mp.mpf(x[i].item()), mp.mpf(x[j].item())]
            p, r = [mp.mpf(1), mp.mpf(1)], [mp.mpf(1), mp.mpf(8)]
            s = [a + c - b for a, b, c in zip(q, p, r)]
            exact = log_normaliser(s) - log_normaliser(q) + log_normaliser(p) - log_normaliser(r)
        assert actual[i, j].item() == pytest.approx(float(exact), rel=1e-12, abs=1e-12)


def exact_evidence(family, prior: list[float], counts: list[float]) -> mp.mpf:
    """The log marginal likelihood of data under a conjugate prior, but for a constant that no prior changes."""
    updated = [mp.mpf(a) + n for a, n in zip(prior, counts)]
    return family(*updated) - family(*(mp.mpf(a) for a in prior))


@pytest.mark.parametrize("counts", [[3, 8], [0, 1], [1200, 4000]])
def test_beta_bernoulli_evidence_is_exact(counts: list[float]) -> None:
    def log_beta(a: mp.mpf, b: mp.mpf) -> mp.mpf:
        return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)

    prior, reduced_prior = [1.0, 2.0], [20.0, 20.0]
    posterior = dist.Beta(*(double(a + n) for a, n in zip(prior, counts)))
    exact = exact_evidence(log_beta, reduced_prior, counts) - exact_evidence(log_beta, prior, counts)
    actual = log_evidence_change(posterior, dist.Beta(*map(double, prior)), dist.Beta(*map(double, reduced_prior)))
    assert actual.item() == pytest.approx(float(exact), rel=1e-8)


@pytest.mark.parametrize("counts", [[14, 5], [0, 3], [5321, 1000]])
def test_gamma_poisson_evidence_is_exact(counts: list[float]) -> None:
    def log_gamma(a: mp.mpf, b: mp.mpf) -> mp.mpf:
        return mp.loggamma(a) - a * mp.log(b)

    prior, reduced_prior = [1.5, 0.5], [30.0, 10.0]
    posterior = dist.Gamma(*(double(a + n) for a, n in zip(prior, counts)))
    exact = exact_evidence(log_gamma, reduced_prior, counts) - exact_evidence(log_gamma, prior, counts)
    actual = log_evidence_change(posterior, dist.Gamma(*map(double, prior)), dist.Gamma(*map(double, reduced_prior)))
    assert actual.item() == pytest.approx(float(exact), rel=1e-8)


@pytest.mark.parametrize("counts", [[2, 7, 1], [0, 0, 4], [1000, 20, 3000]])
def test_dirichlet_categorical_evidence_is_exact(counts: list[float]) -> None:
    def log_dirichlet(*alpha: mp.mpf) -> mp.mpf:
        return mp.fsum(map(mp.loggamma, alpha)) - mp.loggamma(mp.fsum(alpha))

    prior, reduced_prior = [1.0, 1.0, 1.0], [9.0, 9.0, 3.0]
    posterior = dist.Dirichlet(double(*(a + n for a, n in zip(prior, counts))))
    exact = exact_evidence(log_dirichlet, reduced_prior, counts) - exact_evidence(log_dirichlet, prior, counts)
    actual = log_evidence_change(posterior, dist.Dirichlet(double(*prior)), dist.Dirichlet(double(*reduced_prior)))
    assert actual.item() == pytest.approx(float(exact), rel=1e-8)


@pytest.mark.parametrize("spelling", ["logits", "probs"])
def test_a_reduced_prior_may_rule_categories_out(spelling: str) -> None:
    q, p, r = double(0.2, 0.3, 0.5), double(0.5, 0.25, 0.25), double(0.6, 0.4, 0.0)
    parameters = [(x if spelling == "probs" else x.log()).requires_grad_() for x in (q, p, r)]
    reduced = reduce(*(dist.Categorical(**{spelling: x}) for x in parameters))
    exact = (q * r / p).sum()
    torch.testing.assert_close(reduced.delta_evidence, exact.log(), rtol=1e-14, atol=0)
    torch.testing.assert_close(reduced.posterior.probs, q * r / p / exact, rtol=1e-14, atol=0)
    gradients = torch.autograd.grad(reduced.delta_evidence, parameters)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    # What remains is a problem of two categories, and so are its gradients in the categories that remain.
    if spelling == "logits":
        kept = [x.detach()[:2].requires_grad_() for x in parameters]
        outside = [x.detach()[2:] for x in parameters]
        rest = log_evidence_change(
            *(dist.Categorical(logits=torch.cat([x, y])) for x, y in zip(kept, outside, strict=True))
        )
        for gradient, expected in zip(gradients, torch.autograd.grad(rest, kept)):
            torch.testing.assert_close(gradient[:2], expected, rtol=1e-12, atol=1e-14)


def test_a_category_without_probability_in_all_three_does_not_count() -> None:
    two = log_evidence_change(*(dist.Categorical(double(*x)) for x in ([0.2, 0.8], [0.5, 0.5], [0.7, 0.3])))
    three = log_evidence_change(*(dist.Categorical(double(*x, 0)) for x in ([0.2, 0.8], [0.5, 0.5], [0.7, 0.3])))
    torch.testing.assert_close(three, two, rtol=1e-15, atol=0)


def test_reduced_prior_and_posterior_without_a_category_in_common() -> None:
    reduced = reduce(*(dist.Categorical(double(*x)) for x in ([1.0, 0.0], [0.5, 0.5], [0.0, 1.0])))
    assert reduced.delta_evidence == -torch.inf


def test_certain_coins() -> None:
    fair, biased, heads = (dist.Bernoulli(double(x)) for x in (0.5, 0.9, 1.0))
    reduced = reduce(biased, fair, heads)
    torch.testing.assert_close(reduced.delta_evidence, double(1.8).log(), rtol=1e-15, atol=0)
    assert reduced.posterior.probs == 1
    assert reduced.posterior.log_prob(double(1.0)) == pytest.approx(0, abs=1e-15)
    assert reduce(*(dist.Poisson(double(x)) for x in (3.0, 2.0, 0.0))).delta_evidence == pytest.approx(-1.0)
    assert reduce(*(dist.Geometric(double(x)) for x in (0.75, 0.5, 1.0))).delta_evidence == pytest.approx(math.log(1.5))


def test_probabilities_are_not_clipped_by_asking_for_logits() -> None:
    triple = [dist.Categorical(double(*x)) for x in ([0.2, 0.8], [0.5, 0.5], [1.0, 0.0])]
    for distribution in triple:
        distribution.logits  # torch computes these on first use and keeps them, clipped  # noqa: B018
    reduced = reduce(*triple)
    assert reduced.posterior.probs[1] == 0
    torch.testing.assert_close(reduced.delta_evidence, double(0.4).log().squeeze(), rtol=1e-15, atol=0)


def dirichlet(*concentration: float) -> dist.Dirichlet:
    return dist.Dirichlet(torch.tensor(concentration))


@pytest.mark.parametrize(
    "triple",
    [
        [dist.Gamma(double(1.0, 1.0), double(2.0, 0.1)), dist.Gamma(1.0, 1.0), dist.Gamma(1.0, 0.2)],
        [dist.Exponential(double(3.0, 1.0)), dist.Exponential(2.0), dist.Exponential(0.5)],
        [dist.Beta(double(3.0, 1.0), 1.0), dist.Beta(2.0, 1.0), dist.Beta(0.5, 1.0)],
        [dist.Dirichlet(torch.tensor([[3.0, 1.0], [1.0, 1.0]])), dirichlet(2.0, 1.0), dirichlet(0.5, 1.0)],
        [dist.Geometric(double(0.9, 0.3)), dist.Geometric(0.5), dist.Geometric(0.2)],
        [dist.Laplace(0.0, double(0.1, 1.1)), dist.Laplace(0.0, 1.0), dist.Laplace(0.0, 1e3)],
        [dist.Categorical(double(0.5, 0.5)), dist.Categorical(double(1.0, 0.0)), dist.Categorical(double(1.0, 0.0))],
    ],
    ids=lambda triple: type(triple[0]).__name__,
)
def test_a_reduced_prior_broader_than_the_prior_is_refused(triple) -> None:
    with pytest.raises(ReductionError, match=r"no valid parameters at 1 of \d elements.*no broader than the prior"):
        reduce(*triple)


def test_members_of_different_families_have_no_exact_rule() -> None:
    for triple in (
        [dist.Binomial(n, double(0.5)) for n in (5, 5, 4)],
        [dist.Laplace(double(loc), 1.0) for loc in (0.0, 0.0, 1.0)],
        [dist.NegativeBinomial(n, double(0.5)) for n in (5, 5, 4)],
        [dist.Multinomial(3, torch.ones(2)), dist.Multinomial(3, torch.ones(2)), dist.Multinomial(2, torch.ones(2))],
    ):
        with pytest.raises(ReductionError, match="no exact rule"):
            reduce(*triple, method="exact")
