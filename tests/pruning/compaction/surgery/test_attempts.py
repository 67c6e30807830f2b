# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""All steps that leave the outputs as they are, and no other, are taken."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyro_bmrs.pruning.compaction.surgery.attempts import attempt, most_that_work
from pyro_bmrs.pruning.examples import Outputs


class Steps(nn.Module):
    """The identity, unless a step has been taken that is wrong, or that raises."""

    def __init__(self, steps: Sequence[str]) -> None:
        super().__init__()
        self.steps = list(steps)

    def forward(self, inputs: Tensor) -> Tensor:
        if "raises" in self.steps:
            raise ValueError("a size does not fit")
        return inputs + 1.0 if "wrong" in self.steps else inputs


INPUTS = torch.randn(2, 3)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["right", "wrong", "raises"]), max_size=12))
def test_takes_those_that_work(steps: list[str]) -> None:
    net, failed = most_that_work(steps, Steps, Outputs(Steps([]), INPUTS))
    assert net.steps == [step for step in steps if step == "right"]
    assert failed.keys() == {place for place, step in enumerate(steps) if step != "right"}
    for place, reason in failed.items():
        assert ("a size does not fit" if steps[place] == "raises" else "would change") in reason


def test_few_attempts_where_few_fail() -> None:
    built: list[int] = []

    def build(chosen: Sequence[str]) -> nn.Module:
        built.append(len(chosen))
        return Steps(chosen)

    most_that_work(["right"] * 64, build, Outputs(Steps([]), INPUTS))
    assert built == [0, 64]
    built.clear()
    most_that_work(["right"] * 63 + ["wrong"], build, Outputs(Steps([]), INPUTS))
    assert len(built) <= 2 + 2 * 6


def test_steps_that_work_alone_only_are_not_taken_together() -> None:
    def build(chosen: Sequence[int]) -> nn.Module:
        return Steps(["wrong"] if len(chosen) > 1 else [])

    _, failed = most_that_work([1, 2], build, Outputs(Steps([]), INPUTS))
    assert failed.keys() == {1}


@pytest.mark.parametrize("steps", [[], ["wrong"]])
def test_without_steps_that_work_the_network_is_as_it_was(steps: list[str]) -> None:
    net, failed = most_that_work(steps, Steps, Outputs(Steps([]), INPUTS))
    assert net.steps == [] and len(failed) == len(steps)


@pytest.mark.parametrize(("step", "reason"), [("right", ""), ("wrong", "would change"), ("raises", "does not fit")])
def test_an_attempt_says_why_it_fails(step: str, reason: str) -> None:
    net, why = attempt(lambda: Steps([step]), Outputs(Steps([]), INPUTS))
    assert (net is None) == bool(reason) and reason in why
