# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy

import pytest
import torch
from pruning_digits import accuracy, load_images, main, network

from pyro_bmrs.pruning import compaction_report


def test_what_is_left_is_an_ordinary_smaller_network(capsys: pytest.CaptureFixture[str]) -> None:
    small = main(["--epochs", "20"])
    assert [type(layer) for layer in small] == [type(layer) for layer in network()]
    parameters, before = (sum(p.numel() for p in net.parameters()) for net in (small, network()))
    assert parameters < 0.6 * before
    assert compaction_report(small).layers["parameters_after"].sum() == parameters
    assert accuracy(small, *load_images()[1]) > 0.95
    printed = capsys.readouterr().out
    assert "parameters left" in printed and "Test accuracy" in printed
    twin = copy.deepcopy(small)
    twin.load_state_dict(small.state_dict())
    torch.testing.assert_close(twin(torch.ones(2, 1, 8, 8)), small(torch.ones(2, 1, 8, 8)))
