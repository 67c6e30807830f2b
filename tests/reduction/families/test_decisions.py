# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Stretches of numbers for which a decision holds."""

from __future__ import annotations

import math

import pytest
import scipy.optimize

from pyro_bmrs.reduction.families.decisions import Stretch, root, stretches


@pytest.mark.parametrize(
    "function, a, b",
    [
        (lambda x: math.cos(x) - x, 0.0, 1.0),
        (lambda x: x**9 - 1e-6, 0.0, 2.0),  # flat on one side, where plain secants crawl
        (lambda x: math.log(x) + 20, 1e-12, 1.0),
        (lambda x: math.atan(1e6 * (x - 0.3)), 0.0, 1.0),
    ],
)
def test_a_root_to_the_last_digits(function, a, b):
    exact = scipy.optimize.brentq(function, a, b, xtol=1e-15, rtol=1e-14)
    assert root(function, a, b, function(a), function(b)) == pytest.approx(exact, rel=1e-10)


def found(function, numbers, threshold=0.0):
    return stretches(function, numbers, [function(x) for x in numbers], threshold)


def test_where_nothing_changes_there_is_one():
    assert found(lambda x: 1.0 + x, [0.0, 1.0, 2.0]) == (Stretch(0.0, 2.0, 1),)


def test_a_decision_that_comes_and_goes():
    parts = found(lambda x: math.sin(x), [0.5 * i for i in range(1, 19)])
    assert [part.sign for part in parts] == [1, -1, 1]
    assert [part.high for part in parts[:2]] == pytest.approx([math.pi, 2 * math.pi], rel=1e-12)
    assert parts[0].high == parts[1].low


@pytest.mark.parametrize("numbers", [[-4.0, 4.0], [-4.0, 0.0, 4.0], [-4.0, -2.0, 2.0, 4.0]])
@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_between_thresholds_nothing_is_decided(numbers, slope):
    parts = found(lambda x: slope * x, numbers, 3.0)
    assert [part.sign for part in parts] == [-slope, 0, slope]
    assert [part.high for part in parts[:2]] == pytest.approx([-3.0, 3.0], rel=1e-12)


def test_what_is_not_known_is_a_stretch_of_its_own():
    parts = found(lambda x: 1.0 if x < 2.5 else math.nan, [1.0, 2.0, 3.0, 4.0])
    assert [(part.low, part.high, part.sign) for part in parts] == [(1.0, 2.0, 1), (2.0, 4.0, None)]


def test_a_single_number():
    assert found(lambda x: -1.0, [3.0]) == (Stretch(3.0, 3.0, -1),)
    assert 3.0 in Stretch(3.0, 3.0, -1) and 3.1 not in Stretch(3.0, 3.0, -1)
