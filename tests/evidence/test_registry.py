# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import warnings

import mpmath as mp
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor
from torch.distributions import Distribution, transforms

import pyro_bmrs.distributions
from pyro_bmrs import ReductionWarning, reduce_model
from pyro_bmrs.evidence import (
    Reduced,
    ReweightedDistribution,
    log_evidence_change,
    reduce,
    register_reduction,
    registry,
)

pytestmark = pytest.mark.usefixtures("own_rules")


class Odd(dist.Cauchy):
    """A distribution that no rule of the package knows."""


def register(value: float, *types: type) -> None:
    @register_reduction(*types)
    def rule(posterior, prior, reduced_prior) -> Reduced:
        return Reduced(torch.full(posterior.batch_shape, value), lambda: posterior)


def test_a_rule_from_outside_is_asked() -> None:
    register(1.5, Odd, Odd, Odd)
    odd = Odd(torch.zeros(3), 1.0)
    reduced = reduce(odd.to_event(1), odd.to_event(1), odd.to_event(1))
    assert reduced.delta_evidence == 4.5
    assert reduced.posterior.event_shape == (3,)


def test_the_most_specific_rule_wins() -> None:
    odd, cauchy = Odd(0.0, 1.0), dist.Cauchy(0.0, 1.0)
    register(1.0, dist.Cauchy, dist.Cauchy, dist.Cauchy)
    register(2.0, dist.Cauchy, Odd, Odd)
    register(3.0, Odd, Odd, Odd)
    assert log_evidence_change(cauchy, cauchy, odd) == 1.0
    assert log_evidence_change(cauchy, odd, odd) == 2.0
    assert log_evidence_change(odd, odd, odd) == 3.0


def test_a_rule_that_could_be_either_of_two_is_told_and_the_posterior_counts_first() -> None:
    odd, cauchy = Odd(0.0, 1.0), dist.Cauchy(0.0, 1.0)
    register(1.0, dist.Cauchy, Odd, Odd)
    register(2.0, Odd, dist.Cauchy, dist.Cauchy)
    assert log_evidence_change(odd, cauchy, odd) == 2.0  # here only one of the two fits
    with pytest.warns(ReductionWarning) as caught:
        assert log_evidence_change(odd, odd, odd) == 2.0
    assert str(caught[0].message) == (
        "The rule for (Odd, Odd, Odd) could be either that for (Odd, Cauchy, Cauchy), which is taken, or that for "
        "(Cauchy, Odd, Odd). Register one for (Odd, Odd, Odd) with register_reduction."
    )
    register(3.0, Odd, Odd, Odd)
    assert log_evidence_change(odd, odd, odd) == 3.0


def test_two_triples_with_one_rule_are_no_doubt() -> None:
    odd = Odd(0.0, 1.0)
    register(0.5, dist.Cauchy, dist.Cauchy, dist.Cauchy)
    for types in ((dist.Cauchy, Odd, Odd), (Odd, dist.Cauchy, dist.Cauchy)):
        register_reduction(*types)(rule_of_two_triples)
    assert log_evidence_change(odd, odd, odd) == 4.0


def rule_of_two_triples(posterior, prior, reduced_prior) -> Reduced:
    return Reduced(torch.tensor(4.0), lambda: posterior)


def known_types() -> set[type[Distribution]]:
    modules = dist, torch.distributions, pyro_bmrs.distributions
    members = [member for module in modules for member in vars(module).values()]
    return {member for member in members if inspect.isclass(member) and issubclass(member, Distribution)}


@pytest.mark.no_cover
def test_no_triple_of_known_types_leaves_the_package_in_doubt() -> None:
    roles = []
    for role in range(3):
        registered = {triple[role] for triple in registry._RULES}
        # Types that are subclasses of the same registered ones find the same rules: one stands for all.
        alike = {frozenset(base for base in registered if issubclass(type_, base)): type_ for type_ in known_types()}
        roles.append(list(alike.values()))
    assert all(len(types) > 20 for types in roles)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ReductionWarning)
        for triple in itertools.product(*roles):
            registry.find_rules(*triple)


def test_a_rule_that_cannot_hands_over_to_the_next() -> None:
    register(1.0, dist.Cauchy, dist.Cauchy, dist.Cauchy)
    register_reduction(Odd, Odd, Odd)(lambda *_: NotImplemented)
    odd = Odd(0.0, 1.0)
    assert log_evidence_change(odd, odd, odd) == 1.0


def test_a_later_rule_replaces_an_earlier_one_even_after_use() -> None:
    odd = Odd(0.0, 1.0)
    for value in (1.0, 2.0):
        register(value, Odd, Odd, Odd)
        assert log_evidence_change(odd, odd, odd) == value


def test_a_rule_that_takes_the_place_of_another_function_says_so() -> None:
    register(1.0, Odd, Odd, Odd)
    with pytest.warns(ReductionWarning, match=r"rule_of_two_triples takes the place of .*rule as .* \(Odd, Odd, Odd\)"):
        register_reduction(Odd, Odd, Odd)(rule_of_two_triples)
    odd = Odd(0.0, 1.0)
    assert log_evidence_change(odd, odd, odd) == 4.0


def test_only_distribution_types_can_be_registered() -> None:
    with pytest.raises(TypeError, match="three subclasses of torch.distributions.Distribution"):
        register_reduction(Odd, Odd, Odd(0.0, 1.0))
    with pytest.raises(TypeError, match="three subclasses"):
        register_reduction(Odd, Odd, int)


