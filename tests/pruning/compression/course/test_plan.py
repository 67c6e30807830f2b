# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from pyro_bmrs.pruning.compression.course.plan import MOST_TRIED, NUM_STEPS, Plan


def test_a_long_training():
    plan = Plan.of(10_000, is_trained=False)
    assert plan == (10_000, 150, 1_800)
    assert plan.seen == 10_000 + NUM_STEPS * 150 + 3 * 1_800


def test_what_is_trained_is_not_trained_again():
    assert Plan.of(10_000, is_trained=True) == Plan.of(10_000, is_trained=False)._replace(whole=0)


@pytest.mark.parametrize(("num_batches", "step", "end"), [(1, 20, 1), (100, 20, 50), (800, 20, 300)])
def test_a_short_training_has_steps_that_are_long_enough(num_batches, step, end):
    assert Plan.of(num_batches, is_trained=False) == (num_batches, step, end)


def test_no_more_is_done_than_is_planned():
    """Some are tried on the way, all others asked for by bisection, each is trained again, and one to its end."""
    plan = Plan.of(10_000, is_trained=False)
    trainings = (plan.most - plan.whole - NUM_STEPS * plan.step) / plan.end
    assert 2 ** ((trainings - 1) / 2 - MOST_TRIED) >= 5 * NUM_STEPS
