# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning.compression.course.fitting import fit


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.Linear(2, 1), nn.Parameter(torch.zeros(()))

    def forward(self, x, y):
        return (self.layer(x).squeeze(1) + self.other - y).square().mean()


X = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
LOADER = DataLoader(TensorDataset(X, X.sum(1) + 1), batch_size=8)


def test_it_is_the_loop_that_anyone_would_write():
    ours, theirs = Loss(), Loss()
    theirs.load_state_dict(ours.state_dict())
    first, second = (torch.optim.SGD(ours.layer.parameters(), 0.1), torch.optim.SGD([ours.other], 0.2))
    steps = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(ours, [first, second], [first], LOADER, 11, lambda: steps.append(1))
    rates = [{"params": theirs.layer.parameters(), "lr": 0.1}, {"params": [theirs.other], "lr": 0.2}]
    optimizer = torch.optim.SGD(rates)
    done = 0
    for _ in range(3):
        for x, y in LOADER:
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + torch.cos(torch.tensor(torch.pi * done / 11)).item())
            optimizer.zero_grad()
            theirs(x, y).backward()
            if done < 11:
                optimizer.step()
            done += 1
    assert len(steps) == 11
    for parameter, other in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(parameter, other)


def test_training_that_diverges():
    loss = Loss()
    optimizer = torch.optim.SGD(loss.parameters(), 1e30)
    with pytest.raises(ReductionError, match="lower learning rate"):
        fit(loss, [optimizer], [], LOADER, 3, lambda: None)


def test_loaders_without_a_batch():
    loss, loader = Loss(), DataLoader(TensorDataset(X[:3], X[:3, 0]), batch_size=8, drop_last=True)
    with pytest.raises(ReductionError, match="no batch"):
        fit(loss, [], [], loader, 3, lambda: None)


def interrupt():
    raise KeyboardInterrupt


def test_an_interrupt_is_an_interrupt_and_gradients_are_on():
    loss = Loss()
    optimizer = torch.optim.SGD(loss.parameters(), 0.1)
    before = loss.layer.weight.clone()
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        fit(loss, [optimizer], [], LOADER, 3, interrupt)
    assert not torch.equal(loss.layer.weight, before)
