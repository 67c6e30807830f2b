# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning")
from compression_cells import CELLS, COLUMNS, Part, main, mlp, prune_by_torch_pruning, size_of


def test_what_is_done_is_not_done_again(tmp_path, capsys):
    options = [
        "--cells",
        "diabetes-mlp",
        "--seeds",
        "0",
        "--epochs",
        "1",
        "--results",
        str(tmp_path / "new" / "rows.csv"),
    ]
    first = main(options)
    assert list(first.columns) == COLUMNS
    assert first["method"].tolist() == ["dense", "compress", "torch-pruning, norm", "torch-pruning, taylor"]
    assert "dense" in capsys.readouterr().out
    assert main(options).equals(first)
    assert "Compression" not in capsys.readouterr().out


@pytest.mark.parametrize("importance", ["norm", "taylor"])
def test_torch_pruning_comes_to_the_size_that_it_is_told(importance):
    torch.manual_seed(0)
    part = Part(torch.randn(128, 1, 4, 4), torch.randint(10, (128,)))
    small = prune_by_torch_pruning(mlp((1, 4, 4), 40, 2), part, 1000, 2, importance)
    assert 930 < size_of(small) <= 1000
    assert small(part.x[:2]).shape == (2, 10)


@pytest.mark.parametrize("name", [name for name in CELLS if name not in ("digits-cnn", "diabetes-mlp")])
def test_every_network_takes_its_images(name):
    shape = (3, 32, 32) if name.startswith("cifar10") else (1, 28, 28)
    assert CELLS[name].network(shape)(torch.zeros(2, *shape)).shape == (2, 10)
