# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import compress
from pyro_bmrs.pruning.compression.checkpoint import Checkpoint

X = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
DATA = DataLoader(TensorDataset(X, (X[:, 0] > 0).long()), batch_size=18, shuffle=True)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 2))


class Interrupted(torch.optim.Adam):
    """Adam that comes to no end: Ctrl-C is pressed in its n-th step of all."""

    left = 0

    def step(self, *args, **kwargs):
        Interrupted.left -= 1
        if Interrupted.left == 0:
            raise KeyboardInterrupt
        return super().step(*args, **kwargs)


@pytest.mark.no_cover
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path):
    options = {"epochs": 6, "progress": False}
    whole = compress(network(), DATA, optimizer=partial(torch.optim.Adam, lr=3e-2), **options)
    assert whole.path["trained"].sum() > 1
    # More than any training takes, of which the longest has 90 batches, and less than two of them.
    resumed, num_interrupted = None, 0
    while resumed is None:
        Interrupted.left = 100
        try:
            resumed = compress(network(), DATA, optimizer=partial(Interrupted, lr=3e-2), checkpoint=tmp_path, **options)
        except KeyboardInterrupt:
            num_interrupted += 1
    assert num_interrupted > 4
    assert resumed.path.equals(whole.path) and resumed.chosen == whole.chosen
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert repr(resumed.decisions) == repr(whole.decisions) and repr(resumed.prices) == repr(whole.prices)


def test_a_run_of_other_settings(tmp_path):
    Checkpoint.at(tmp_path / "new" / "folder", {"epochs": 3, "seed": 0})
    with pytest.raises(ReductionError, match="other seed"):
        Checkpoint.at(tmp_path / "new" / "folder", {"epochs": 3, "seed": 1})


def test_a_file_that_is_none(tmp_path):
    checkpoint = Checkpoint.at(tmp_path, {"seed": 0})
    checkpoint.save("whole", {"weight": torch.ones(3)})
    path = tmp_path / "whole.pt"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ReductionError, match="truncated"):
        checkpoint.load("whole")


def test_nowhere():
    checkpoint = Checkpoint.at(None, {})
    checkpoint.save("whole", 1)
    assert checkpoint.load("whole") is None
