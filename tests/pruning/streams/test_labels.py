# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Labels go where their elements go, are tied where two meet, and stop where channels are mixed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_bmrs.pruning.streams.labels import Labels

# Of shape (2, 3, 4): the last dimension are channels.
CHANNELS = torch.arange(1, 5)


def after(function: Callable[[Tensor], Tensor], channels: Tensor = CHANNELS) -> tuple[Tensor, Labels]:
    values = torch.randn(2, 3, 4)
    with Labels() as labels:
        labels.put(values, channels)
        result = function(values)
    return labels.of(result), labels


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(2, 0, 1),
        lambda x: x.reshape(2, 12).clone().view(2, 3, 4),
        lambda x: torch.roll(x, 1, 1),
        lambda x: torch.cat([x, x.flip(-1)], 0),
        lambda x: x[:, 1:],
        lambda x: x[torch.tensor([1, 0, 1])],
        lambda x: x.mean(1),
        lambda x: x.amax((0, 1)),
        lambda x: x.transpose(1, 2).contiguous(),
        lambda x: F.avg_pool2d(x.movedim(-1, 1).unsqueeze(-1), (3, 1)),
        lambda x: x.expand(5, 2, 3, 4).double().float(),
    ],
)
def test_elements_take_their_labels_along(function: Callable[[Tensor], Tensor]) -> None:
    found, labels = after(function)
    # As numbers, which are the same all along a channel, go.
    assert torch.equal(found, function(CHANNELS.double().expand(2, 3, 4)).round().long())
    assert not labels.stuck and not labels.ties


@pytest.mark.parametrize(
    "function", [F.gelu, torch.exp, lambda x: 2.0 * x - 1.0, lambda x: F.dropout(x, training=False)]
)
def test_functions_of_each_element_leave_them(function: Callable[[Tensor], Tensor]) -> None:
    found, labels = after(function)
    assert torch.equal(found, CHANNELS.expand(2, 3, 4)) and not labels.stuck


def test_where_two_meet_they_are_tied() -> None:
    one, other = torch.ones(2, 4), torch.ones(4)
    with Labels() as labels:
        labels.put(one, CHANNELS)
        labels.put(other, CHANNELS + 4)
        result = one + other
    assert labels.ties == {(1, 5), (2, 6), (3, 7), (4, 8)}
    assert set(labels.of(result).flatten().tolist()) == {5, 6, 7, 8}


def test_what_is_padded_has_none() -> None:
    found, _ = after(lambda x: F.pad(x, (0, 0, 1, 0)))
    assert torch.equal(found[:, 0], torch.zeros(2, 4).long()) and torch.equal(found[0, 1], CHANNELS)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum(-1),
        lambda x: x @ torch.randn(4, 2),
        lambda x: x.softmax(-1),
        lambda x: F.layer_norm(x, (4,)),
        lambda x: x.cumsum(-1),
    ],
)
def test_what_is_mixed_goes_no_further(function: Callable[[Tensor], Tensor]) -> None:
    found, labels = after(function)
    assert set(labels.stuck) == {1, 2, 3, 4} and not found.any()


def test_a_number_that_python_reads_is_of_its_channel() -> None:
    _, labels = after(lambda x: x[0, 0, 2:3] * x[0, 0, 2].item())
    assert set(labels.stuck) == {3}


@pytest.mark.parametrize(
    ("function", "stays"),
    [
        (lambda x: x * 3.0, True),
        (lambda x: x / 3.0, True),
        (lambda x: x + x, True),
        (lambda x: F.gelu(x), True),
        (lambda x: x + 1.0, False),
        (lambda x: x.cos(), False),
        (lambda x: x.sigmoid(), False),
        (lambda x: x * torch.randn(4), True),
        (lambda x: x + torch.randn(4), False),
    ],
)
def test_what_a_norm_leaves_out_stays_0_or_not(function: Callable[[Tensor], Tensor], stays: bool) -> None:
    assert (float(function(torch.zeros(2, 3, 4)).abs().max()) == 0) is stays
    found, _ = after(function, -CHANNELS)
    assert (found < 0).all() if stays else (found > 0).all()
