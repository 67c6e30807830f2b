# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How long each of the trainings takes of which a compression is made."""

from __future__ import annotations

import math
from typing import NamedTuple

from pyro_bmrs.pruning.compression.path import MOST_BETWEEN

# How many steps a path has at most, and how many networks are tried on the way; and of the batches of plain training,
# what a step takes, and what each candidate does to be compared, and does once more when it is taken.
NUM_STEPS, MOST_TRIED = 30, 4
_STEP, _END = 0.015, 0.18
# Fewer batches than these in a step do not move the noise, and in the end do not mend what noise has done to weights;
# the latter take no more than half of plain training.
_FEWEST_BATCHES, _FEWEST_IN_END = 20, 300


class Plan(NamedTuple):
    """
    For how many batches to train.

    :param whole: the whole network.
    :param step: with noise, in each step of the path.
    :param end: each candidate without noise, to be compared; once more those that may yet do; and once more the one
        that is taken.
    """

    whole: int
    step: int
    end: int

    @classmethod
    def of(cls, num_batches: int, is_trained: bool) -> Plan:
        """
        A plan that takes some 2 to 2.5 times as long as plain training, where that is long.

        :param num_batches: of plain training.
        :param is_trained: whether that is done.
        """
        step = max(_FEWEST_BATCHES, round(_STEP * num_batches))
        end = max(1, round(_END * num_batches), min(_FEWEST_IN_END, num_batches // 2))
        return cls(0 if is_trained else num_batches, step, end)

    @property
    def most(self) -> int:
        """Of all of them together, at most."""
        trainings = 2 * (MOST_TRIED + math.ceil(math.log2((1 + MOST_BETWEEN) * NUM_STEPS))) + 1
        return self.whole + NUM_STEPS * self.step + trainings * self.end

    @property
    def seen(self) -> int:
        """Of those that the network has seen that is taken, at most."""
        return self.whole + NUM_STEPS * self.step + 3 * self.end
