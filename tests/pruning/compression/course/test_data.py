# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Subset, TensorDataset

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning.compression.course.data import read_data

X, Y = torch.arange(300.0).unsqueeze(1), torch.arange(300)


def examples(loader):
    return sorted(int(label) for _, y in loader for label in y)


@pytest.mark.parametrize(
    "source",
    [
        (X, Y),
        TensorDataset(X, Y),
        Subset(TensorDataset(X, Y), range(300)),
        DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True),
    ],
)
def test_what_is_held_out_is_not_trained_on(source):
    data = read_data(source, seed=3)
    held_out, trained = examples(data.validation), examples(data.train)
    assert sorted(held_out + trained) == list(range(300)) and len(held_out) == 60
    assert data.num_examples == len(trained) == 240
    assert examples(read_data(source, seed=3).validation) == held_out != examples(read_data(source).validation)
    assert [len(y) for _, y in data.train][0] == (7 if isinstance(source, DataLoader) else 128)
    assert examples(data.all) == list(range(300)) and not data.is_held_out_for_good


@pytest.mark.parametrize(("size", "held_out"), [(2_000, 400), (4_000, 500), (6_000, 600)])
def test_of_few_more_are_held_out(size, held_out):
    data = read_data((torch.zeros(size, 1), torch.zeros(size, dtype=torch.long)))
    assert data.num_examples == size - held_out


def test_inputs_and_targets_stay_together():
    data = read_data((X, Y))
    assert all(torch.equal(x[:, 0].long(), y) for loader in data[:2] for x, y in loader)


def test_what_is_given_is_taken_as_it_is():
    loader = DataLoader(TensorDataset(X, Y), sampler=BatchSampler(RandomSampler(X), 9, False), batch_size=None)
    data = read_data(loader, (X[:50], Y[:50]))
    assert data.train is data.all is loader and data.is_held_out_for_good
    assert examples(data.validation) == list(range(50)) and data.num_examples == 300


def test_training_is_shuffled_and_the_rest_is_not():
    data = read_data((X, Y), (X, Y))
    assert torch.equal(torch.cat([y for _, y in data.validation]), Y)
    assert not torch.equal(torch.cat([y for _, y in data.train]), Y)


def test_no_batch_of_one():
    x, y = torch.randn(257, 2), torch.zeros(257)
    assert [len(batch) for _, batch in read_data((x, y), (x, y)).train] == [128, 128]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X,), "DataLoader, a Dataset"),
        ((None,), "DataLoader, a Dataset"),
        (((X, Y[:5]),), "300 examples and targets of 5"),
        (((X[:3], Y[:3]),), "too few"),
        (((X[:1], Y[:1]), (X, Y)), "train_data has 1"),
        (((X, Y), (X[:1], Y[:1])), "validation_data has 1"),
        ((Stream(),), "how many"),
        (
            (DataLoader(TensorDataset(X, Y), sampler=BatchSampler(RandomSampler(X), 9, False), batch_size=None),),
            "sampler",
        ),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ReductionError, match=message):
        read_data(*arguments)
