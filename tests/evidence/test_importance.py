# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_bmrs import ReductionError, ReductionWarning
from pyro_bmrs.evidence import importance_estimate, log_evidence_change, reduce


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


TRIPLES = {
    "scalar": (dist.Gamma(double(8.0, 3.0), 4.0), dist.Gamma(double(1.0), 1.0), dist.Gamma(double(3.0), 3.0)),
    "vector": (
        dist.MultivariateNormal(double(0.3, -0.2), torch.tensor([[0.2, 0.1], [0.1, 0.2]]).double()),
        dist.Normal(double(0.0, 0.0), 1.0).to_event(1),
        dist.Normal(double(0.0, 0.0), 0.6).to_event(1),
    ),
    "simplex": tuple(dist.Dirichlet(double(*x)) for x in ([5.0, 9.0, 3.0], [1.0, 1.0, 1.0], [3.0, 3.0, 3.0])),
    "counts": tuple(dist.Poisson(double(rate)) for rate in (3.0, 5.0, 4.0)),
    "labels": tuple(dist.OneHotCategorical(double(*x)) for x in ([0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [0.3, 0.3, 0.4])),
}


@pytest.mark.parametrize("triple", TRIPLES.values(), ids=TRIPLES)
def test_it_agrees_with_the_exact_rules_within_its_error(triple) -> None:
    exact = reduce(*triple, method="exact")
    reduced = reduce(*triple, method="importance", num_samples=20_000)
    assert ((reduced.delta_evidence - exact.delta_evidence).abs() < 4 * reduced.standard_error).all()
    assert (reduced.standard_error < 0.03).all()
    assert (reduced.pareto_k < 0.7).all()
    assert reduced.posterior.batch_shape == exact.posterior.batch_shape
    assert reduced.posterior.event_shape == exact.posterior.event_shape
    assert reduced.posterior.sample((5,)).shape == exact.posterior.sample((5,)).shape
    torch.testing.assert_close(reduced.posterior.mean, exact.posterior.mean, rtol=0.05, atol=0.02)
    torch.testing.assert_close(reduced.posterior.variance, exact.posterior.variance, rtol=0.1, atol=0.01)


def test_the_standard_error_covers_the_truth_as_often_as_it_should() -> None:
    q, p, r = dist.Normal(double(0.3), 0.5), dist.Normal(0.0, 1.0), dist.Normal(double(0.0), 0.8)
    draws = q.sample((1000, 400)).squeeze(-1)
    estimate = importance_estimate(r.log_prob(draws) - p.log_prob(draws))
    covered = (estimate.delta_evidence - log_evidence_change(q, p, r)).abs() < 2 * estimate.standard_error
    assert 0.92 < covered.double().mean() < 0.985


def test_independent_elements_are_weighted_each_by_itself() -> None:
    # Weighted as one event of 200 dimensions, the draws would all but one have no weight.
    size = 200
    q = dist.Normal(torch.zeros(size, dtype=torch.float64), 0.5).to_event(1)
    p, r = (dist.Normal(torch.zeros(size, dtype=torch.float64), s).to_event(1) for s in (1.0, 0.6))
    reduced = reduce(q, p, r, method="importance")
    assert (reduced.delta_evidence - log_evidence_change(q, p, r)).abs() < 4 * reduced.standard_error
    assert reduced.pareto_k.shape == ()
    assert reduced.pareto_k < 0.7


def test_gradients_estimate_those_of_the_evidence() -> None:
    parameters = [double(x).requires_grad_() for x in (0.3, 0.5, 1.1, -0.1, 0.7)]
    loc, scale, prior_scale, reduced_loc, reduced_scale = parameters
    triple = dist.Normal(loc, scale), dist.Normal(0.0, prior_scale), dist.Normal(reduced_loc, reduced_scale)
    exact = torch.autograd.grad(log_evidence_change(*triple).sum(), parameters)
    estimate = torch.autograd.grad(
        log_evidence_change(*triple, method="importance", num_samples=200_000).sum(), parameters
    )
    for one, other in zip(estimate, exact):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02)


def test_it_is_seeded_by_torch() -> None:
    def delta_evidence(seed: int) -> Tensor:
        pyro.set_rng_seed(seed)
        return log_evidence_change(*TRIPLES["vector"], method="importance")

    assert delta_evidence(0) == delta_evidence(0)
    assert delta_evidence(0) != delta_evidence(1)


def test_a_posterior_far_from_the_reduced_prior_warns() -> None:
    q, p, r = dist.Normal(double(0.0), 0.3), dist.Normal(double(0.0), 2.0), dist.Normal(double(1.5), 0.02)
    with pytest.warns(ReductionWarning, match=r"not to be trusted at 1 of 1 elements.*Pareto k is .*, above 0\.7"):
        reduced = reduce(q, p, r, method="importance")
    assert (reduced.pareto_k > 0.7).all()


