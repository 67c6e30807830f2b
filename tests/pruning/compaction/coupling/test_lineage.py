# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Tensors know what they were computed from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_bmrs.pruning.compaction.coupling.lineage import Lineage


def names(function: Callable[[Tensor, Tensor], object]) -> set[object]:
    """What a function's result is of, of its first argument and its second."""
    with torch.no_grad(), Lineage() as lineage:
        return set(lineage.of(function(lineage.begin(1, torch.rand(2, 4, 4)), lineage.begin(2, torch.rand(2, 4, 4)))))


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda x, y: x.relu().view(-1)[3:], {1}),
        (lambda x, y: F.scaled_dot_product_attention(x, x, y), {1, 2}),
        (lambda x, y: x.argmax(-1), {1}),
        (lambda x, y: x.flatten()[(y * 16).long().flatten()], {1, 2}),
        (lambda x, y: x * 0 + y, {1, 2}),
        (lambda x, y: x.add_(y), {1, 2}),
        (lambda x, y: (x[0].copy_(y[0]), x)[1], {1, 2}),
        (lambda x, y: (x.add(y), x)[1], {1}),
        (lambda x, y: torch.zeros_like(x) + y, {2}),
        (lambda x, y: torch.zeros(x.shape) + y.new_ones(1), set()),
        (lambda x, y: {"logits": [x.sin()], "nothing": None}, {1}),
        (lambda x, y: torch.ones(3) * y.sum().item(), {2}),
        (lambda x, y: torch.tensor(y.tolist()).relu(), {2}),
        (lambda x, y: x if (y > 0).all() else -x, {1}),
        (lambda x, y: torch.linalg.inv(x + torch.eye(4)), {1}),
    ],
)
def test_of_what_a_result_is(function: Callable[[Tensor, Tensor], object], expected: set[int]) -> None:
    assert names(function) == expected


def test_a_beginning_is_a_copy() -> None:
    values = torch.zeros(2)
    with Lineage() as lineage:
        first = lineage.begin("first", values)
        second = lineage.begin("second", first)
        second.add_(1)
        assert lineage.of(values) == set() and lineage.of(first) == {"first"}
        assert lineage.of(second) == {"first", "second"}
    assert not values.any()
