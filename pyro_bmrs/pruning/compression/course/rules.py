# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Which network of a path will do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from pyro_bmrs.pruning.compression.path import one_standard_error
from pyro_bmrs.pruning.compression.result import PathStep

# Of networks trained without noise, the whole one first, and of how much is allowed, in units of what the rule does:
# which will do.
Rule: TypeAlias = Callable[[Sequence[PathStep], float], Sequence[bool]]


def near_the_best(steps: Sequence[PathStep], allowed: float) -> list[bool]:
    """
    The rule of :func:`~pyro_bmrs.pruning.compression.path.one_standard_error`.

    :param steps: the networks.
    :param allowed: how many errors.
    """
    right = [step.held_out.right for step in steps if step.held_out.right is not None]
    will_do: list[bool] = one_standard_error(
        torch.stack([step.held_out.log_likelihoods for step in steps]), torch.stack(right) if right else None, allowed
    ).tolist()
    return will_do


def keeps_accuracy(steps: Sequence[PathStep], allowed: float, loss: float) -> list[bool]:
    """
    Those that do not lose more accuracy than they may.

    :param steps: the networks.
    :param allowed: how many times the loss.
    :param loss: the share of examples.
    """
    return [step.held_out.accuracy >= steps[0].held_out.accuracy - allowed * loss for step in steps]


def is_worse(step: PathStep, other: PathStep) -> bool:
    """
    Whether one network does worse than another in all that is looked at.

    :param step: the one.
    :param other: the other.
    """
    has_more_right = step.held_out.right is not None and step.held_out.accuracy > other.held_out.accuracy
    return step.mean_log_likelihood < other.mean_log_likelihood and not has_more_right


def with_end(rule: str, chosen: int, num_steps: int) -> str:
    """
    A rule in words, and whether the path was too short for it.

    :param rule: the words.
    :param chosen: the number of the network that was taken.
    :param num_steps: how many there are.
    """
    if not 0 < chosen == num_steps - 1:
        return rule
    again = "compress it again, with is_trained=True and data that it has not seen, to see whether a smaller one does"
    return f"{rule}, at the end of the path: {again}"
