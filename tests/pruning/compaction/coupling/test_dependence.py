# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is marked is what changes with the input, as other inputs show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from pyro_bmrs.pruning.compaction.coupling.dependence import Dependence

Function = Callable[[Tensor], Tensor]


def marked(function: Function, values: Tensor, places: Tensor) -> Tensor:
    """The marks of what a function computes, where those of some of the values' elements are set."""
    values = values.clone()
    with torch.no_grad(), Dependence() as dependence:
        chosen = torch.zeros_like(values)
        dependence.mark(chosen)
        # Mixed element by element, by a condition that is not marked.
        return dependence.of(function(torch.where(places, values + chosen, values)))


def changed(function: Function, values: Tensor, places: Tensor) -> Tensor:
    """Which elements of what a function computes are others for any of many values at some places."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = function(values.clone())
        others = [torch.randn(values.shape, generator=generator, dtype=values.dtype) for _ in range(40)]
        after = [function(torch.where(places, 3 * other, values)) for other in others]
    return torch.stack([before != one for one in after]).any(0)


@pytest.fixture
def values() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 4, 6, 6, dtype=torch.float64)


@pytest.fixture
def places() -> Tensor:
    """One channel of one example, a pixel of another channel, and a channel of the other example."""
    places = torch.zeros(2, 4, 6, 6, dtype=torch.bool)
    places[0, 1] = places[1, 3, :, 2:4] = places[0, 2, 0, 5] = True
    return places


def seeded(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.double().eval()


def written(values: Tensor) -> Tensor:
    """What is written in place to a view of what another view shows."""
    result = torch.zeros(2, 4, 36, dtype=values.dtype)
    result[:, 1:3].view(2, 2, 6, 6)[:] = values[:, :2]
    result.view(2, 4, 6, 6)[:, 2].add_(values[:, 3]).relu_()
    return result


EXACT: dict[str, Function] = {
    "views": lambda x: x.permute(2, 0, 3, 1)[1:].reshape(-1, 8).t().unsqueeze(0).expand(3, -1, -1),
    "written views": written,
    "views in place": lambda x: x.clone()[:, 1:2].squeeze_(1).transpose_(0, 1).unsqueeze_(0),
    "chunk and cat": lambda x: torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0], x], 1),
    "stack": lambda x: torch.stack([x, x.flip(2), torch.ones_like(x)]),
    "index": lambda x: x[:, torch.tensor([3, 1])][..., [0, 1], [2, 2]],
    "index_select, gather": lambda x: x.index_select(1, torch.tensor([1])).gather(3, torch.zeros_like(x[:, :1]).long()),
    "packed": lambda x: pack_padded_sequence(x[..., 0], torch.tensor([4, 2]), batch_first=True).data,
    "pad": lambda x: F.pad(F.pad(x, (1, 2), value=4.0), (1, 1, 1, 1), mode="reflect"),
    "circular pad": lambda x: F.pad(x, (2, 1, 0, 3), mode="circular"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2).roll(1, -1),
    "unfold": lambda x: F.unfold(x, 2),
    "elementwise": lambda x: torch.addcmul(F.gelu(x), x.sin(), torch.ones(6).double()) + torch.ones(4, 1, 1).double(),
    "activations": lambda x: F.silu(F.leaky_relu(x)) + F.elu(x).sigmoid() + F.hardswish(x) + F.softplus(x),
    "zero factors": lambda x: (x * torch.tensor([0.0, 1.0, 0.0, 2.0]).double().reshape(4, 1, 1)).exp(),
    "zero factors in place": lambda x: x.clone().mul_(torch.tensor([0.0, 1.0, 0, 2, 3, 4]).double()),
    "a number of 0": lambda x: x * 0 + 1,
    "where": lambda x: torch.where(torch.arange(6) < 3, x, 2.0),
    "masked_fill": lambda x: x.masked_fill(torch.arange(4).reshape(4, 1, 1) > 1, -1.0),
    "overwritten": lambda x: x.clone().copy_(x[:, 1:2]).index_fill(1, torch.tensor([1]), 2.0),
    "precision": lambda x: x.float().double(),
    "reductions": lambda x: x.mean((2, 3), keepdim=True) + x.sum(2, keepdim=True) + x.amax(3, keepdim=True),
    "norms": lambda x: x.norm(dim=1) + x.var(1) + x.logsumexp(1),
    "softmax": lambda x: x.softmax(1) + x.log_softmax(1),
    "cumsum": lambda x: x.cumsum(-1),
    "pooling": lambda x: F.max_pool2d(x, 3, 1, 1) + F.avg_pool2d(x, 3, 1, 1),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x, 2) + F.adaptive_max_pool2d(x, 2),
    "global pooling, channels last": lambda x: F.adaptive_avg_pool2d(
        x.contiguous(memory_format=torch.channels_last), 1
    ),
    "upsampling": lambda x: F.interpolate(x, scale_factor=2),
    "layer norm": seeded(nn.LayerNorm(6)),
    "group norm": seeded(nn.GroupNorm(2, 4)),
    "batch norm": seeded(nn.BatchNorm2d(4)),
    "instance norm": seeded(nn.InstanceNorm2d(4, affine=True)),
    "linear": seeded(nn.Linear(6, 3)),
    "matmul": lambda x: x @ x.flip(1).transpose(2, 3),
    "zeros in a product of matrices": lambda x: (x * KEPT) @ (x.flip(1) * KEPT),
    "zeros that are divided": lambda x: (x * KEPT) / (x.flip(1).abs() + 1),
}
CAUTIOUS: dict[str, Function] = {
    "depthwise": seeded(nn.Conv2d(4, 8, 3, groups=4, padding=1)),
    "grouped": seeded(nn.Conv2d(4, 6, 3, groups=2)),
    "transposed": seeded(nn.ConvTranspose2d(4, 6, 3, groups=2)),
    "convolution": seeded(nn.Conv2d(4, 6, 1)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "sort": lambda x: x.sort(2).values,
    "fft": lambda x: torch.fft.rfft(x).real,
    "inverse": lambda x: torch.linalg.inv(x + 9 * torch.eye(6)),
    "indices": lambda x: F.embedding((x.sigmoid() * 5).long(), torch.arange(15.0).double().view(5, 3)),
    "tokens": lambda x: torch.arange(6.0).double()[(x.sigmoid() * 5).long()],
    "a computed weight": lambda x: F.conv2d(x, x[:1, :, :2, :2]),
    "a read number": lambda x: torch.ones(2, dtype=x.dtype) * x.sum().item(),
    "read numbers": lambda x: torch.tensor(x[0].tolist()),
    "numpy": lambda x: torch.from_numpy(np.exp(x.numpy())).relu(),
    "another's operation": lambda x: Squares.apply(x),
}


KEPT = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0, 3.0], dtype=torch.float64)


class Squares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, inputs: Tensor) -> Tensor:  # type: ignore[override]
        return inputs.square()


def test_elements_at_one_place_in_memory_are_marked() -> None:
    values = torch.ones(1, 3).expand(2, 3)
    with Dependence() as dependence:
        dependence.mark(values)
        assert dependence.of(2 * values).all()


@pytest.mark.parametrize("name", EXACT)
def test_marks_what_changes_and_no_more(name: str, values: Tensor, places: Tensor) -> None:
    found = marked(EXACT[name], values, places)
    assert torch.equal(found, changed(EXACT[name], values, places))
    assert found.any() or name == "a number of 0"


@pytest.mark.parametrize("name", CAUTIOUS)
def test_marks_what_changes(name: str, values: Tensor, places: Tensor) -> None:
    found = marked(CAUTIOUS[name], values, places)
    assert not (changed(CAUTIOUS[name], values, places) & ~found).any() and found.any()


@pytest.mark.parametrize("name", [*EXACT, *(name for name in CAUTIOUS if "read" not in name and name != "numpy")])
def test_marks_nothing_of_what_is_not_marked(name: str, values: Tensor) -> None:
    assert not marked({**EXACT, **CAUTIOUS}[name], values, torch.zeros_like(values, dtype=torch.bool)).any()


TAKEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_select": lambda x, chosen: x.index_select(1, chosen),
    "gather": lambda x, chosen: x.gather(1, chosen.reshape(1, -1, 1).expand(2, -1, 3)),
    "index": lambda x, chosen: x[torch.arange(2), chosen[:2]],
    "packed": lambda x, chosen: pack_padded_sequence(x, chosen[:2] + 1, batch_first=True, enforce_sorted=False).data,
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_from_somewhere(name: str) -> None:
    """Of the last dimension the second is one constant, and the third differs by place."""
    values = torch.stack([torch.randn(2, 4), torch.full((2, 4), 0.5), torch.arange(8.0).reshape(2, 4)], -1)
    with Dependence() as dependence:
        chosen = torch.tensor([3, 0, 2])
        dependence.mark(chosen)
        dependence.mark(values[..., 0])
        found = dependence.of(TAKEN[name](values, chosen))
    assert found[..., 0].all() and not found[..., 1].any() and found[..., 2].all()


def test_groups_of_a_convolution_are_apart(values: Tensor) -> None:
    places = torch.zeros_like(values, dtype=torch.bool)
    places[1, 2] = True
    found = marked(CAUTIOUS["grouped"], values, places)
    assert found[1, 3:].all() and not found[1, :3].any() and not found[0].any()


def test_a_number_that_python_reads_makes_no_constant_factor() -> None:
    with Dependence() as dependence:
        inputs, zeros = torch.zeros(3), torch.zeros(3)
        dependence.mark(inputs)
        number = inputs.sum().item()
        assert dependence.of(torch.ones(3) * number).all()
        assert not dependence.of(zeros * number).any()
        # A branch that is taken by what was read is not followed.
        assert not dependence.of(zeros.relu() if (inputs == 0).all() else zeros).any()


def test_results_that_are_given() -> None:
    with Dependence() as dependence:
        inputs, result = torch.ones(3), torch.zeros(3)
        dependence.mark(inputs[1:])
        torch.add(inputs, 1.0, out=result)
        assert dependence.of(result).tolist() == [False, True, True]
        result.zero_()
        assert not dependence.of(result).any()


def test_views_of_another_precision() -> None:
    with Dependence() as dependence:
        pairs = torch.zeros(2, 2)
        dependence.mark(pairs[1, 1])
        assert dependence.of(torch.view_as_complex(pairs)).tolist() == [False, True]
        assert dependence.of(pairs.view(torch.int16)).tolist() == [[False] * 4, [False, False, True, True]]
