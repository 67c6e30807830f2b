# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning.compression.path import next_temperature, one_standard_error, standard_error, temperatures


def test_the_ladder_is_geometric():
    ladder = temperatures(9, 0.125, 32.0)
    assert ladder == pytest.approx([2.0**k for k in range(-3, 6)])
    assert temperatures(1, 0.5, 2.0) == [0.5]


@pytest.mark.parametrize("options", [(0,), (3, 0.0, 1.0), (3, 2.0, 1.0), (3, 1.0, math.inf), (3, math.nan, 1.0)])
def test_ladders_that_are_none(options):
    with pytest.raises(ReductionError):
        temperatures(*options)


def test_the_error_is_that_of_a_mean():
    values = torch.tensor([1.0, 2.0, 4.0, 5.0]).double()
    assert float(standard_error(values)) == pytest.approx(math.sqrt(10 / 3) / 2)


def path(means, spread):
    """Log likelihoods with means, whose standard errors are a tenth of the spread."""
    sign = torch.tensor([1.0, -1.0] * 50).double() * math.sqrt(0.99)
    values = torch.tensor(means).double()[:, None] + spread * sign
    return values


def chosen(which):
    return set(which.nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("means", "spread", "will_do"),
    [
        ([-1.0, -0.91, -1.09, -1.11], 1.0, {0, 1}),
        ([-1.0, -0.5, -1.5, -1.09], 1.0, {1}),
        ([-1.0, -0.5, -0.59, -1.09], 1.0, {1, 2}),
        ([-1.0, -1.0, -1.0, -1.0], 1.0, {0, 1, 2, 3}),
        ([-1.0, -1.2, -1.3, -1.4], 1.0, {0}),
        ([-1.0, -1.2, -1.3, -1.4], 3.5, {0, 1, 2}),
        ([-1.0, -1.001, -1.002], 0.0, {0}),
    ],
)
def test_those_within_one_error_of_the_best(means, spread, will_do):
    assert chosen(one_standard_error(path(means, spread))) == will_do


def test_more_errors_allow_more():
    values = path([-1.0, -1.09, -1.19, -1.21], 1.0)
    assert chosen(one_standard_error(values)) == {0, 1}
    assert chosen(one_standard_error(values, num_errors=2.0)) == {0, 1, 2}


def test_a_network_that_is_sure_of_itself_keeps_its_accuracy():
    """The smaller has the better log likelihood, and far fewer labels right."""
    values = torch.tensor([[-3.0] * 100, [-1.0] * 100])
    right = torch.tensor([[1.0] * 95 + [0.0] * 5, [1.0] * 70 + [0.0] * 30])
    assert chosen(one_standard_error(values, right)) == {0}
    assert chosen(one_standard_error(values)) == {1}


def test_where_there_are_labels_both_are_held_against_the_whole():
    """Few labels right; the most accurate; as accurate as the whole; and that with a worse log likelihood."""
    means = torch.tensor([-3.0, -1.0, -2.7, -2.9, -3.2])
    values = means[:, None] + torch.tensor([1.5, -1.5]).repeat(50)
    right = torch.tensor([[1.0] * number + [0.0] * (100 - number) for number in (95, 70, 99, 95, 95)])
    assert chosen(one_standard_error(values, right)) == {0, 2, 3}


def test_what_is_surely_better_is_the_measure():
    """The whole network, one that is better by luck, one that is surely so, and one in between."""
    right = torch.tensor([[1.0] * number + [0.0] * (400 - number) for number in (200, 220, 260, 235)])
    values = torch.zeros(4, 400)
    assert chosen(one_standard_error(values[:2], right[:2])) == {0, 1}
    # An error of the difference is some 14 of 400, and half a point 2.
    assert chosen(one_standard_error(values, right)) == {2, 3}
    # What is right more often, and less likely, is no measure, but the next one, 235, is.
    values[2] = -0.1
    assert chosen(one_standard_error(values, right)) == {1, 3}
    # A log likelihood likewise, of those that have as many right.
    means = torch.tensor([-1.0, -0.95, -0.5])[:, None] + torch.tensor([0.5, -0.5]).repeat(200)
    assert chosen(one_standard_error(means[:2], right[:1].expand(2, -1))) == {0, 1}
    assert chosen(one_standard_error(means, torch.stack([right[0], right[0], right[1]]))) == {2}


def test_that_all_are_right_is_no_certainty():
    right = torch.tensor([[1.0] * number + [0.0] * (1000 - number) for number in (1000, 999, 998)])
    assert chosen(one_standard_error(torch.zeros(3, 1000), right)) == {0, 1}


def test_no_more_than_half_a_point_of_accuracy_is_given_up():
    """An error is 1.5 points here."""
    right = torch.tensor([[1.0] * number + [0.0] * (200 - number) for number in (190, 189, 188, 187)])
    values = torch.zeros(4, 200)
    assert chosen(one_standard_error(values, right)) == {0, 1}
    assert chosen(one_standard_error(values, right, num_errors=2.0)) == {0, 1, 2}


def test_networks_that_give_an_example_no_chance():
    values = torch.tensor([[-1.0, -1.0], [-torch.inf, 0.0], [torch.nan, 0.0]])
    assert chosen(one_standard_error(values)) == {0}
    with pytest.raises(ReductionError, match="finite"):
        one_standard_error(values[1:])


@pytest.mark.parametrize(
    ("went", "leaving", "has_waited", "factor"),
    [
        (0.0, 0.0, True, 4.0),
        (0.019, 0.019, False, 4.0),
        (0.021, 0.0, False, 2.0),
        (0.0, 0.09, False, 2.0),
        (0.09, 0.0, False, 2.0),
        (0.11, 0.0, True, math.sqrt(2)),
        (0.11, 0.09, False, math.sqrt(2)),
        (0.0, 0.11, False, 1.0),
        (0.9, 0.11, False, 1.0),
        (0.9, 0.11, True, 1.0),
        (0.0, 0.11, True, 2.0),
        (0.09, 0.9, True, 2.0),
    ],
)
def test_the_temperature_rises_by_what_went_and_waits_for_what_is_leaving(went, leaving, has_waited, factor):
    assert next_temperature(3.0, went, leaving, has_waited) == pytest.approx(3 * factor)


def test_too_few_examples():
    with pytest.raises(ReductionError, match="two"):
        one_standard_error(torch.zeros(3, 1))
