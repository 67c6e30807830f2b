# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks that are measured, of the kinds that there are, at sizes at which a processor is done with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Network(NamedTuple):
    """
    A network.

    :param make: makes it.
    :param shape: of one of its examples.
    :param kinds: which kinds of noise it has.
    :param tokens: how many tokens there are, where examples are of these.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    kinds: Sequence[str] = ("units", "heads")
    tokens: int | None = None

    def batch(self, size: int) -> Tensor:
        """Some examples."""
        generator = torch.Generator().manual_seed(0)
        if self.tokens is not None:
            return torch.randint(self.tokens, (size, *self.shape), generator=generator)
        return torch.randn(size, *self.shape, generator=generator)


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """With a batch norm."""
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]


def lenet() -> nn.Module:
    """Two convolutions and two hidden layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


class Residual(nn.Module):
    """A block of two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first, last = convolution(inputs, outputs, 3, stride), convolution(outputs, outputs)
        self.branch = nn.Sequential(*first, nn.ReLU(inplace=True), *last)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*convolution(inputs, outputs, 1, stride)) if changes else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(self.branch(images) + self.shortcut(images))


def resnet18() -> nn.Module:
    """For images of 32 x 32, as in K. He et al. (2016), https://arxiv.org/abs/1512.03385, with a stem of one stride."""
    widths = [64, 64, 128, 256, 512]
    blocks = [
        Residual(inputs if place == 0 else outputs, outputs, stride if place == 0 else 1)
        for inputs, outputs, stride in zip(widths, widths[1:], (1, 2, 2, 2))
        for place in range(2)
    ]
    stem = [*convolution(3, 64), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Fire(nn.Module):
    """Few channels, and of these many by two convolutions side by side."""

    def __init__(self, inputs: int, few: int, many: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, few, 1)
        self.one, self.three = nn.Conv2d(few, many, 1), nn.Conv2d(few, many, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        few = F.relu(self.squeeze(images))
        return torch.cat([F.relu(self.one(few)), F.relu(self.three(few))], 1)


def squeezenet() -> nn.Module:
    """After F. Iandola et al. (2016), https://arxiv.org/abs/1602.07360."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), Fire(32, 8, 32), Fire(64, 8, 32)),
        *(nn.MaxPool2d(2), Fire(64, 16, 64), Fire(128, 16, 64), nn.Conv2d(128, 10, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def mobilenet() -> nn.Module:
    """Depthwise and pointwise convolutions."""
    pairs = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2)]
    blocks = [
        module
        for inputs, outputs, stride in pairs
        for convolved in (convolution(inputs, inputs, 3, stride, inputs), convolution(inputs, outputs, 1))
        for module in (*convolved, nn.ReLU6())
    ]
    stem = [*convolution(3, 32), nn.ReLU6()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


class Dense(nn.Module):
    """Layers that see all that came before."""

    def __init__(self, width: int = 24, layers: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(3, width), nn.ReLU())
        self.layers = nn.ModuleList(
            nn.Sequential(*convolution(width * (place + 1), width), nn.ReLU()) for place in range(layers)
        )
        self.last = nn.Linear(width * (layers + 1), 10)

    def forward(self, images: Tensor) -> Tensor:
        seen = [self.stem(images)]
        for layer in self.layers:
            seen.append(layer(torch.cat(seen, 1)))
        return self.last(torch.cat(seen, 1).mean((2, 3)))


def group_norms() -> nn.Module:
    """Convolutions with norms over groups of their channels."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.GroupNorm(8, 64), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def small_group_norms() -> nn.Module:
    """So small that what a layer is called for takes longer than what it computes."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


class FeedForward(nn.Module):
    """A hidden layer behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.down(F.gelu(self.up(self.norm(tokens))))


def layer_norms() -> nn.Module:
    """Hidden layers between layer norms."""
    blocks = [FeedForward(64, 256) for _ in range(4)]
    return nn.Sequential(nn.Linear(20, 64), *blocks, nn.LayerNorm(64), nn.Linear(64, 10))


class SelfAttention(nn.Module):
    """Behind a layer norm and beside a shortcut, with one projection for queries, keys and values."""

    def __init__(self, width: int, num_heads: int, is_causal: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.is_causal = num_heads, width // num_heads, is_causal
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, _ = tokens.shape
        qkv = self.qkv(self.norm(tokens)).reshape(batch, length, 3, self.num_heads, self.head_dim)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        heads = F.scaled_dot_product_attention(queries, keys, values, is_causal=self.is_causal)
        return tokens + self.proj(heads.transpose(1, 2).reshape(batch, length, -1))


def blocks(width: int, num_heads: int, depth: int, is_causal: bool = False) -> nn.Sequential:
    """Blocks of a transformer."""
    pairs = [(SelfAttention(width, num_heads, is_causal), FeedForward(width, 4 * width)) for _ in range(depth)]
    return nn.Sequential(*(module for pair in pairs for module in pair))


class ViT(nn.Module):
    """For images of 32 x 32; A. Dosovitskiy et al. (2021), https://arxiv.org/abs/2010.11929."""

    def __init__(self, width: int = 192, num_heads: int = 3, depth: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = blocks(width, num_heads, depth)
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.last(self.norm(self.blocks(tokens)).mean(1))


class GPT(nn.Module):
    """Tokens that see those before them, after GPT-2, with a class for the whole sequence."""

    def __init__(self, width: int = 256, num_heads: int = 4, depth: int = 1, length: int = 64) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(100, width), nn.Parameter(0.02 * torch.randn(1, length, width))
        self.blocks = blocks(width, num_heads, depth, is_causal=True)
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.norm(self.blocks(self.tokens(tokens) + self.positions))[:, -1])


class Encoder(nn.Module):
    """Torch's own layers of a transformer."""

    def __init__(self, width: int = 32, num_heads: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        layer = nn.TransformerEncoderLayer(width, num_heads, hidden, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(width, 10)

    def forward(self, series: Tensor) -> Tensor:
        return self.last(self.encoder(self.embed(series)).mean(1))


class Attending(nn.Module):
    """Torch's own attention, by itself."""

    def __init__(self, width: int = 32, num_heads: int = 4) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(8, width), nn.Linear(width, 10)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)

    def forward(self, series: Tensor) -> Tensor:
        tokens = self.embed(series)
        return self.last((tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]).mean(1))


NETWORKS = {
    "LeNet-5": Network(lenet, (1, 32, 32)),
    "ResNet-18": Network(resnet18, (3, 32, 32)),
    "SqueezeNet": Network(squeezenet, (3, 32, 32)),
    "MobileNet": Network(mobilenet, (3, 32, 32)),
    "dense convolutions": Network(Dense, (3, 16, 16)),
    "group norms": Network(group_norms, (3, 32, 32), ("width",)),
    "small group norms": Network(small_group_norms, (3, 16, 16), ("width",)),
    "layer norms": Network(layer_norms, (20,), ("units", "width")),
    "ViT": Network(ViT, (3, 32, 32)),
    "GPT": Network(GPT, (64,), tokens=100),
    "encoder": Network(Encoder, (16, 8)),
    "attention": Network(Attending, (16, 8)),
}
