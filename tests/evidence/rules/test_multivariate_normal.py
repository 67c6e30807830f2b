# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import mpmath as mp
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bmrs import ReductionError
from pyro_bmrs.evidence import log_evidence_change, reduce
from tests import conjugate

SPM = json.loads((Path(__file__).parents[2] / "reference" / "spm_gaussian.json").read_text())["cases"]


def double(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def covariance(size: int, scale: float = 1.0) -> Tensor:
    half = torch.randn(size, size, dtype=torch.float64) / math.sqrt(size)
    return scale**2 * (half @ half.mT + 0.2 * torch.eye(size, dtype=torch.float64))


def triple(size: int, reduced_scale: float = 0.7, offset: float = 1.0):
    """A posterior narrower than its prior, as data make it, and a reduced prior anywhere."""
    p = covariance(size, 2.0)
    q = torch.linalg.inv(torch.linalg.inv(p) + torch.linalg.inv(covariance(size, 0.8)))
    r = covariance(size, reduced_scale)
    locs = offset * torch.randn(3, size, dtype=torch.float64)
    return [dist.MultivariateNormal(loc, (c + c.mT) / 2) for loc, c in zip(locs, (q, p, r))]


def exact(*distributions, digits: int = 60) -> mp.mpf:
    """The textbook formula with its cancelling terms, in enough digits to survive them."""
    with mp.workdps(digits):
        means = [mp.matrix(d.mean.tolist()) for d in distributions]
        factors = [mp.matrix(d.scale_tril.tolist()) for d in distributions]
        precisions = [(factor * factor.T) ** -1 for factor in factors]
        (mq, mp_, mr), (lq, lp, lr) = means, precisions
        ls = lq + lr - lp
        pull = lq * mq + lr * mr - lp * mp_
        squares = [(m.T * precision * m)[0] for m, precision in zip(means, precisions)]
        square = squares[0] + squares[2] - squares[1] - (pull.T * ls**-1 * pull)[0]
        log_dets = [mp.log(mp.det(precision)) for precision in (lq, lr, lp, ls)]
        return (log_dets[0] + log_dets[1] - log_dets[2] - log_dets[3] - square) / 2


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_random_triples_agree_with_the_formula_in_sixty_digits(size: int) -> None:
    for _ in range(20):
        q, p, r = triple(size)
        assert log_evidence_change(q, p, r).item() == pytest.approx(float(exact(q, p, r)), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("size", [1, 2])
def test_fifty_triples_agree_with_numerical_integrals(size: int) -> None:
    # The trapezoidal rule is exact to double precision for a normal sampled every half standard deviation; where to
    # put its points, the reduced posterior may say.
    steps = [0.5 * k for k in range(-18, 19)]
    grid = np.array(list(itertools.product(steps, repeat=size)))
    for _ in range(50):
        q, p, r = triple(size)
        reduced = reduce(q, p, r)
        factor = reduced.posterior.scale_tril
        x = reduced.posterior.loc + double(grid) @ factor.mT
        log_cell = size * math.log(0.5) + factor.diagonal().log().sum().item()

        def log_density(d, at: np.ndarray) -> list[mp.mpf]:
            whitened = np.linalg.solve(d.scale_tril.numpy(), (at - d.mean.numpy()).T)
            constant = -mp.mpf(size) / 2 * mp.log(2 * mp.pi) - mp.log(mp.mpf(float(np.prod(np.diag(d.scale_tril)))))
            return [constant - mp.mpf(float(square)) / 2 for square in (whitened**2).sum(0)]

        densities = zip(*(log_density(d, x.numpy()) for d in (q, p, r)))
        total = mp.fsum(mp.exp(a + c - b) for a, b, c in densities)
        assert reduced.delta_evidence.item() == pytest.approx(float(mp.log(total) + log_cell), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("number", range(len(SPM)))
def test_reductions_of_spm(number: int) -> None:
    case = {name: double(value) for name, value in SPM[number].items()}
    normals = [dist.MultivariateNormal(case[f"{role}E"], case[f"{role}C"]) for role in "qpr"]
    reduced = reduce(*normals)
    torch.testing.assert_close(reduced.delta_evidence, case["F"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reduced.posterior.mean, case["sE"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reduced.posterior.covariance_matrix, case["sC"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-2, 1e-4, 1e-6, 1e-8])
def test_a_reduced_prior_narrow_in_one_direction_costs_no_digits_in_the_others(scale: float) -> None:
    for _ in range(10):
        q, p, _ = triple(4)
        scales = torch.ones(4, dtype=torch.float64)
        scales[2] = scale
        r = dist.Normal(torch.zeros(4, dtype=torch.float64), scales).to_event(1)
        dense = dist.MultivariateNormal(r.mean, scale_tril=torch.diag(scales))
        expected = float(exact(q, p, dense, digits=80))
        assert log_evidence_change(q, p, r).item() == pytest.approx(expected, rel=1e-10, abs=1e-10)
        assert log_evidence_change(q, p, dense).item() == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_means_far_from_the_origin_do_not_cancel(offset: float) -> None:
    for _ in range(10):
        q, p, r = (dist.MultivariateNormal(offset + d.mean, d.covariance_matrix) for d in triple(3))
        # The offset itself rounds the means by up to 1e-10; the formula must not lose more than that.
        assert log_evidence_change(q, p, r).item() == pytest.approx(
            float(exact(q, p, r, digits=80)), rel=1e-9, abs=1e-9
        )


def diagonal(d) -> dist.Independent:
    return dist.Normal(d.mean, d.variance.sqrt()).to_event(1)


def low_rank(d, rank: int = 2) -> dist.LowRankMultivariateNormal:
    return dist.LowRankMultivariateNormal(d.mean, d.scale_tril[..., :rank], d.variance)


def dense(d) -> dist.MultivariateNormal:
    scale_tril = d.scale_tril if hasattr(d, "scale_tril") else torch.diag(d.stddev)
    return dist.MultivariateNormal(d.mean, scale_tril=scale_tril)


# All but three independent normals, which the rule for single normals has.
@pytest.mark.parametrize("forms", list(itertools.product([dense, low_rank, diagonal], repeat=3))[:-1])
def test_every_mixture_of_dense_low_rank_and_independent_normals(forms) -> None:
    q, p, r = (form(d) for form, d in zip(forms, triple(5)))
    p = type(p)(p.mean, p.cov_factor, p.cov_diag + 9) if forms[1] is low_rank else p
    reduced, expected = reduce(q, p, r, method="exact"), reduce(*map(dense, (q, p, r)))
    torch.testing.assert_close(reduced.delta_evidence, expected.delta_evidence, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(reduced.posterior.mean, expected.posterior.mean, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(reduced.posterior.covariance_matrix, expected.posterior.covariance_matrix)
    x = q.sample((20,))
    product = q.log_prob(x) + r.log_prob(x) - p.log_prob(x) - reduced.delta_evidence
    torch.testing.assert_close(reduced.posterior.log_prob(x), product, rtol=1e-9, atol=1e-9)


def test_a_low_rank_posterior_stays_of_low_rank_and_never_becomes_a_matrix() -> None:
    size, rank = 50_000, 3  # a matrix of this size would take 20 GB
    factor = torch.randn(size, rank, dtype=torch.float64) / math.sqrt(size)
    q = dist.LowRankMultivariateNormal(torch.randn(size, dtype=torch.float64), factor, 0.1 + torch.rand(size).double())
    p = dist.Normal(torch.zeros(size, dtype=torch.float64), 2.0).to_event(1)
    r = dist.Normal(torch.zeros(size, dtype=torch.float64), 0.5).to_event(1)
    reduced = reduce(q, p, r)
    assert isinstance(reduced.posterior, dist.LowRankMultivariateNormal)
    x = torch.randn(size, dtype=torch.float64)
    product = q.log_prob(x) + r.log_prob(x) - p.log_prob(x) - reduced.delta_evidence
    torch.testing.assert_close(reduced.posterior.log_prob(x), product, rtol=1e-10, atol=0)


@pytest.mark.parametrize("form", [dense, low_rank])
def test_batches_are_reduced_one_by_one(form) -> None:
    q, p, r = zip(*(triple(3) for _ in range(4)))
    many = dist.MultivariateNormal(torch.stack([d.mean for d in q]), torch.stack([d.covariance_matrix for d in q]))
    reduced = reduce(form(many), diagonal(p[0]), dense(r[0]))
    for index, single in enumerate(q):
        expected = reduce(form(single), diagonal(p[0]), dense(r[0]))
        torch.testing.assert_close(reduced.delta_evidence[index], expected.delta_evidence)
        torch.testing.assert_close(reduced.posterior.mean[index], expected.posterior.mean)


def test_gradients_in_all_parameters() -> None:
    q, p, r = triple(3)
    parameters = [x.detach().requires_grad_() for d in (q, p, r) for x in (d.mean, d.scale_tril)]

    def full(*parameters: Tensor) -> Tensor:
        pairs = zip(parameters[::2], parameters[1::2])
        return log_evidence_change(*(dist.MultivariateNormal(loc, scale_tril=scale.tril()) for loc, scale in pairs))

    def in_rank(
        loc: Tensor, factor: Tensor, diag: Tensor, p_loc: Tensor, p_scale: Tensor, r_loc: Tensor, r_scale: Tensor
    ):
        q = dist.LowRankMultivariateNormal(loc, factor, diag)
        return log_evidence_change(q, dist.Normal(p_loc, p_scale).to_event(1), dist.Normal(r_loc, r_scale).to_event(1))

    assert torch.autograd.gradcheck(full, parameters)
    low = low_rank(q)
    parameters = [low.loc, low.cov_factor, low.cov_diag, p.mean, p.stddev + 1, r.mean, r.stddev]
    assert torch.autograd.gradcheck(in_rank, [x.detach().clone().requires_grad_() for x in parameters])


def test_the_posterior_has_gradients_too() -> None:
    q, p, r = triple(3)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def moments(scale: Tensor) -> tuple[Tensor, Tensor]:
        posterior = reduce(q, p, dist.MultivariateNormal(r.mean, scale_tril=scale * r.scale_tril)).posterior
        return posterior.mean, posterior.covariance_matrix

    assert torch.autograd.gradcheck(moments, scale)


@pytest.mark.parametrize("form", [dense, low_rank])
def test_a_reduced_prior_broader_in_one_direction_is_refused(form) -> None:
    p = dist.Normal(torch.zeros(2), 0.5).to_event(1)
    r = dist.Normal(torch.zeros(2), torch.tensor([0.5, 10.0])).to_event(1)
    q = form(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(ReductionError, match="broader than the prior in a direction"):
        reduce(q, p, r)


def test_a_posterior_that_is_its_prior_changes_nothing() -> None:
    _, p, r = triple(4)
    torch.testing.assert_close(log_evidence_change(p, p, r), double(0.0), rtol=0, atol=1e-13)
    torch.testing.assert_close(log_evidence_change(r, p, p), double(0.0), rtol=0, atol=1e-13)


def test_conjugate_linear_regression_evidence_is_exact() -> None:
    for seed in range(5):
        x, y = conjugate.data(seed=seed)
        loc, scale = conjugate.prior(x.shape[1])
        posterior = conjugate.exact_posterior(x, y, loc, scale)
        prior = dist.Normal(loc, scale).to_event(1)
        for reduced_loc, reduced_scale in (
            (0 * loc, 0.1 * scale),
            (loc, scale * double([1e-3, 1, 1, 1])),
            (loc + 1, scale),
        ):
            reduced = reduce(posterior, prior, dist.Normal(reduced_loc, reduced_scale).to_event(1))
            truth = conjugate.log_evidence(x, y, reduced_loc, reduced_scale) - conjugate.log_evidence(x, y, loc, scale)
            torch.testing.assert_close(reduced.delta_evidence, truth, rtol=1e-8, atol=1e-8)
            refitted = conjugate.exact_posterior(x, y, reduced_loc, reduced_scale)
            torch.testing.assert_close(reduced.posterior.mean, refitted.mean, rtol=1e-8, atol=1e-10)
            torch.testing.assert_close(
                reduced.posterior.covariance_matrix, refitted.covariance_matrix, rtol=1e-8, atol=1e-12
            )


def test_an_independent_that_is_not_normal_is_left_to_other_rules() -> None:
    q = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    laplace = dist.Laplace(torch.zeros(2), 1.0).to_event(1)
    with pytest.raises(ReductionError, match="no exact rule for MultivariateNormal as posterior, Independent as prior"):
        reduce(q, laplace, laplace, method="exact")


@pytest.mark.parametrize("scale", [1e-12, 1e-18, 1e-38])
@pytest.mark.parametrize("narrow", [[2], [0, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("form", [dense, low_rank])
def test_narrower_than_the_spacing_of_numbers_is_as_good_as_a_point(scale: float, narrow: list[int], form) -> None:
    q, p, _ = triple(4)
    q, p = form(q), dist.Normal(p.mean, 3 * p.stddev).to_event(1)
    scales = torch.full((4,), 0.7, dtype=torch.float64)
    scales[narrow] = scale
    r = dist.Normal(torch.randn(4, dtype=torch.float64), scales).to_event(1)
    whole = dist.MultivariateNormal(q.mean, q.covariance_matrix)
    expected = float(exact(whole, dense(p), dense(r), digits=250))
    for reduced_prior in (r, dense(r)):
        reduced = reduce(q, p, reduced_prior)
        assert reduced.delta_evidence.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        # Its mean is within a standard deviation, too.
        assert (abs(reduced.posterior.mean - r.mean) <= scales)[narrow].all()
