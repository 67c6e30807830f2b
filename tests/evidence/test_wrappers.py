# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transforms

from pyro_bmrs import ReductionError
from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.evidence import log_evidence_change, reduce, reduced_posterior

MASK = torch.tensor([True, False, True])


def gammas(*shape: int):
    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(shape, dtype=torch.float64).uniform_(low, high)

    p = dist.Gamma(uniform(1, 2), uniform(0.5, 1))
    q = dist.Gamma(p.concentration + uniform(0, 5), p.rate + uniform(0, 5))
    return q, p, dist.Gamma(uniform(1, 5), uniform(1, 5))


def check_product(q, p, r, reduced) -> None:
    x = q.sample((20,))
    product = q.log_prob(x) + r.log_prob(x) - p.log_prob(x) - reduced.delta_evidence
    torch.testing.assert_close(reduced.posterior.log_prob(x), product, rtol=1e-9, atol=1e-9)
    assert reduced.posterior.event_shape == q.event_shape
    assert reduced.posterior.sample().shape == reduced.delta_evidence.shape + q.event_shape


@pytest.mark.parametrize("dims", [0, 1, 2])
def test_independent_elements_sum(dims: int) -> None:
    q, p, r = gammas(4, 3)
    terms = log_evidence_change(q, p, r)
    reduced = reduce(*(d.to_event(dims) for d in (q, p, r)))
    expected = terms.sum(tuple(range(2 - dims, 2))) if dims else terms
    torch.testing.assert_close(reduced.delta_evidence, expected, rtol=1e-14, atol=1e-14)
    check_product(*(d.to_event(dims) for d in (q, p, r)), reduced)


def test_independent_within_independent_is_independent() -> None:
    q, p, r = gammas(4, 3)
    nested = reduce(*(torch.distributions.Independent(d.to_event(1), 1) for d in (q, p, r)))
    torch.testing.assert_close(nested.delta_evidence, log_evidence_change(*(d.to_event(2) for d in (q, p, r))))


def test_batch_shapes_broadcast_and_a_shared_prior_counts_once_for_each_element() -> None:
    q, _, _ = gammas(5, 3)
    _, p, _ = gammas(3)
    _, _, r = gammas()
    p, r = dist.Gamma(p.concentration * 0 + 1, p.rate * 0 + 0.5), r.expand([3])
    reduced = reduce(q.to_event(1), p.to_event(1), r.to_event(1))
    assert reduced.delta_evidence.shape == (5,)
    torch.testing.assert_close(reduced.delta_evidence, log_evidence_change(q, p, r).sum(-1))
    assert reduced.posterior.batch_shape == (5,)


def test_expanded_elements_all_count() -> None:
    q, p, r = gammas(3)
    whole = [ExpandedDistribution(d, torch.Size([4, 3])) for d in (q, p, r)]
    reduced = reduce(*(d.to_event(2) for d in whole))
    torch.testing.assert_close(reduced.delta_evidence, 4 * log_evidence_change(q, p, r).sum())
    check_product(*(d.to_event(2) for d in whole), reduced)
    # ... also where the others are not expanded in the same way, or joint over the expanded dimension
    alone = reduce(whole[0].to_event(1), p.to_event(1), r.to_event(1))
    assert alone.delta_evidence.shape == (4,)


