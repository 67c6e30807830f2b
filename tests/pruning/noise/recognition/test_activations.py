# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""An activation is what it does, whatever its class is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.noise.recognition.activations import is_activation


class Own(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: Tensor) -> object:
        return self.function(input)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: 0.5 * x * (1 + torch.tanh(x)), True),
        (torch.sigmoid, True),
        (lambda x: x, False),
        (lambda x: x.softmax(-1), False),
        (lambda x: x - x.mean(), False),
        (lambda x: x.cumsum(0), False),
        (lambda x: x[:, :1], False),
        (lambda x: x > 0, False),
        (lambda x: (x, x), False),
        (lambda x: x + torch.ones(7), False),
    ],
)
def test_a_function_of_each_element_alone(function: Callable[[Tensor], object], expected: bool) -> None:
    assert is_activation(Own(function)) is expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.GELU(), True),
        (nn.PReLU(), True),
        (nn.Dropout(), False),
        (nn.AvgPool1d(1), False),
        (nn.Linear(4, 4), False),
        (nn.Sequential(nn.ReLU()), False),
        (None, False),
    ],
)
def test_torchs_own(module: nn.Module | None, expected: bool) -> None:
    assert is_activation(module) is expected


def test_the_mode_stays() -> None:
    module = Own(torch.tanh).train()
    assert is_activation(module) and module.training
