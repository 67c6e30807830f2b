# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The script for LeNet-5, on digits that ship with scikit-learn in the place of MNIST's, and as large."""

from __future__ import annotations

import numpy as np
import pruning_mnist
import pytest
from sklearn.datasets import load_digits

datasets = pytest.importorskip("datasets", reason="images are read by datasets (extra paper)")


@pytest.fixture
def folder(tmp_path):
    images, digits = load_digits(return_X_y=True)
    pixels = np.pad(images.reshape(-1, 8, 8).repeat(2, 1).repeat(2, 2) * 15.9, [(0, 0), (6, 6), (6, 6)]).astype("uint8")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    for part, chosen in (("train", slice(0, 60)), ("test", slice(60, 90))):
        rows = {"image": list(pixels[chosen]), "label": digits[chosen].tolist()}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{part}.parquet")
    return tmp_path


def test_it_compresses_and_tells_what_is_left(folder, capsys):
    """One batch an epoch: how many steps it takes to compress does not depend on how few examples there are."""
    table = pruning_mnist.main(["--data", str(folder), "--seeds", "3", "--epochs", "15"])
    assert table.index.tolist() == [(3, "whole"), (3, "compressed")]
    whole, compressed = table.to_dict("records")
    assert whole["layers"] == "20-50-500-10" and whole["multiplications"] == 2_293_000
    assert compressed["multiplications"] <= 2_293_000
    assert all(float(row["test error"].rstrip("%")) < 70 for row in (whole, compressed))
    assert str(table) in capsys.readouterr().out


def test_its_network_is_the_one_that_papers_share():
    net = pruning_mnist.lenet()
    assert sum(parameter.numel() for parameter in net.parameters()) == 431_080