class TestMask:
    def test_elements_out_of_the_model_change_nothing(self) -> None:
        q, p, r = gammas(3)
        terms = log_evidence_change(q, p, r)
        expected = torch.where(MASK, terms, 0.0)
        for masked in (
            (q.mask(MASK), p.mask(MASK), r.mask(MASK)),
            (q, p.mask(MASK), r),
            (q, p.mask(MASK), r.mask(MASK)),
        ):
            torch.testing.assert_close(log_evidence_change(*masked), expected, rtol=0, atol=0)
            summed = log_evidence_change(*(d.to_event(1) for d in masked))
            torch.testing.assert_close(summed, expected.sum(), rtol=1e-15, atol=0)

    def test_whole_events_may_be_masked(self) -> None:
        q, p, r = gammas(3, 2)
        terms = log_evidence_change(q, p, r).sum(-1)
        joint = reduce(*(d.to_event(1).mask(MASK) for d in (q, p, r)))
        torch.testing.assert_close(joint.delta_evidence, torch.where(MASK, terms, 0.0), rtol=1e-14, atol=0)
        check_product(*(d.to_event(1).mask(MASK) for d in (q, p, r)), joint)

    def test_masks_inside_and_outside_an_event_combine(self) -> None:
        q, p, r = gammas(3, 2)
        inner = torch.tensor([True, False])
        terms = torch.where(inner, log_evidence_change(q, p, r), 0.0).sum(-1)
        actual = log_evidence_change(q.to_event(1), p.mask(inner).to_event(1).mask(MASK), r.to_event(1))
        torch.testing.assert_close(actual, torch.where(MASK, terms, 0.0), rtol=1e-14, atol=0)

    @pytest.mark.parametrize("mask", [False, torch.tensor(False)])
    def test_a_site_out_of_the_model_changes_nothing(self, mask) -> None:
        q, p, r = gammas(3)
        assert (log_evidence_change(q, p.mask(mask), r) == 0).all()

    def test_a_mask_that_takes_nothing_out_changes_nothing(self) -> None:
        q, p, r = gammas(3)
        expected = log_evidence_change(q, p, r)
        torch.testing.assert_close(log_evidence_change(q.mask(True), p.mask(True), r.mask(True)), expected)

    @pytest.mark.parametrize("role", ["posterior", "reduced prior"])
    def test_a_site_in_the_model_needs_both_posterior_and_reduced_prior(self, role: str) -> None:
        q, p, r = gammas(3)
        triple = (q.mask(MASK), p, r) if role == "posterior" else (q, p, r.mask(MASK))
        with pytest.raises(ReductionError, match=f"The {role} is masked where the prior is not"):
            reduce(*triple)

    def test_a_mask_within_a_joint_event_means_nothing(self) -> None:
        joint = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
        masked = dist.Normal(torch.zeros(3), 1.0).mask(MASK).to_event(1)
        with pytest.raises(ReductionError, match="mask on single elements"):
            reduce(joint, masked, masked)


def exp(base):
    return dist.TransformedDistribution(base, [transforms.ExpTransform()])


