# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_bmrs import ReductionError

pytest.importorskip("lightning")
pytest.importorskip("sklearn")
pytestmark = pytest.mark.filterwarnings("ignore")

from tutorials.paper.data import HUB, Batches, Images  # noqa: E402


def load(name: str, **options: object) -> Images:
    """A data set that has been read."""
    data = Images(name, **options)
    assert len(data.train)
    return data


def pixels(number: int, height: int = 6, width: int = 6, channels: int = 0, seed: int = 0) -> list[np.ndarray]:
    shape = (height, width, channels) if channels else (height, width)
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(number)]


def save(folder, splits, image="image", label="label"):
    """Parquet files, as the hub has them."""
    import datasets
    from PIL import Image

    folder.mkdir(parents=True)
    features = datasets.Features({image: datasets.Image(), label: datasets.Value("int64")})
    for split, arrays in splits.items():
        columns = {image: [Image.fromarray(array) for array in arrays], label: [n % 3 for n in range(len(arrays))]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "labels"), ("img", "fine_label")])
@pytest.mark.parametrize("test", ["test", "validation"])
@pytest.mark.parametrize("channels", [0, 3])
def test_a_folder_is_read_as_it_was_written(caches, image, label, test, channels):
    train_images, test_images = pixels(30, channels=channels), pixels(12, channels=channels, seed=1)
    name = save(caches / "some", {"train": train_images, test: test_images}, image, label)
    data = Images(name)
    stacked = torch.tensor(np.stack(test_images)).reshape(12, 6, 6, -1).movedim(-1, 1)
    assert torch.equal(data.test.images, stacked)
    assert data.test.labels.tolist() == [0, 1, 2] * 4
    assert (data.num_train, len(data.validation), data.num_classes) == (24, 6, 3)
    assert data.image_shape == (channels or 1, 6, 6)
    # Each image of the training set is in one of both parts, with its label.
    known = {array.tobytes(): number % 3 for number, array in enumerate(train_images)}
    for part in (data.train, data.validation):
        for array, number in zip(part.images.movedim(1, -1).contiguous().numpy(), part.labels.tolist()):
            assert known.pop(array.tobytes()) == number
    assert not known


def test_a_name_is_looked_for_in_the_root_first(caches, monkeypatch):
    save(caches / "root" / "mnist", {"train": pixels(20), "test": pixels(10)})
    assert Images("mnist", root=str(caches / "root")).num_train == 16
    monkeypatch.setenv("PYRO_BMRS_DATA", str(caches / "root"))
    assert Images("mnist").num_train == 16


def test_decoded_images_are_kept(caches):
    name = save(caches / "some", {"train": pixels(20), "test": pixels(10)})
    first = Images(name).train
    kept = list((caches / "images").iterdir())
    assert len(kept) == 2 and all(path.suffix == ".pt" for path in kept)
    # The second time they come from there.
    stored = torch.load(kept[0])
    torch.save({**stored, "images": 255 - stored["images"]}, kept[0])
    stored = torch.load(kept[1])
    torch.save({**stored, "images": 255 - stored["images"]}, kept[1])
    assert torch.equal(Images(name).train.images, 255 - first.images)


