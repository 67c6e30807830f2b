# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import signal
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_bmrs import ReductionError

pytest.importorskip("lightning")
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


def interrupt():
    raise KeyboardInterrupt


def test_an_interrupt_is_an_interrupt():
    """Lightning alone would end the process, and hear no other."""
    handler = signal.getsignal(signal.SIGINT)
    loss = Loss()
    optimizer = torch.optim.SGD(loss.parameters(), 0.1)
    with pytest.raises(KeyboardInterrupt):
        fit(loss, [optimizer], [], LOADER, 3, interrupt)
    assert signal.getsignal(signal.SIGINT) is handler


def test_other_threads_may_train():
    loss, failures = Loss(), []

    def run():
        try:
            fit(loss, [torch.optim.SGD(loss.parameters(), 0.1)], [], LOADER, 1, lambda: None)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures
