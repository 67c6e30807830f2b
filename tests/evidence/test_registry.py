# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator

import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs.evidence import Reduced, log_evidence_change, reduce, register_reduction, registry


@pytest.fixture(autouse=True)
def leave_no_rules() -> Iterator[None]:
    rules = dict(registry._RULES)
    yield
    registry._RULES.clear()
    registry._RULES.update(rules)
    registry.find_rules.cache_clear()


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


def test_the_most_specific_rule_wins_and_the_posterior_counts_first() -> None:
    odd, cauchy = Odd(0.0, 1.0), dist.Cauchy(0.0, 1.0)
    register(1.0, dist.Cauchy, dist.Cauchy, dist.Cauchy)
    register(2.0, dist.Cauchy, Odd, Odd)
    register(3.0, Odd, dist.Cauchy, dist.Cauchy)
    assert log_evidence_change(cauchy, cauchy, odd) == 1.0
    assert log_evidence_change(cauchy, odd, odd) == 2.0
    assert log_evidence_change(odd, odd, odd) == 3.0


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
