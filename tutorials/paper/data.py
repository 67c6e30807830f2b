# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Images and their labels, in memory: from a folder or the hub, by ``datasets``, or the digits of scikit-learn.

Decoding tens of thousands of images takes longer than an epoch, so that the tensors are kept in a cache folder.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyro_bmrs.errors import ReductionError

# Where the hub has what the paper's experiments read.
HUB = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "tiny_imagenet": "zh-plus/tiny-imagenet",
}
NAMES = [*HUB, "digits"]
ROOT_VARIABLE, CACHE_VARIABLE = "PYRO_BMRS_DATA", "PYRO_BMRS_CACHE"

_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")
_TEST_SPLITS = ("test", "validation", "valid")
_EVALUATION_BATCH = 1000
# So many batches are one for the trainer.
BATCHES_TOGETHER = 8
# What the pixels that are centred have for a mean and a standard deviation.
_CENTRED = torch.tensor(127.0).reshape(1, 1, 1), torch.tensor(255.0).reshape(1, 1, 1)
# The examples that are held out are the same for all seeds.
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Examples(Dataset):
    """
    Images as bytes and their labels; indexed by a tensor of numbers, a batch of normalised images and labels.

    :param images: shape ``(n, channels, height, width)``, of type uint8.
    :param labels: shape ``(n,)``.
    :param mean: of each channel, of shape ``(channels, 1, 1)``.
    :param scale: of each channel, likewise; what is subtracted and divided by.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        # Which takes a tenth of the time that indexing does.
        images = self.images.index_select(0, index) if isinstance(index, Tensor) else self.images[index]
        images = images.float().sub_(self.mean).div_(self.scale)
        # As the convolutions of the networks are.
        return images.contiguous(memory_format=torch.channels_last), self.labels[index]

    def batches(self, size: int = _EVALUATION_BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them in order, so many at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


class Stretch:
    """
    Batches one after the other, each made when its turn comes.

    Lightning's own account of a batch costs as much as a step of a small network, and is kept of a stretch of them.

    :param examples: of which they are.
    :param batches: the numbers of each batch's examples.
    :param device: where they are wanted.
    """

    def __init__(self, examples: Examples, batches: Sequence[Tensor], device: Any = None) -> None:
        self.examples, self.batches, self.device = examples, batches, device

    def to(self, device: Any, **options: Any) -> Stretch:
        """The same for a device."""
        return Stretch(self.examples, self.batches, device)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for numbers in self.batches:
            images, labels = self.examples[numbers]
            yield images.to(self.device), labels.to(self.device)


class Stretches(Dataset):
    """
    Stretches of examples, given the numbers of each batch's.

    :param examples: the examples.
    """

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, batches: Sequence[Tensor]) -> Stretch:
        return Stretch(self.examples, batches)


class Batches(Sampler):
    """
    Tensors of the numbers of examples: for each process its share of each batch, some batches at a time.

    :param num_examples: how many examples there are.
    :param size: how many are in a batch of all processes together.
    :param rank: which of them this process is.
    :param world_size: how many they are.
    :param seed: of the order, which is another in each epoch; in order without.
    """

    def __init__(self, num_examples: int, size: int, rank: int, world_size: int, seed: int | None = None) -> None:
        self.num_examples, self.size, self.rank, self.world_size, self.seed = num_examples, size, rank, world_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch is next, as the trainer does."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_examples // (self.size * BATCHES_TOGETHER))

    def __iter__(self) -> Iterator[list[Tensor]]:
        order = torch.arange(self.num_examples)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
            order = torch.randperm(self.num_examples, generator=generator)
        for stretch in order.split(self.size * BATCHES_TOGETHER):
            shares = [(batch, batch[self.rank :: self.world_size]) for batch in stretch.split(self.size)]
            # No process may be without a step to take part in.
            yield [share if len(share) else batch[:1] for batch, share in shares]


class Images(LightningDataModule):
    """
    A data set of images, split into examples to train with, to validate on (held out of the training set), and to test.

    :param name: mnist, fashion_mnist, cifar10, tiny_imagenet, digits, a folder or the name of a data set on the hub
        that ``datasets`` can load, with a column of images (``image`` or ``img``) and one of numbers (``label``,
        ``labels`` or ``fine_label``), and the splits ``train`` and ``test``, ``validation`` or ``valid``.
    :param root: a folder in which those that have names are looked for first; by default what PYRO_BMRS_DATA says.
    :param cache: where decoded images are kept; by default what PYRO_BMRS_CACHE says, or ~/.cache/pyro_bmrs.
    :param size: height and width of the images; by default they stay as they are.
    :param fit: how they come to it: pad puts zeros around them, resize interpolates, antialiased.
    :param pixels: standardised has mean 0 and standard deviation 1 in each channel; centred is ``(byte - 127) / 255``.
    :param channels: 1 or 3, to which images are converted; by default they stay as they are.
    :param batch_size: how many examples are in a training step, of all processes together.
    :param validation_share: the share of the training set that is held out.
    :param limit: how many examples of each split to use; by default all.
    :param seed: of the order of the training examples.
    """

    def __init__(
        self,
        name: str = "mnist",
        root: str | None = None,
        cache: str | None = None,
        size: int | None = None,
        fit: Literal["pad", "resize"] = "pad",
        pixels: Literal["standardised", "centred"] = "standardised",
        channels: int | None = None,
        batch_size: int = 64,
        validation_share: float = 0.2,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if channels not in (None, 1, 3):
            raise ReductionError(f"channels is 1 for grey images or 3 for those in colour, not {channels}")
        if fit not in ("pad", "resize"):
            raise ReductionError(f"fit is 'pad' or 'resize', not {fit!r}")
        if fit == "resize" and size is None:
            raise ReductionError("fit 'resize' needs the size to come to: give --data.size")
        if pixels not in ("standardised", "centred"):
            raise ReductionError(f"pixels is 'standardised' or 'centred', not {pixels!r}")
        if batch_size < 1:
            raise ReductionError(f"batch_size is at least 1, not {batch_size}")
        if not 0 < validation_share < 1:
            raise ReductionError(f"validation_share is between 0 and 1, not {validation_share}")
        if limit is not None and limit < 10:
            raise ReductionError(f"limit is at least 10 examples, not {limit}")
        self.name: str = name
        self.size, self.fit, self.pixels, self.channels, self.seed = size, fit, pixels, channels, seed
        self.root = root or os.environ.get(ROOT_VARIABLE)
        self.cache = Path(cache or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "pyro_bmrs")
        self.batch_size, self.validation_share, self.limit = batch_size, validation_share, limit

    @cached_property
    def _splits(self) -> dict[str, Examples]:
        raw = load_digits() if self.name == "digits" else load_images(self.name, self.root, self.cache, self.channels)
        (images, labels), test = raw["train"], raw["test"]
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
        train, validation = order[(held_out := round(self.validation_share * len(order))) :], order[:held_out]
        parts = {"train": (images[train], labels[train]), "validation": (images[validation], labels[validation])}
        parts = {name: self._fitted(*part) for name, part in (parts | {"test": test}).items()}
        statistics = _statistics(parts["train"][0]) if self.pixels == "standardised" else _CENTRED
        return {name: Examples(*part, *statistics) for name, part in parts.items()}

    def _fitted(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = images[: self.limit], labels[: self.limit]
        if self.size is None:
            return images, labels
        if self.fit == "resize":
            return _resized(images, self.size), labels
        height, width = self.size - images.shape[-2], self.size - images.shape[-1]
        if height < 0 or width < 0:
            raise ReductionError(
                f"the images of {self.name} are of {images.shape[-2]}x{images.shape[-1]} pixels, more than "
                f"{self.size}x{self.size}: padding does not make them smaller; give a larger size, none, or fit: resize"
            )
        return F.pad(images, (width // 2, width - width // 2, height // 2, height - height // 2)), labels

    @property
    def train(self) -> Examples:
        """What is trained with."""
        return self._splits["train"]

    @property
    def validation(self) -> Examples:
        """What is held out."""
        return self._splits["validation"]

    @property
    def test(self) -> Examples:
        """What is tested on."""
        return self._splits["test"]

    @property
    def num_train(self) -> int:
        """How many examples there are to train with."""
        return len(self.train)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return int(max(part.labels.max() for part in self._splits.values())) + 1

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has."""
        return -(-self.num_train // self.batch_size)

    def train_dataloader(self) -> DataLoader:
        """This process's share of the training examples, in batches, in another order each epoch."""
        return self._loader(self.train, self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader:
        """This process's share of the examples held out."""
        return self._loader(self.validation, _EVALUATION_BATCH)

    def _loader(self, examples: Examples, size: int, seed: int | None = None) -> DataLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if size % world_size:
            raise ReductionError(
                f"a batch of {size} examples cannot be shared evenly by {world_size} processes: give a batch_size that "
                "their number divides"
            )
        batches = Batches(len(examples), size, rank, world_size, seed)
        return DataLoader(Stretches(examples), batch_size=None, sampler=batches)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel."""
    # Counted by value, as the images may be too many to be made numbers of four bytes.
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    shares, values = counts / counts.sum(1, keepdim=True), torch.arange(256.0, dtype=torch.double)
    mean = (shares * values).sum(1, keepdim=True)
    scale = (shares * (values - mean).square()).sum(1, keepdim=True).sqrt().clamp(min=1.0)
    return mean.float().unsqueeze(-1), scale.float().unsqueeze(-1)


def _resized(images: Tensor, size: int) -> Tensor:
    """Interpolated, a part at a time, as in numbers of four bytes all may be too many."""
    parts = [
        F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        for part in images.split(_EVALUATION_BATCH)
    ]
    return torch.cat(parts)


RawSplits = dict[str, tuple[Tensor, Tensor]]


def load_digits() -> RawSplits:
    """The handwritten digits of scikit-learn (Alpaydin and Kaynak 1998), 8x8 pixels, a quarter of them for the test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ReductionError("digits needs scikit-learn: pip install pyro_bmrs[paper]") from error
    pixels, digits = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).mul(255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(digits).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    train, test = order[len(order) // 4 :], order[: len(order) // 4]
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def load_images(name: str, root: str | None, cache: Path, channels: int | None = None) -> RawSplits:
    """
    Images and labels of a data set that ``datasets`` can load.

    :param name: see :class:`Images`.
    :param root: likewise.
    :param cache: likewise; any number of processes may share it.
    :param channels: likewise.
    :return: for ``"train"`` and ``"test"`` images of type uint8, shape ``(n, channels, height, width)``, and labels.
    :raises ReductionError: for a name that is not known, a data set without what is expected, or images that are not
        all of one shape; without ``datasets``.
    """
    source = _resolve(name, root)
    try:
        import datasets
    except ImportError as error:
        raise ReductionError(f"{name} is loaded by datasets: pip install pyro_bmrs[paper]") from error
    try:
        loaded = datasets.load_dataset(source)
    except Exception as error:  # datasets raises what its file systems, formats and the hub's client do
        raise ReductionError(
            f"datasets cannot load {source!r}: {type(error).__name__}: {error}. A folder has parquet files, or images, "
            f"by split; without a connection, name the folder that holds one called {name!r} by --data.root or "
            f"{ROOT_VARIABLE}"
        ) from error
    test = next((split for split in _TEST_SPLITS if split in loaded), None)
    if "train" not in loaded or test is None:
        raise ReductionError(
            f"{source!r} has the splits {list(loaded)}; needed are 'train' and one of {', '.join(_TEST_SPLITS)}"
        )
    return {
        "train": _cached(loaded["train"], f"{source}: train", cache, channels),
        "test": _cached(loaded[test], f"{source}: {test}", cache, channels),
    }


def _resolve(name: str, root: str | None) -> str:
    """The folder, or the name on the hub."""
    if root is not None:
        if not Path(root).is_dir():
            raise ReductionError(f"the folder of data sets, {root!r}, is not there")
        if (Path(root) / name).is_dir():
            return str(Path(root) / name)
    if Path(name).is_dir():
        return name
    if name in HUB:
        return HUB[name]
    if "/" in name and not name.startswith((".", "/")):
        return name
    local = [folder.name for folder in Path(root).iterdir() if folder.is_dir()] if root else []
    near = difflib.get_close_matches(name, {*NAMES, *local}, n=3, cutoff=0.4)
    guess = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(NAMES)}"
    raise ReductionError(f"no data set is called {name!r}, and no folder; {guess}")


def _cached(split: Any, where: str, cache: Path, channels: int | None) -> tuple[Tensor, Tensor]:
    path = cache / f"{split._fingerprint}-{channels or 'any'}.pt"
    if path.exists():
        stored = torch.load(path, weights_only=True)
        return stored["images"], stored["labels"]
    images, labels = _decoded(split, where, channels)
    cache.mkdir(parents=True, exist_ok=True)
    # Others see the whole of it or nothing.
    descriptor, temporary = tempfile.mkstemp(dir=cache, suffix=".part")
    with os.fdopen(descriptor, "wb") as file:
        torch.save({"images": images, "labels": labels}, file)
    os.replace(temporary, path)
    return images, labels


def _decoded(split: Any, where: str, channels: int | None) -> tuple[Tensor, Tensor]:
    import numpy as np
    from tqdm import tqdm

    image_column, label_column = _column(split, where, _IMAGES), _column(split, where, _LABELS)
    mode = {None: None, 1: "L", 3: "RGB"}[channels]
    pixels: list[Any] = []
    for row, image in enumerate(tqdm(split[image_column], desc=f"decoding {where}", mininterval=2.0)):
        if not hasattr(image, "convert"):
            raise ReductionError(f"{where}: column {image_column!r} holds no images, but {type(image).__name__}")
        array = np.asarray(image.convert(mode) if mode else image)
        array = array.astype(np.uint8) * 255 if array.dtype == bool else array
        if pixels and array.shape != pixels[0].shape:
            shapes = [" x ".join(map(str, shape)) for shape in (pixels[0].shape, array.shape)]
            raise ReductionError(
                f"{where}: images are not all of one shape: the first is {shapes[0]}, that of row {row} {shapes[1]} "
                "(height, width, channels); give --data.channels 1 or 3 to convert them, or resize the data set first"
            )
        if array.dtype != np.uint8:
            raise ReductionError(f"{where}: images are of bytes, not {array.dtype}; give --data.channels to convert")
        pixels.append(array)
    if not pixels:
        raise ReductionError(f"{where}: there is no image")
    images = torch.from_numpy(np.stack(pixels))
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    labels = np.asarray(split[label_column])
    if not np.issubdtype(labels.dtype, np.integer) or (labels < 0).any():
        raise ReductionError(f"{where}: column {label_column!r} must hold the numbers of classes, from 0 on")
    return images, torch.from_numpy(labels).long()


def _column(split: Any, where: str, names: tuple[str, ...]) -> str:
    found = [name for name in names if name in split.column_names]
    if not found:
        raise ReductionError(f"{where} has the columns {split.column_names}; needed is one of {', '.join(names)}")
    return found[0]
