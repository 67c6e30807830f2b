# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What functions make of factors is where they take the elements that the factors multiply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pyro_bmrs.pruning.compaction.surgery.elements import (
    FunctionCall,
    Mixed,
    commutes,
    function_name,
    indices_after,
    same_along,
)


class Last(TorchFunctionMode):
    """Keeps the last call of a function."""

    call: FunctionCall

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.call = FunctionCall(function_name(func, kwargs), func, args, kwargs, result)
        return result


def called(function: Callable[[Tensor], Any], values: Tensor) -> FunctionCall:
    with Last() as last:
        function(values)
    return last.call


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        lambda x: F.leaky_relu(x, 0.1),
        lambda x: x.flatten(1),
        lambda x: x.permute(1, 0, 3, 2),
        lambda x: x.view(2, 2, 2, 16),
        lambda x: x.mT,
        lambda x: x[:, [3, 1]],
        lambda x: x.chunk(2, 1),
        lambda x: x.unbind(1),
        lambda x: torch.cat([x, x], 2),
        lambda x: torch.stack([x, x]),
        lambda x: x + x,
        lambda x: x * 3.0,
        lambda x: 3.0 * x,
        lambda x: x / 7.0,
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: x.mean((2, 3)),
        lambda x: x.sum(dim=3),
        lambda x: x.amax(2),
        lambda x: F.pixel_shuffle(x[:, :1].expand(2, 4, 4, 4), 2),
    ],
)
def test_indices_are_of_the_factors_of_each_element(function: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(0)
    values, factors = torch.randn(2, 4, 4, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.2
    indices = torch.arange(4).reshape(4, 1, 1).expand(values.shape)
    call = called(function, values)
    given = {id(tensor): indices[:, :1].expand(indices.shape) for tensor in call.tensors} | {id(values): indices}
    after = indices_after(call, lambda argument: given.get(id(argument)))
    with_factors = called(function, values * factors.reshape(4, 1, 1)).result
    for plain, multiplied, of in zip(tree_leaves(call.result), tree_leaves(with_factors), tree_leaves(after)):
        torch.testing.assert_close(plain * factors[of], multiplied, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        torch.sigmoid,
        torch.exp,
        lambda x: x + 1.0,
        lambda x: x * x,
        lambda x: 1.0 / x,
        lambda x: x.cumsum(1),
        lambda x: x.mean(1),
        lambda x: x.sum(),
        lambda x: x.div(0.1, rounding_mode="floor"),
        lambda x: x.long(),
        lambda x: x.to(torch.int8),
        lambda x: x.view(torch.int64),
        lambda x: F.max_pool2d(x.transpose(1, 2), 2),
        lambda x: F.max_pool3d(x, 2),
        lambda x: x + x.flip(1),
    ],
)
def test_what_does_not_commute_is_mixed(function: Callable[[Tensor], Any]) -> None:
    values = torch.rand(2, 4, 4, 4, dtype=torch.float64) + 0.1
    indices = torch.arange(4).reshape(4, 1, 1).expand(values.shape)
    call = called(function, values)
    given = {id(values): indices, **{id(t): indices.flip(1) for t in call.tensors if t is not values}}
    if "max_pool2d" in call.name:
        given[id(call.tensors[0])] = indices.transpose(1, 2)
    with pytest.raises(Mixed):
        indices_after(call, lambda argument: given.get(id(argument)))


def test_indices_that_are_the_same_along_dimensions() -> None:
    indices = torch.arange(3).reshape(3, 1).expand(3, 2)
    assert same_along(indices, [1]).tolist() == [[0], [1], [2]]
    assert same_along(indices, []) is indices
    with pytest.raises(Mixed):
        same_along(indices, [0])


def test_sequences_that_are_packed_and_padded() -> None:
    values, factors, lengths = torch.randn(2, 4, 3), torch.rand(3) + 0.2, torch.tensor([4, 2])
    indices = torch.arange(3).expand(values.shape)
    packing = called(lambda x: torch._VF._pack_padded_sequence(x, lengths, True), values)
    packed = indices_after(packing, lambda argument: indices if argument is values else None)[0]
    data, sizes = packing.result
    torch.testing.assert_close(
        torch._VF._pack_padded_sequence(values * factors, lengths, True)[0], data * factors[packed]
    )
    padding = called(lambda x: torch._VF._pad_packed_sequence(x, sizes, True, 0.0, 5), data)
    padded, _ = indices_after(padding, lambda argument: packed if argument is data else None)
    expected, _ = torch._VF._pad_packed_sequence(data * factors[packed], sizes, True, 0.0, 5)
    torch.testing.assert_close(expected, padding.result[0] * factors[padded])


def test_questions_and_what_commutes() -> None:
    values = torch.rand(2, 3)
    assert called(lambda x: x.size(), values).is_question and called(lambda x: x.shape, values).is_question
    assert not called(lambda x: x.T, values).is_question
    assert commutes(called(F.relu, values)) and commutes(called(lambda x: x * 2, values))
    # Broadcast, its channels would be at other places.
    assert not commutes(called(lambda x: x * torch.ones(4, 2, 3), values))
    assert not commutes(called(lambda x: x > 0, values)) and not commutes(called(lambda x: x.tolist(), values))