def test_a_reduced_prior_that_no_draw_meets_warns() -> None:
    q, p, r = dist.Normal(double(0.0), 0.1), dist.Normal(double(0.0), 2.0), dist.Uniform(double(1.5), 1.6)
    with pytest.warns(ReductionWarning, match="Pareto k is inf"):
        reduced = reduce(q, p, r, method="importance")
    assert reduced.delta_evidence == -torch.inf


def test_weights_may_be_zero_and_gradients_pass_them_by() -> None:
    low = double(-0.2).requires_grad_()
    q, p = dist.Normal(double(0.0), 1.0), dist.Normal(double(0.0), 2.0)
    reduced = reduce(q, p, dist.Uniform(low, 1.0), method="importance", num_samples=50_000)
    exact = log_evidence_change(q, p, dist.Uniform(low, 1.0))
    assert (reduced.delta_evidence - exact).abs() < 4 * reduced.standard_error
    (slope,) = torch.autograd.grad(reduced.delta_evidence.sum(), low)
    # Through the height of the uniform; its edge, where draws come and go, has no pathwise derivative.
    torch.testing.assert_close(slope, 1 / (1 - low.detach()), rtol=1e-9, atol=0)
    support = reduced.posterior.enumerate_support()
    weights = reduced.posterior.log_weights.exp()
    assert ((weights > 0) == ((support > -0.2) & (support < 1.0))).all()


class TestImportanceEstimate:
    def test_equal_weights_have_no_error(self) -> None:
        estimate = importance_estimate(torch.full((100, 3), 0.7, dtype=torch.float64))
        torch.testing.assert_close(estimate.delta_evidence, double(0.7, 0.7, 0.7))
        torch.testing.assert_close(estimate.standard_error, double(0.0, 0.0, 0.0))
        assert (estimate.pareto_k == -torch.inf).all()

    def test_the_scale_of_the_weights_shifts_the_estimate_alone(self) -> None:
        log_weights = 0.5 * torch.randn(1000, dtype=torch.float64)
        one, other = importance_estimate(log_weights), importance_estimate(log_weights - 800)
        torch.testing.assert_close(other.delta_evidence, one.delta_evidence - 800)
        torch.testing.assert_close(other.standard_error, one.standard_error)
        torch.testing.assert_close(other.pareto_k, one.pareto_k)
        torch.testing.assert_close(other.log_weights, one.log_weights - 800)

    def test_elements_of_a_batch_do_not_meet(self) -> None:
        log_weights = 0.3 * torch.randn(500, 2, 3, dtype=torch.float64)
        together = importance_estimate(log_weights)
        for i, j in ((0, 0), (1, 2)):
            alone = importance_estimate(log_weights[:, i, j])
            for name in ("delta_evidence", "standard_error", "pareto_k"):
                torch.testing.assert_close(getattr(together, name)[i, j], getattr(alone, name))

    def test_smoothing_tames_the_largest_weight(self) -> None:
        draws = dist.Exponential(torch.tensor(1.0)).sample((2000,)).double()
        log_weights = 0.6 * draws  # weights with a Pareto tail of shape 0.6, and a mean of 2.5
        estimate = importance_estimate(log_weights)
        assert 0.35 < estimate.pareto_k < 0.7
        assert estimate.delta_evidence.item() == pytest.approx(math.log(2.5), abs=0.2)
        assert estimate.log_weights.max() <= log_weights.max() + 1e-12

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_weights_that_are_no_numbers_are_refused(self, value: float) -> None:
        log_weights = torch.zeros(100, 2)
        log_weights[3:5, 1] = value
        with pytest.raises(ReductionError, match="2 of 200 log weights are NaN or infinite"):
            importance_estimate(log_weights)

    def test_few_draws_warn(self) -> None:
        with pytest.warns(ReductionWarning, match="Pareto k is inf"):
            importance_estimate(0.1 * torch.randn(20))


class TestErrors:
    def test_a_reduced_prior_beyond_the_prior(self) -> None:
        prior = dist.Dirichlet(torch.ones(3))
        beyond = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        with pytest.raises(ReductionError, match="reduced prior's support leaves the prior's"):
            reduce(prior, prior, beyond)

    def test_a_posterior_beyond_the_prior(self) -> None:
        prior = dist.Gamma(torch.ones(3), 1.0).to_event(1)
        posterior = dist.MultivariateNormal(torch.ones(3), torch.eye(3))
        with pytest.raises(ReductionError, match="posterior's support leaves the prior's"):
            reduce(posterior, prior, prior)

    def test_an_improper_prior(self) -> None:
        improper = dist.ImproperUniform(constraints.real_vector, (), (3,))
        normal = dist.MultivariateNormal(torch.ones(3), torch.eye(3))
        with pytest.raises(ReductionError, match="improper"):
            reduce(normal, improper, normal)


def test_a_single_draw_says_nothing_of_its_error() -> None:
    with pytest.warns(ReductionWarning, match="not to be trusted"):
        estimate = importance_estimate(torch.tensor([0.7]))
    assert estimate.delta_evidence == pytest.approx(0.7)
    assert estimate.standard_error == torch.inf and estimate.effective_sample_size == 1
