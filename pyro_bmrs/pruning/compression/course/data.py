# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The data of a compression: what is trained on, and what is held out, from whatever form users have."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    random_split,
)

from pyro_bmrs.errors import ReductionError

BATCH_SIZE = 128
# Of the data, where nothing is held out by the user.
_HELD_OUT = 0.1
# And more where that is less than so many, up to a larger share: few tell networks apart badly.
_FEW, _MOST_HELD_OUT = 500, 0.2
_KINDS = "a DataLoader, a Dataset of pairs, or a pair of tensors"


class Data(NamedTuple):
    """
    What is trained on and what is held out.

    :param train: batches to train on, pairs of inputs and targets, shuffled anew each time.
    :param validation: batches that are held out.
    :param num_examples: how many examples there are to train on.
    :param all: batches of all examples that may be trained on in the end, when nothing is left to be decided: of those
        that were held out too, if they were drawn from the others.
    """

    train: DataLoader[Any]
    validation: DataLoader[Any]
    num_examples: int
    all: DataLoader[Any]

    @property
    def is_held_out_for_good(self) -> bool:
        """Whether what is held out is not trained on in the end either."""
        return self.all is self.train


def read_data(train_data: Any, validation_data: Any = None, *, seed: int = 0) -> Data:
    """
    Batches to train on and batches to hold out.

    :param train_data: a data loader, a data set of pairs, or a pair of tensors, inputs and targets.
    :param validation_data: the same, held out; by default a tenth of the others, or a fifth of few,
        drawn at random.
    :param seed: of that draw.
    :raises ReductionError: for data of another form, fewer than two examples on either side, or a data loader from
        which nothing can be held out: one of a stream, or with a sampler of its own.

    Example::

        >>> import torch
        >>> data = read_data((torch.randn(50, 3), torch.randint(2, (50,))))
        >>> data.num_examples, [len(y) for _, y in data.validation]
        (40, [10])
    """
    source = train_data if isinstance(train_data, DataLoader) else _dataset(train_data, "train_data")
    if validation_data is None:
        train, held_out = _split(source, seed)
    else:
        train = source
        held_out = validation_data
    loader = _loader(train)
    validation = held_out if isinstance(held_out, DataLoader) else _dataset(held_out, "validation_data")
    if not isinstance(validation, DataLoader):
        validation = _batches(validation, is_shuffled=False)
    num_examples = _size(loader.dataset, "train_data")
    for name, number in (("train_data", num_examples), ("validation_data", _size(validation.dataset, "it"))):
        if number < 2:
            raise ReductionError(f"{name} has {number} examples; give two or more")
    return Data(loader, validation, num_examples, loader if train is source else _loader(source))


def _dataset(data: Any, name: str) -> Dataset[Any]:
    if isinstance(data, tuple | list) and len(data) == 2 and all(map(torch.is_tensor, data)):
        x, y = data
        if len(x) != len(y):
            raise ReductionError(f"{name} has inputs of {len(x)} examples and targets of {len(y)}")
        return TensorDataset(x, y)
    if isinstance(data, Dataset):
        return data
    raise ReductionError(f"{name} is {_KINDS}, not {type(data).__name__}")


def _size(dataset: Any, name: str) -> int:
    if not isinstance(dataset, Sized):
        raise ReductionError(f"{name} does not say how many examples it has: give a data set with a length")
    return len(dataset)


def _split(source: Any, seed: int) -> tuple[Any, Any]:
    """Of a loader two like it; of a data set two parts."""
    dataset = source.dataset if isinstance(source, DataLoader) else source
    size = _size(dataset, "train_data")
    if isinstance(source, DataLoader) and (
        source.batch_size is None or type(source.sampler) not in (RandomSampler, SequentialSampler)
    ):
        raise ReductionError(
            "nothing can be held out from a data loader with a sampler of its own: give validation_data, or the data "
            "set in place of the loader"
        )
    num_held_out = max(round(_HELD_OUT * size), min(_FEW, round(_MOST_HELD_OUT * size)), 2)
    if size - num_held_out < 2:
        raise ReductionError(f"train_data has {size} examples, too few to hold some out: give validation_data")
    generator = torch.Generator().manual_seed(seed)
    train, held_out = random_split(dataset, [size - num_held_out, num_held_out], generator)
    if isinstance(source, DataLoader):
        is_shuffled = isinstance(source.sampler, RandomSampler)
        return _like(source, train, is_shuffled), _like(source, held_out, False)
    if isinstance(dataset, TensorDataset):
        return _tensors(train), _tensors(held_out)
    return train, held_out


def _tensors(part: Subset[Any]) -> TensorDataset:
    """Tensors by themselves, from which a batch is taken at once."""
    dataset: Any = part.dataset
    return TensorDataset(*(tensor[torch.tensor(part.indices)] for tensor in dataset.tensors))


def _loader(source: Any) -> DataLoader[Any]:
    return source if isinstance(source, DataLoader) else _batches(source, is_shuffled=True)


def _batches(dataset: Any, *, is_shuffled: bool) -> DataLoader[Any]:
    # A last batch of one example is too few for a norm over examples.
    drop_last = is_shuffled and len(dataset) > BATCH_SIZE and len(dataset) % BATCH_SIZE == 1
    if isinstance(dataset, TensorDataset):
        order = RandomSampler(dataset) if is_shuffled else SequentialSampler(dataset)
        return DataLoader(dataset, sampler=BatchSampler(order, BATCH_SIZE, drop_last), batch_size=None)
    return DataLoader(dataset, BATCH_SIZE, shuffle=is_shuffled, drop_last=drop_last)


def _like(loader: DataLoader[Any], dataset: Any, is_shuffled: bool) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        loader.batch_size,
        shuffle=is_shuffled,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last and is_shuffled,
        worker_init_fn=loader.worker_init_fn,
    )