@pytest.mark.parametrize("size", [None, 8, 11])
def test_inputs_are_standardised_and_padded(size):
    data = Images("digits", size=size)
    x, y = data.train[torch.arange(data.num_train)]
    torch.testing.assert_close(x.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert x.shape[1:] == (1, size or 8, size or 8) and y.dtype == torch.long
    edge = ((size or 8) - 8) // 2
    inner = data.train.images[:, :, edge : edge + 8, edge : edge + 8]
    assert torch.equal(inner, Images("digits").train.images)
    assert data.train.images.long().sum() == inner.long().sum()


@pytest.mark.parametrize("channels", [0, 3])
def test_inputs_are_resized_and_centred(caches, channels):
    from PIL import Image

    arrays = pixels(12, 28, 28, channels)
    name = save(caches / "some", {"train": pixels(10, 28, 28, channels), "test": arrays})
    data = Images(name, size=32, fit="resize", pixels="centred")
    x, _ = data.test[torch.arange(12)]
    # Pillow's bilinear filter is antialiased, too; both round to bytes.
    by_pillow = [np.array(Image.fromarray(array).resize((32, 32), Image.Resampling.BILINEAR)) for array in arrays]
    expected = (torch.tensor(np.stack(by_pillow)).reshape(12, 32, 32, -1).movedim(-1, 1).float() - 127) / 255
    torch.testing.assert_close(x, expected, atol=1.01 / 255, rtol=0)
    assert Images(name, size=7, fit="resize").image_shape == (channels or 1, 7, 7)


def test_parts_do_not_depend_on_the_seed():
    first, second = Images("digits", seed=0), Images("digits", seed=1)
    assert torch.equal(first.validation.images, second.validation.images)


def batches(rank: int = 0, world_size: int = 1, epoch: int = 0, seed: int = 0) -> list[list[int]]:
    made = Batches(50, 4, rank, world_size, seed)
    made.set_epoch(epoch)
    assert [len(stretch) for stretch in made] == [8, 5] and len(made) == 2
    return [batch.tolist() for stretch in made for batch in stretch]


def test_an_epoch_is_a_permutation_of_its_own():
    epochs = [sum(batches(epoch=epoch), []) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert batches(epoch=1) == batches(epoch=1) and batches(seed=1) != batches(seed=0)


def test_processes_share_each_batch():
    whole, shares = batches(), [batches(rank, 2) for rank in range(2)]
    assert [sorted(first + second) for first, second in zip(*shares)] == [sorted(batch) for batch in whole]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_that_cannot_be_shared_is_an_error_of_each_process(rank):
    data = Images("digits", batch_size=63)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
    with pytest.raises(ReductionError, match="63 examples cannot be shared evenly by 2 processes: give a batch_size"):
        data.train_dataloader()


def test_a_loader_gives_each_batch_when_its_turn_comes():
    data = load("digits", batch_size=100)
    numbers = [batch for stretch in Batches(data.num_train, 100, 0, 1, data.seed) for batch in stretch]
    given = [batch for stretch in data.train_dataloader() for batch in stretch.to("cpu")]
    assert len(given) == len(numbers) == data.steps_per_epoch
    for (x, y), of_batch in zip(given, numbers):
        assert torch.equal(y, data.train.labels[of_batch])
        assert torch.equal(x * data.train.scale + data.train.mean, data.train.images[of_batch].float())


def test_mnist_as_published():
    root = os.environ.get("PYRO_BMRS_DATA")
    if not root or not os.path.isdir(os.path.join(root, "mnist")):
        pytest.skip("PYRO_BMRS_DATA names no folder with mnist in it")
    data = Images("mnist")
    assert (data.num_train, len(data.validation), len(data.test)) == (48_000, 12_000, 10_000)
    # How often each digit is in the test set (http://yann.lecun.com/exdb/mnist).
    assert data.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize(
    ("name", "says"), [("mnits", "'mnist'"), ("fashion-mnist", "'fashion_mnist'"), ("xyzzy", ", ".join(HUB))]
)
def test_a_name_that_is_not_known(caches, name, says):
    with pytest.raises(ReductionError, match=says):
        load(name)


def test_a_root_that_is_not_there(caches):
    with pytest.raises(ReductionError, match="nowhere"):
        load("mnist", root=str(caches / "nowhere"))


def test_a_folder_of_something_else(caches):
    (caches / "some").mkdir()
    (caches / "some" / "notes.xyz").write_text("nothing")
    with pytest.raises(ReductionError, match="cannot load"):
        load(str(caches / "some"))


def test_missing_columns(caches):
    names = [
        save(caches / kind, {"train": pixels(20), "test": pixels(10)}, **{kind: "x"}) for kind in ("image", "label")
    ]
    with pytest.raises(ReductionError, match=r"has the columns \['x', 'label'\]; needed is one of image, img"):
        load(names[0])
    with pytest.raises(ReductionError, match=r"has the columns \['image', 'x'\]; needed is one of label"):
        load(names[1])


def test_missing_splits(caches):
    with pytest.raises(ReductionError, match=r"splits \['train'\]"):
        load(save(caches / "some", {"train": pixels(20)}))


def test_images_of_several_shapes(caches):
    mixed = {"train": [*pixels(20), *pixels(1, width=7)], "test": pixels(10)}
    with pytest.raises(ReductionError, match="row 20 6 x 7"):
        load(save(caches / "sizes", mixed))
    mixed = {"train": [*pixels(20), *pixels(1, channels=3)], "test": pixels(10)}
    name = save(caches / "colours", mixed)
    with pytest.raises(ReductionError, match="--data.channels"):
        load(name)
    assert Images(name, channels=3).image_shape == (3, 6, 6)


def test_without_datasets(caches, monkeypatch):
    name = save(caches / "some", {"train": pixels(20), "test": pixels(10)})
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ReductionError, match=r"pyro_bmrs\[paper\]"):
        load(name)


@pytest.mark.parametrize(
    "options",
    [
        *({"channels": 2}, {"batch_size": 0}, {"validation_share": 0.0}, {"validation_share": 1.0}, {"limit": 3}),
        *({"fit": "crop"}, {"fit": "resize"}, {"pixels": "raw"}),
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(ReductionError, match=next(iter(options))):
        Images("digits", **options)


def test_padding_does_not_make_images_smaller():
    with pytest.raises(ReductionError, match="8x8.*fit: resize"):
        load("digits", size=7)
