# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from pyro_bmrs.evidence.accuracy import Accuracy, choose, combine

SAMPLED = Accuracy("importance", torch.tensor([3.0, 4.0]), torch.tensor([0.1, 0.6]), torch.tensor([900.0, 50.0]))
MASK = torch.tensor([True, False])


def test_a_sum_is_as_sure_as_its_least_sure_part() -> None:
    other = Accuracy("importance", torch.tensor(12.0), torch.tensor(0.4), torch.tensor(70.0))
    total = combine([Accuracy("quadrature"), SAMPLED, other, Accuracy()])
    # 3² + 4² + 12² = 13²
    assert total == Accuracy("importance", torch.tensor(13.0), torch.tensor(0.6), torch.tensor(50.0))


def test_what_is_no_estimate_has_no_error() -> None:
    assert combine([Accuracy(), Accuracy("quadrature")]) == Accuracy("quadrature")
    assert combine([]) == Accuracy()


def test_the_error_of_a_sum_is_the_standard_deviation_of_sums() -> None:
    errors = torch.tensor([0.5, 1.0, 2.0], dtype=torch.double)
    sums = (errors * torch.randn(200_000, 3, dtype=torch.double)).sum(-1)
    total = combine([Accuracy("importance", errors)])
    torch.testing.assert_close(total.standard_error, sums.std(), rtol=1e-2, atol=0.0)


def test_a_scale_is_one_of_the_error_alone() -> None:
    scaled = SAMPLED.scaled(10.0)
    torch.testing.assert_close(scaled.standard_error, torch.tensor([30.0, 40.0]))
    assert scaled.pareto_k is SAMPLED.pareto_k
    assert Accuracy().scaled(10.0) == Accuracy()


def test_sums_over_some_dimensions_expand_what_was_not() -> None:
    summed = SAMPLED.summed(torch.Size([3, 2]), 1)
    torch.testing.assert_close(summed.standard_error, torch.full((3,), 5.0))
    torch.testing.assert_close(summed.pareto_k, torch.full((3,), 0.6))
    torch.testing.assert_close(summed.effective_sample_size, torch.full((3,), 50.0))
    assert SAMPLED.summed(torch.Size([3, 2]), 0).standard_error.shape == (3, 2)
    assert Accuracy("quadrature").summed(torch.Size([3, 2]), 2) == Accuracy("quadrature")


def test_a_choice_has_the_accuracy_of_the_side_in_force() -> None:
    beside_exact = choose(MASK, SAMPLED, Accuracy())
    assert beside_exact.method == "importance"
    torch.testing.assert_close(beside_exact.standard_error, torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(beside_exact.pareto_k, torch.tensor([0.1, -torch.inf]))
    torch.testing.assert_close(beside_exact.effective_sample_size, torch.tensor([900.0, torch.inf]))
    # In a sum, the exact element is as if it were not there.
    assert combine([beside_exact]) == Accuracy("importance", torch.tensor(3.0), torch.tensor(0.1), torch.tensor(900.0))


def test_a_side_in_force_nowhere_does_not_count() -> None:
    everywhere = torch.ones(2, dtype=torch.bool)
    assert choose(everywhere, Accuracy(), SAMPLED) == Accuracy()
    assert choose(~everywhere, SAMPLED, Accuracy("quadrature")) == Accuracy("quadrature")
    assert choose(MASK, Accuracy("quadrature"), Accuracy()) == Accuracy("quadrature")
