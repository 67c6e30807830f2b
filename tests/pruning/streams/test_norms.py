# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A norm over some channels is the norm that there would be without the others."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.streams.norms import UnevenGroupNorm, narrow, normalise_kept

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
    "groups": lambda: nn.GroupNorm(2, 4),
}


def example(kind: str) -> tuple[nn.Module, Tensor, int]:
    torch.manual_seed(0)
    norm = NORMS[kind]().double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    is_image = kind in ("images", "groups")
    return norm, torch.randn((2, 4, 3, 3) if is_image else (2, 5, 4)).double(), 1 if is_image else -1


def by_hand(kind: str, norm: nn.Module, input: Tensor, dim: int) -> Tensor:
    """The formula of the norm over the channels that are kept."""
    if kind == "groups":  # The first alone, then two together.
        parts = [input[:, :1], input[:, 2:]]
        centred = [part - part.mean((1, 2, 3), keepdim=True) for part in parts]
        scaled = [part / (part.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt() for part in centred]
        return torch.cat(scaled, 1) * norm.weight[KEPT, None, None] + norm.bias[KEPT, None, None]
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
    expected = by_hand(kind, norm, input, dim) * factors.reshape([-1, 1, 1] if dim == 1 else [-1])
    small = narrow(norm, KEPT, factors, -3 if dim == 1 else -1)
    torch.testing.assert_close(small(input.index_select(dim, KEPT)), expected, rtol=1e-12, atol=1e-12)
    assert type(small) is (UnevenGroupNorm if kind == "groups" else type(norm))
    assert {name: part.shape for name, part in small.named_parameters()} == {
        name: (3,) for name, _ in norm.named_parameters()
    }
    assert set(map(id, small.parameters())).isdisjoint(map(id, norm.parameters()))


@pytest.mark.parametrize(
    ("kept", "groups"), [([0, 2], 2), ([1, 3], 2), ([2, 3], 1), ([0], 1), ([0, 1, 3], (2, 1)), ([1, 2, 3], (1, 2))]
)
def test_what_is_left_of_groups(kept: list[int], groups: int | tuple[int, ...]) -> None:
    small = narrow(nn.GroupNorm(2, 4), torch.tensor(kept), torch.ones(len(kept)), -3)
    if isinstance(groups, int):
        assert type(small) is nn.GroupNorm and (small.num_groups, small.num_channels) == (groups, len(kept))
    else:
        assert small.sizes == groups
        # Once more.
        again = narrow(small, torch.tensor([0, 2]), torch.ones(2), -3)
        assert type(again) is nn.GroupNorm and again.num_groups == 2
        input = torch.randn(2, 2, 3, 3)
        torch.testing.assert_close(again(input), nn.GroupNorm(2, 2)(input))


def test_a_norm_without_parameters_is_narrowed_but_takes_no_factors() -> None:
    norm = nn.GroupNorm(2, 4, affine=False)
    small = narrow(norm, torch.tensor([0, 3]), torch.ones(2), -1)
    assert small is not None and (small.num_groups, small.num_channels) == (2, 2)
    assert narrow(norm, torch.tensor([0, 3]), torch.tensor([1.0, 2.0]), -1) is None


def test_none_kept() -> None:
    assert not normalise_kept(nn.LayerNorm(4), torch.randn(2, 4), torch.tensor([], dtype=torch.long), 1).any()


@pytest.mark.parametrize("norm", [Bounded(4), nn.LayerNorm(4, elementwise_affine=False)])
def test_what_cannot_take_factors_over_is_left(norm: nn.Module) -> None:
    before = copy.deepcopy(norm)
    assert narrow(norm, KEPT, torch.tensor([0.5, 0.7, 0.9]), -1) is None
    torch.testing.assert_close(norm(torch.ones(2, 4)), before(torch.ones(2, 4)), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(3, 10), (2, 10, 7), (2, 10, 5, 5)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-4, 0.0), (1.0, 100.0)])
def test_uneven_groups_are_norms_of_each_group(
    shape: tuple[int, ...], affine: bool, scale: float, shift: float
) -> None:
    torch.manual_seed(0)
    sizes = (2, 3, 4, 1) if len(shape) > 2 else (2, 5, 3)
    norm = UnevenGroupNorm(sizes, affine=affine).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    inputs = (scale * torch.randn(shape, dtype=torch.float64) + shift).requires_grad_()
    beside = [1, -1, *[1] * (len(shape) - 2)]
    expected = torch.cat([nn.functional.group_norm(part, 1) for part in inputs.split(sizes, 1)], 1)
    if norm.weight is not None and norm.bias is not None:
        expected = expected * norm.weight.reshape(beside) + norm.bias.reshape(beside)
    output, direction = norm(inputs), torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(output, expected, rtol=1e-11, atol=1e-11)
    wanted = [inputs, *norm.parameters()]
    slopes = (torch.autograd.grad((values * direction).sum(), wanted) for values in (output, expected))
    for slope, other in zip(*slopes, strict=True):
        torch.testing.assert_close(slope, other, rtol=1e-9, atol=1e-9)


def test_uneven_groups_in_low_precision() -> None:
    torch.manual_seed(0)
    norm, inputs = UnevenGroupNorm((2, 3)), 10 + torch.randn(2, 5, 8)
    expected = norm(inputs.bfloat16().float())
    assert torch.equal(norm.bfloat16()(inputs.bfloat16()), expected.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm.float()(inputs.bfloat16().float()), expected)
