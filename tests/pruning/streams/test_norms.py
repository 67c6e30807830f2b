# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A norm over some channels is the norm that there would be without the others."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.streams.norms import narrow, normalise_kept

KEPT = torch.tensor([0, 2, 3])


class Beside(nn.Module):
    """A root-mean-square norm whose weight is beside 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, input: Tensor) -> Tensor:
        return input * (input.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + self.weight)


class Images(nn.LayerNorm):
    """A layer norm over the channels of images."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Bounded(nn.Module):
    """A norm that cannot take a factor over."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, input: Tensor) -> Tensor:
        return input / input.norm(dim=-1, keepdim=True) * self.weight.cos().square()


NORMS = {
    "layer": lambda: nn.LayerNorm(4),
    "without a bias": lambda: nn.LayerNorm(4, bias=False),
    "root mean square": lambda: nn.RMSNorm(4),
    "beside 1": lambda: Beside(4),
    "images": lambda: Images(4),
}


def example(kind: str) -> tuple[nn.Module, Tensor, int]:
    torch.manual_seed(0)
    norm = NORMS[kind]().double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    shape = (2, 4, 3, 3) if kind == "images" else (2, 5, 4)
    return norm, torch.randn(shape).double(), 1 if kind == "images" else -1


def by_hand(kind: str, norm: nn.Module, input: Tensor, dim: int) -> Tensor:
    """The formula of the norm over the channels that are kept."""
    values = input.movedim(dim, -1)[..., KEPT]
    weight = norm.weight[KEPT]
    if kind in ("root mean square", "beside 1"):
        eps = 1e-6 if kind == "beside 1" else torch.finfo(torch.float64).eps
        scaled = values / (values.square().mean(-1, keepdim=True) + eps).sqrt()
        return (scaled * (1 + weight if kind == "beside 1" else weight)).movedim(-1, dim)
    centred = values - values.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    return (scaled if norm.bias is None else scaled + norm.bias[KEPT]).movedim(-1, dim)


@pytest.mark.parametrize("kind", NORMS)
def test_the_mean_and_variance_are_of_what_is_kept(kind: str) -> None:
    norm, input, dim = example(kind)
    found = normalise_kept(norm, input, KEPT, dim % input.dim())
    torch.testing.assert_close(found.index_select(dim, KEPT), by_hand(kind, norm, input, dim), rtol=1e-12, atol=1e-12)
    assert not found.select(dim, 1).any()
    found.sum().backward()
    assert norm.weight.grad[1] == 0 and (norm.weight.grad[KEPT] != 0).all()


@pytest.mark.parametrize("kind", NORMS)
def test_what_is_left_is_a_norm_of_its_class(kind: str) -> None:
    norm, input, dim = example(kind)
    factors = torch.tensor([0.5, 0.7, 0.9]).double()
    shape = [-1, 1, 1] if kind == "images" else [-1]
    expected = by_hand(kind, norm, input, dim) * factors.reshape(shape)
    assert narrow(norm, KEPT, factors, -3 if kind == "images" else -1)
    torch.testing.assert_close(norm(input.index_select(dim, KEPT)), expected, rtol=1e-12, atol=1e-12)
    assert type(norm) is type(NORMS[kind]()) and all(parameter.shape == (3,) for parameter in norm.parameters())


def test_none_kept() -> None:
    assert not normalise_kept(nn.LayerNorm(4), torch.randn(2, 4), torch.tensor([], dtype=torch.long), 1).any()


@pytest.mark.parametrize("norm", [Bounded(4), nn.LayerNorm(4, elementwise_affine=False)])
def test_what_cannot_take_factors_over_is_left(norm: nn.Module) -> None:
    before = copy.deepcopy(norm)
    assert not narrow(norm, KEPT, torch.tensor([0.5, 0.7, 0.9]), -1)
    torch.testing.assert_close(norm(torch.ones(2, 4)), before(torch.ones(2, 4)), rtol=0, atol=0)
