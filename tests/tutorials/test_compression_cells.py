# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from compression_cells import CELLS, COLUMNS, main, mlp
from compression_methods import SETTINGS, Part, prune_by_setting, prune_by_torch_pruning, size_of


def test_what_is_done_is_not_done_again(tmp_path, capsys):
    path = tmp_path / "new" / "rows.csv"
    options = ["--cells", "diabetes-mlp", "--seeds", "0", "--epochs", "1", "--results", str(path)]
    first = main([*options, "--methods", "dense", "compress"])
    assert list(first.columns) == COLUMNS
    assert first["method"].tolist() == ["dense", "compress"]
    assert "dense" in capsys.readouterr().out
    second = main(options)
    assert second["method"].tolist() == ["dense", "compress", "torch-pruning, norm", "torch-pruning, taylor"]
    assert second[:2].equals(first)
    # Of the size that it was told, as far as whole units go, and from the whole network of the first run.
    assert (second["parameters"][2:] <= second["parameters"][1]).all()
    assert "Compression" not in capsys.readouterr().out
    assert main(options).equals(second)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_by_hand(name):
    torch.manual_seed(0)
    part = Part(torch.randn(256, 1, 4, 4), torch.randint(10, (256,)))
    small = prune_by_setting(mlp((1, 4, 4), 20, 2), "mlp", part, 6, SETTINGS[name])
    assert not any(module._forward_hooks for module in small.modules())
    assert small(part.x[:2]).shape == (2, 10)


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
