# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Multiplications go into the weights beside them, exactly or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bmrs.pruning.compaction.modules.scaling import Scale, Scaled, scales_of
from pyro_bmrs.pruning.compaction.surgery.folding import fold
from pyro_bmrs.pruning.examples import Outputs

IMAGES = (2, 3, 9, 9)


class Loop(nn.Module):
    """The same weights in each step; in the first of something else, if they are shared."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.first, self.gate, self.back = nn.Linear(3, 3), scale(3), nn.Linear(3, 3)
        self.shared, self.last = shared, nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.back(inputs) if self.shared else self.first(inputs)
        for _ in range(3):
            hidden = self.back(self.gate(torch.tanh(hidden)))
        return self.last(hidden)


@pytest.mark.parametrize("shared", [True, False])
def test_into_weights_that_are_used_in_each_step(shared: bool) -> None:
    net = Loop(shared)
    smaller, left = folded(net, 2, 3)
    assert bool(left) is shared
    assert all("used for more" in reason for reason in left.values())
    factor = 1.0 if shared else net.gate.factor
    torch.testing.assert_close(smaller.back.weight, net.back.weight * factor, rtol=1e-12, atol=0)


def scale(num: int, dim: int | None = 1) -> Scale:
    return Scale(torch.rand(num, dtype=torch.float64) + 0.2, dim)


def folded(net: nn.Module, *shape: int) -> tuple[nn.Module, dict[str, str]]:
    """The network after folding, which computes the same."""
    net = net.double().eval()
    inputs = torch.randn(shape, dtype=torch.float64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    smaller, left = fold(net, inputs, Outputs(net, inputs))
    assert torch.allclose(smaller(inputs), net(inputs), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert scales_of(smaller).keys() == left.keys()
    return smaller, left


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Linear(3, 4), (2, 3)),
        (nn.Conv2d(3, 4, 3, bias=False), IMAGES),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), IMAGES),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)), IMAGES),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.LeakyReLU()), IMAGES),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), (2, 3)),
    ],
)
@pytest.mark.parametrize("after", [nn.Identity(), nn.Sigmoid()])
def test_of_what_a_layer_returns(layer: nn.Module, shape: tuple[int, ...], after: nn.Module) -> None:
    _, left = folded(nn.Sequential(layer, scale(4), after), *shape)
    assert not left


@pytest.mark.parametrize(
    "between, features",
    [
        (nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), 36),
        (nn.Sequential(nn.AvgPool2d(3, padding=1), nn.ReLU6(), nn.Flatten()), None),
        (nn.Sequential(nn.Dropout2d(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4),
        (nn.Sequential(nn.PReLU(4), nn.PixelShuffle(2), nn.Flatten()), 196),
        (nn.Sequential(nn.LeakyReLU(0.2), nn.Flatten(2), nn.Flatten()), 196),
    ],
)
def test_through_what_commutes_into_the_next_weights(between: nn.Module, features: int | None) -> None:
    last = nn.Linear(features or 36, 2)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), scale(4), between, last)
    _, left = folded(net, *IMAGES)
    assert bool(left) == (features is None)


@pytest.mark.parametrize(
    "reader",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
    ],
)
def test_into_convolutions(reader: nn.Module) -> None:
    _, left = folded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), scale(4), reader), *IMAGES)
    assert not left


class Use(nn.Module):
    """What is multiplied goes to some function of it and the layers."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.one, self.other = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale, self.function = scale(4), function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(self, self.scale(self.first(inputs).tanh()))


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net.one(x) + net.other(x),
        lambda net, x: net.one(x + x.relu()),
        lambda net, x: net.one(x * net.other(x).sigmoid()),
        lambda net, x: net.one(x.view(2, 2, 2).transpose(1, 2).reshape(2, 4)),
        lambda net, x: net.one(torch.cat([x[:, 2:], net.other(x)[:, :2]], 1)),
        lambda net, x: net.one(torch.stack([x, x]).mean(0)),
        lambda net, x: net.one(F.dropout(x, training=False).clone().unsqueeze(1)).squeeze(1),
    ],
)
def test_into_all_that_come_next(function: Callable[[nn.Module, Tensor], Tensor]) -> None:
    assert not folded(Use(function), 2, 3)[1]


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda net, x: net.one(x.sigmoid()), "sigmoid"),
        (lambda net, x: net.one(x + 1.0), "add"),
        (lambda net, x: net.one(x + net.other(x)), "add"),
        (lambda net, x: net.one(x * x), "mul"),
        (lambda net, x: net.one(x.div(0.01, rounding_mode="floor")), "rounding"),
        (lambda net, x: net.one(x.mul(100).to(torch.long).to(x)), "to"),
        (lambda net, x: net.one(x.clamp(max=5.0)), "clamp"),
        (lambda net, x: net.one(x.cumsum(1)), "cumsum"),
        (lambda net, x: net.one(x).relu() + x, "add"),
        (lambda net, x: net.one(net.one(x)), "used for more"),
        (lambda net, x: net.one(x.flip(1)) + F.linear(x, net.one.weight), "used for more"),
        (lambda net, x: x, "returns"),
        (lambda net, x: net.one(x @ net.other.weight), "matmul"),
    ],
)
def test_what_does_not_commute_is_left_and_named(function: Callable[[nn.Module, Tensor], Tensor], reason: str) -> None:
    assert reason in folded(Use(function), 2, 3)[1]["scale"]


class Branches(nn.Module):
    """A layer's output goes elsewhere before it is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Scaled(nn.Linear(3, 3), scale(3), "output"), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        whole = self.first.module(inputs)
        return self.last((self.first.scale(whole) + whole).sigmoid())


def test_a_layer_whose_output_goes_elsewhere_too_keeps_its_weights() -> None:
    assert "add" in folded(Branches(), 2, 3)[1]["first.scale"]


def test_one_factor_for_all() -> None:
    assert not folded(
        nn.Sequential(nn.Linear(3, 4), Scaled(nn.Tanh(), scale(1, None), "output"), nn.Linear(4, 2)), 2, 3
    )[1]


class Squares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, inputs: Tensor) -> Tensor:  # type: ignore[override]
        return inputs.square()


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda net, x: net.one(Squares.apply(x)), "square"),
        (lambda net, x: net.one(torch.from_numpy(x.detach().numpy() ** 2)), "numpy"),
        (lambda net, x: net.one(torch.tensor(x.tolist()).to(x)), "tolist"),
    ],
)
def test_nothing_gets_past(function: Callable[[nn.Module, Tensor], Tensor], reason: str) -> None:
    assert reason in folded(Use(function), 2, 3)[1]["scale"]
