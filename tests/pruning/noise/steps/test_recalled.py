# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning.noise.steps.recalled import Recalled, is_recomputing, may_be_recomputed

CPU = torch.device("cpu")


def test_a_draw_is_found_by_the_state_before_it_whichever_it_was():
    recalled, states, values, scale = Recalled(), [], [], torch.ones(3, requires_grad=True)
    for _ in range(5):
        states.append(torch.get_rng_state())
        values.append(recalled.draw(CPU, lambda: scale * torch.rand(3)))
        following = torch.rand(2)
        with torch.no_grad():
            for _ in range(10):  # what validation draws is not kept
                recalled.draw(CPU, lambda: torch.rand(3))
    for state, value in reversed(list(zip(states, values))):
        torch.set_rng_state(state)
        assert recalled.again("a", CPU) is value
    torch.set_rng_state(states[-1])
    recalled.again("a", CPU)
    assert torch.equal(torch.rand(2), following)


def test_what_was_never_drawn():
    recalled = Recalled()
    recalled.draw(CPU, lambda: torch.rand(3, requires_grad=True))
    with pytest.raises(ReductionError, match="'a' is asked for in a backward pass"):
        recalled.again("a", CPU)
    with pytest.raises(ReductionError, match="preserve_rng_state=True"):
        copy.deepcopy(recalled).again("a", CPU)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_where_the_network_runs_is_known(use_reentrant):
    seen = []

    def part(x):
        seen.append((may_be_recomputed(), is_recomputing()))
        return x.sin().cos()

    x = torch.ones(3, requires_grad=True)
    part(x)
    checkpoint(part, x, use_reentrant=use_reentrant).sum().backward()
    assert [first for first, _ in seen[:2]] == [False, True]
    assert [second for _, second in seen] == [False, False, True]
