# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_bmrs.pruning.compression.course.held_out import HeldOut
from pyro_bmrs.pruning.compression.course.rules import is_worse, keeps_accuracy, near_the_best, with_end
from pyro_bmrs.pruning.compression.result import PathStep


def step(log_likelihood, num_right=None):
    """Of 400 held-out examples, of which so many are right."""
    right = None if num_right is None else (torch.arange(400) < num_right).double()
    values = log_likelihood + 0.1 * torch.tensor([-1.0, 1.0] * 200).double()
    return PathStep(1.0, nn.Identity(), True, {}, HeldOut(values, right), 1, 1, None, None)


def test_labels_are_looked_at_where_there_are_some():
    assert near_the_best([step(-2.0), step(-1.0), step(-1.001)], 1.0) == [False, True, True]
    assert near_the_best([step(-2.0, 380), step(-1.0, 370), step(-2.004, 379)], 1.0) == [True, False, True]


def test_a_loss_of_accuracy():
    steps = [step(-1.0, 380), step(-9.0, 376), step(-1.0, 375)]
    assert keeps_accuracy(steps, 1.0, loss=0.0101) == [True, True, False]
    assert keeps_accuracy(steps, 2.0, loss=0.0101) == [True, True, True]


@pytest.mark.parametrize(
    ("one", "other", "worse"),
    [
        ((-1.1,), (-1.0,), True),
        ((-1.0,), (-1.1,), False),
        ((-1.1, 380), (-1.0, 380), True),
        ((-1.1, 381), (-1.0, 380), False),
        ((-1.0, 370), (-1.1, 380), False),
    ],
)
def test_worse_in_all_that_is_looked_at(one, other, worse):
    assert is_worse(step(*one), step(*other)) == worse


def test_the_end_of_a_path_is_said():
    assert with_end("the smallest", 3, 5) == "the smallest"
    assert with_end("the smallest", 0, 1) == "the smallest"
    assert "again" in with_end("the smallest", 4, 5)
