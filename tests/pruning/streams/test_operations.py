# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Operations tell what they read and write."""

from __future__ import annotations

import torch

from pyro_bmrs.pruning.streams.operations import Operation, memory_of

aten = torch.ops.aten


def test_arguments_have_the_names_of_the_schema_and_its_defaults() -> None:
    one, other = torch.ones(2), torch.ones(2)
    operation = Operation.of(aten.add.Tensor, (one, other), {})
    assert operation.name == "add" and not operation.takes_numbers
    assert operation.arguments == {"self": one, "other": other, "alpha": 1}
    assert operation.tensors == (one, other) and operation.written == ()


def test_numbers_are_those_that_are_given() -> None:
    assert Operation.of(aten.add.Tensor, (torch.ones(2), torch.ones(2)), {"alpha": 2}).takes_numbers
    assert not Operation.of(aten.softmax.int, (torch.ones(2),), {"half_to_float": True}).takes_numbers


def test_in_place_is_the_same_operation() -> None:
    one, other = torch.ones(2), torch.ones(2)
    operation = Operation.of(aten.add_.Tensor, (one, other), {})
    assert operation.name == "add" and operation.written == (one,)
    assert list(operation.changed(one)) == [one]


def test_a_result_that_is_given_is_written_and_not_read() -> None:
    one, result = torch.tensor([1.0, 2.0]), torch.zeros(2)
    operation = Operation.of(aten.exp.out, (one,), {"out": result})
    assert operation.written == (result,) and operation.tensors == (one,)
    assert torch.equal(operation.on(lambda name, tensor: tensor - 1), (one - 1).exp())
    assert not result.any()


def test_a_view_changes_nothing() -> None:
    values = torch.ones(2, 3)
    view, copy = values.t(), values.t().contiguous()
    operation = Operation.of(aten.t.default, (values,), {})
    assert list(operation.changed(view)) == [] and list(operation.changed(copy)) == [copy]
    assert memory_of(view) == memory_of(values) != memory_of(copy)
    assert memory_of(values.to_sparse()) is None


def test_on_other_tensors() -> None:
    indices = torch.tensor([1])
    operation = Operation.of(aten.index_fill.int_Scalar, (torch.ones(3), 0, indices, 5.0), {})
    result = operation.on(lambda name, tensor: tensor if name == "index" else -tensor, value=7)
    assert result.tolist() == [-1.0, 7.0, -1.0]