def test_the_posterior_is_built_once_and_only_when_asked_for() -> None:
    built = []
    reduced = Reduced(torch.zeros(()), lambda: built.append(1) or dist.Normal(0.0, 1.0))
    assert not built
    assert reduced.posterior is reduced.posterior
    assert built == [1]


def reduce_laplace_priors(posterior: dist.Normal, prior: dist.Laplace, reduced_prior: dist.Laplace) -> Reduced:
    """The mean of exp(-c |x|) under a normal: c is what the reduced prior's rate has more than the prior's."""
    if (prior.loc != 0).any() or (reduced_prior.loc != 0).any():
        return NotImplemented
    c = 1 / reduced_prior.scale - 1 / prior.scale
    m, s = posterior.loc, posterior.scale
    right = torch.special.log_ndtr(m / s - c * s) - c * m
    left = torch.special.log_ndtr(-m / s - c * s) + c * m
    change = torch.logaddexp(left, right) + 0.5 * (c * s).square() + (prior.scale / reduced_prior.scale).log()
    return Reduced(change, lambda: ReweightedDistribution(posterior, prior, reduced_prior, change))


class TestARuleFromOutside:
    """All that a rule needs is to be registered; what distributions and guides are wrapped in is not its affair."""

    @pytest.fixture(autouse=True)
    def laplace_rule(self, double: None, own_rules: None) -> None:
        register_reduction(dist.Normal, dist.Laplace, dist.Laplace)(reduce_laplace_priors)

    def triple(self, *shape: int) -> tuple[dist.Normal, dist.Laplace, dist.Laplace]:
        zero = torch.zeros(shape)
        return dist.Normal(torch.randn(shape), 0.6), dist.Laplace(zero, 2.0), dist.Laplace(zero, 0.5)

    def test_it_is_right(self) -> None:
        q, p, r = self.triple(5)
        reduced = reduce(q, p, r)
        assert reduced.method == "exact"

        def integral(loc: float) -> mp.mpf:
            breaks = sorted([0, *(loc + 0.6 * k for k in range(-9, 10, 3))])
            return mp.quad(lambda x: mp.npdf(x, loc, 0.6) * 4 * mp.exp(-1.5 * abs(x)), breaks)

        exact = torch.tensor([float(mp.log(integral(loc))) for loc in q.loc.tolist()])
        torch.testing.assert_close(reduced.delta_evidence, exact, rtol=1e-9, atol=1e-9)

    def test_beneath_events_expansions_and_masks(self) -> None:
        q, p, r = self.triple(4, 3)
        terms = log_evidence_change(q, p, r)
        assert reduce(q.to_event(2), p.to_event(2), r.to_event(2)).delta_evidence == pytest.approx(terms.sum().item())
        shared = [dist.Laplace(torch.tensor(0.0), scale).expand([4, 3]).to_event(1) for scale in (2.0, 0.5)]
        torch.testing.assert_close(log_evidence_change(q.to_event(1), *shared, method="exact"), terms.sum(-1))
        mask = torch.tensor([True, False, True])
        masked = reduce(q.to_event(1), p.mask(mask).to_event(1), r.to_event(1), method="exact")
        torch.testing.assert_close(masked.delta_evidence, torch.where(mask, terms, 0.0).sum(-1))
        mixed = dist.MaskedMixture(mask.expand(4, 3), p, r)
        torch.testing.assert_close(log_evidence_change(q, p, mixed, method="exact"), torch.where(mask, terms, 0.0))

    def test_beneath_a_shared_bijection(self) -> None:
        q, p, r = self.triple(3)
        q_, p_, r_ = (dist.TransformedDistribution(d, [transforms.ExpTransform()]) for d in (q, p, r))
        torch.testing.assert_close(log_evidence_change(q_, p_, r_, method="exact"), log_evidence_change(q, p, r))

    @pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
    def test_from_a_guide(self, kind: type) -> None:
        def model() -> Tensor:
            a = pyro.sample("a", dist.Laplace(0.0, 2.0))
            return pyro.sample("b", dist.Normal(a, 1.0))

        guide = kind(model, init_scale=0.5)
        guide()
        reduced_prior = {"a": dist.Laplace(0.0, 0.5)}
        exact = reduce_model(guide, reduced_prior, model=model)
        numerical = reduce_model(guide, reduced_prior, model=model, method="quadrature")
        assert (exact.method, numerical.method) == ("exact", "quadrature")
        torch.testing.assert_close(exact.delta_evidence, numerical.delta_evidence, rtol=1e-8, atol=1e-8)
        assert exact.delta_evidence.abs() > 0.01
        draws = exact.guide()
        assert set(draws) == {"a", "b"}

    def test_it_hands_over_what_it_cannot_do(self) -> None:
        q, p, r = self.triple()
        shifted = dist.Laplace(1.0, 0.5)
        assert reduce(q, p, shifted).method == "quadrature"
        assert reduce(q, p, r).method == "exact"


@pytest.mark.parametrize("take", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("method", ["exact", "quadrature", "importance"])
def test_what_a_rule_says_can_be_copied(take, method):
    loc = torch.tensor([0.1, 0.4], requires_grad=True)
    reduced = reduce(dist.Normal(2 * loc, 0.2), dist.Normal(0.0, 1.0), dist.Normal(0.2, 0.3), method=method)
    twin = take(reduced)
    torch.testing.assert_close(twin.delta_evidence, reduced.delta_evidence)
    torch.testing.assert_close(twin.posterior.mean, reduced.posterior.mean)
    assert twin.accuracy.method == method