SPELLINGS = {
    "one": exp,
    "composed": lambda base: dist.TransformedDistribution(
        base, [transforms.ComposeTransform([transforms.ExpTransform()])]
    ),
    "with identities": lambda base: dist.TransformedDistribution(
        base, [transforms.AffineTransform(0.0, 1.0), transforms.identity_transform, transforms.ExpTransform()]
    ),
    "independent transform": lambda base: dist.TransformedDistribution(
        base, [transforms.IndependentTransform(transforms.ExpTransform(), 1)]
    ),
    "bijection": lambda base: dist.TransformedDistribution(base, [biject_to(constraints.positive)]),
    "independent before": lambda base: exp(base.to_event(1)),
    "independent after": lambda base: exp(base).to_event(1),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_different_spellings_of_one_bijection_match(spelling) -> None:
    q, p, r = gammas(3)
    before = log_evidence_change(q, p, r).sum()
    spelled = spelling(q)
    spelled = spelled if spelled.event_shape else spelled.to_event(1)
    reduced = reduce(spelled, exp(p).to_event(1), exp(r.to_event(1)), method="exact")
    torch.testing.assert_close(reduced.delta_evidence, before, rtol=1e-14, atol=0)
    check_product(spelled, exp(p).to_event(1), exp(r).to_event(1), reduced)


def test_only_the_outermost_shared_bijections_come_off() -> None:
    q, p, r = gammas(3)
    stretch = transforms.AffineTransform(0.5, 2.0)

    def chain(base):
        return dist.TransformedDistribution(base, [stretch, transforms.ExpTransform()])

    reduced = reduce(*map(chain, (q, p, r)), method="exact")
    torch.testing.assert_close(reduced.delta_evidence, log_evidence_change(q, p, r), rtol=0, atol=0)
    check_product(*map(chain, (q, p, r)), reduced)
    other = dist.TransformedDistribution(r, [transforms.AffineTransform(0.0, 3.0), transforms.ExpTransform()])
    with pytest.raises(ReductionError, match="no exact rule"):
        reduce(chain(q), chain(p), other, method="exact")


def test_a_bijection_of_whole_events() -> None:
    q, p, r = gammas(5, 3)
    to_simplex = transforms.ComposeTransform([transforms.ExpTransform().inv, biject_to(constraints.simplex)])

    def on_simplex(base):
        return dist.TransformedDistribution(base, [to_simplex])

    reduced = reduce(*map(on_simplex, (q, p, r)), method="exact")
    torch.testing.assert_close(reduced.delta_evidence, log_evidence_change(q, p, r).sum(-1), rtol=1e-14, atol=0)
    assert reduced.posterior.sample().shape == (5, 4)
    x = on_simplex(q).sample()
    product = on_simplex(q).log_prob(x) + on_simplex(r).log_prob(x) - on_simplex(p).log_prob(x) - reduced.delta_evidence
    torch.testing.assert_close(reduced.posterior.log_prob(x), product, rtol=1e-9, atol=1e-9)


def test_bijections_without_parameters_are_the_same_though_torch_compares_them_by_identity() -> None:
    def correlation(base):
        return dist.TransformedDistribution(base, [biject_to(constraints.corr_cholesky)])

    assert biject_to(constraints.corr_cholesky) != biject_to(constraints.corr_cholesky)
    q, p, r = (dist.MultivariateNormal(0.1 * torch.randn(3), torch.eye(3) * s) for s in (0.1, 1.0, 0.5))
    actual = log_evidence_change(*map(correlation, (q, p, r)), method="exact")
    torch.testing.assert_close(actual, log_evidence_change(q, p, r), rtol=0, atol=0)


def test_what_is_no_bijection_stays_on() -> None:
    def folded(base):
        return dist.TransformedDistribution(base, [transforms.AbsTransform()])

    with pytest.raises(ReductionError, match="no exact rule"):
        reduce(*map(folded, gammas(3)), method="exact")


def test_reduced_posteriors_have_their_natural_names() -> None:
    q, p, r = (dist.InverseGamma(torch.tensor([3.0, 4.0]), rate) for rate in (2.0, 1.0, 3.0))
    assert type(reduced_posterior(q, p, r)) is dist.InverseGamma
    q, p, r = (dist.LogNormal(torch.tensor([0.1, 0.2]), scale) for scale in (0.1, 1.0, 0.5))
    assert type(reduced_posterior(q, p, r)) is dist.LogNormal
    assert type(reduced_posterior(exp(dist.Normal(torch.zeros(2), 0.1)), p, r)) is dist.LogNormal
    assert type(reduced_posterior(q.to_event(1), p.to_event(1), r.to_event(1)).base_dist) is dist.LogNormal


def test_log_interval_posteriors_keep_their_names_and_their_exact_ends() -> None:
    prior = LogUniform(0.1, 0.7)
    posterior = TruncatedLogNormal(torch.tensor([-1.0, 3.0]), 0.5, 0.1, 0.7)
    reduced = reduced_posterior(posterior, prior, LogUniform(0.3, 0.7))
    assert type(reduced) is TruncatedLogNormal
    assert (reduced.low == torch.tensor(0.3)).all()
    assert (reduced.high == torch.tensor(0.7)).all()
    assert type(reduced_posterior(prior, prior, LogUniform(0.3, 0.7))) is LogUniform
