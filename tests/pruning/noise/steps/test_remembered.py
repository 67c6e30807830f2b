# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A remembered value is made as often as what it is made of changes, and no oftener."""

from __future__ import annotations

import copy
import pickle

import torch

from pyro_bmrs.pruning.noise.steps.remembered import Remembered


class Total:
    """The sum of tensors, times a factor; and how often it was made."""

    def __init__(self) -> None:
        self.tensors, self.factor, self.times = [torch.ones(2), torch.zeros(3)], 1.0, 0
        self.remembered: Remembered[float] = Remembered()

    def make(self) -> float:
        self.times += 1
        return self.factor * sum(tensor.sum().item() for tensor in self.tensors)

    def value(self) -> float:
        return self.remembered.of(list(self.tensors), self.make, self.factor)


def test_it_is_made_once_while_nothing_changes() -> None:
    total = Total()
    assert [total.value() for _ in range(3)] == [2.0, 2.0, 2.0] and total.times == 1


def test_it_is_made_again_of_another_tensor_one_written_to_or_another_setting() -> None:
    total = Total()
    total.value()
    for number, change in enumerate(
        [
            lambda: total.tensors.__setitem__(1, torch.ones(3)),
            lambda: total.tensors[0].fill_(4.0),
            lambda: setattr(total, "factor", 2.0),
            lambda: total.tensors.append(torch.ones(1)),
            lambda: total.tensors.pop(),
        ]
    ):
        change()
        assert total.value() == total.factor * sum(tensor.sum().item() for tensor in total.tensors)
        assert total.times == number + 2


def test_equal_tensors_are_not_the_same() -> None:
    total = Total()
    total.value()
    total.tensors[0] = torch.ones(2)
    total.value()
    assert total.times == 2


def test_copies_remember_nothing() -> None:
    total = Total()
    total.value()
    for other in (copy.deepcopy(total), pickle.loads(pickle.dumps(total))):
        other.tensors = [torch.full((1,), 7.0)]
        assert other.value() == 7.0 and other.times == 2
