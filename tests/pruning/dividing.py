# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks that split, shuffle, reshape and join the channels of their layers, or compute the weights of these."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normed(inputs: int, outputs: int, kernel: int = 1, **options: int) -> nn.Module:
    """A convolution that keeps images' size, with its batch norm and an activation."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


def pooled(images: Tensor) -> Tensor:
    return images.mean((2, 3))


class Shuffled(nn.Module):
    """Half of the channels goes through layers; then both halves are mixed, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.other = normed(3, 16), normed(8, 8), normed(8, 8, groups=8)
        self.last = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for part in (self.one, self.other):
            first, second = features.chunk(2, 1)
            joined = torch.cat([first, part(second)], 1)
            batch, channels, *size = joined.shape
            features = joined.view(batch, 2, channels // 2, *size).transpose(1, 2).reshape(batch, -1, *size)
        return self.last(pooled(features))


class Split(nn.Module):
    """Parts of the channels, each of which goes through layers with what came of the part before, as in Res2Net."""

    def __init__(self, by_attribute: bool) -> None:
        super().__init__()
        self.width, self.by_attribute = 4, by_attribute
        self.stem, self.parts = normed(3, 16), nn.ModuleList([normed(4, 4, 3) for _ in range(3)])
        self.next, self.last = normed(16, 8), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        parts = features.split(self.width, 1) if self.by_attribute else features.chunk(4, 1)
        done = [parts[0]]
        for layer, part in zip(self.parts, parts[1:]):
            done.append(layer(part + done[-1]))
        return self.last(pooled(self.next(torch.cat(done, 1))))


class Uneven(nn.Module):
    """Two parts of different sizes, which the module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [4, 12]
        self.stem, self.one, self.other = normed(3, 16), normed(4, 4), normed(12, 12)
        self.last = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        one, other = self.stem(images).split(self.sizes, 1)
        return self.last(pooled(torch.cat([self.one(one), self.other(other)], 1)))


class Gated(nn.Module):
    """One half of the channels times the other, as in NAFNet, and a gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.third, self.wide, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 12), nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        one, other = self.second(self.first(images)).chunk(2, 1)
        return self.last(F.glu(self.wide(pooled(self.third(one * other).relu())), -1))


class Unflattened(nn.Module):
    """Features that become images."""

    def __init__(self, module: bool) -> None:
        super().__init__()
        self.first, self.unflatten = nn.Linear(5, 24), nn.Unflatten(1, (6, 2, 2)) if module else None
        self.next, self.last = nn.Conv2d(6, 6, 2), nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.first(inputs).relu()
        images = features.view(len(inputs), -1, 2, 2) if self.unflatten is None else self.unflatten(features)
        return self.last(pooled(self.next(images).relu()))


class Upsampled(nn.Module):
    """Channels that become pixels, and pixels that become channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Conv2d(3, 16, 1), nn.PixelShuffle(2)
        self.next, self.last = nn.Conv2d(16, 6, 1), nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        images = self.up(self.first(images).relu())
        corners = [images[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.last(pooled(self.next(torch.cat(corners, 1)).relu()))


class Ghost(nn.Module):
    """As many cheap channels again, and a slice that takes no more than there should be."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.first, self.cheap = normed(3, 6), normed(6, 6, 3, groups=6)
        self.next, self.last = normed(12, 4), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        both = torch.cat([features, self.cheap(features)], 1)
        return self.last(pooled(self.next(both[:, : self.width])))


class Auxiliary(nn.Module):
    """A second classifier, which is there in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = normed(3, 8), normed(8, 8), nn.Linear(8, 3)
        self.aux = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.first(images)
        scores = self.last(pooled(self.second(features)))
        return (scores, self.aux(features)) if self.training else scores


class NormAndActivation(nn.BatchNorm2d):
    """A batch norm with its activation in one module, as timm has it."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised each time, as in BiT."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight / weight.std((1, 2, 3), keepdim=True), self.bias, self.stride, self.padding)


class TiedAutoencoder(nn.Module):
    """A layer whose weight decodes, too."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.next, self.last = nn.Linear(6, 8), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        decoded = F.linear(self.encode(inputs).relu(), self.encode.weight.t())
        return self.last(self.next(decoded).relu())


def _old_norms() -> nn.Module:
    weight, spectral = nn.utils.weight_norm(nn.Linear(5, 8)), nn.utils.spectral_norm(nn.Linear(8, 6))
    return nn.Sequential(weight, nn.ReLU(), spectral, nn.ReLU(), nn.Linear(6, 2))


def _fused() -> nn.Module:
    layers = [nn.Conv2d(3, 6, 3), NormAndActivation(6), nn.Conv2d(6, 6, 1, bias=False), NormAndActivation(6)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 2))


def _standardised() -> nn.Module:
    return nn.Sequential(
        Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)
    )


def _groups_shuffled() -> nn.Module:
    shuffled = nn.Sequential(normed(3, 8), normed(8, 8, groups=4), nn.ChannelShuffle(4), normed(8, 8))
    return nn.Sequential(shuffled, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def _images() -> Tensor:
    return torch.randn(2, 3, 4, 4)


# What makes each network, and an input of it.
DIVIDING: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "shuffled": (Shuffled, _images),
    "split": (lambda: Split(False), _images),
    "split-by-attribute": (lambda: Split(True), _images),
    "uneven": (Uneven, _images),
    "gated": (Gated, _images),
    "unflattened": (lambda: Unflattened(False), lambda: torch.randn(2, 5)),
    "unflattened-by-module": (lambda: Unflattened(True), lambda: torch.randn(2, 5)),
    "upsampled": (Upsampled, _images),
    "ghost": (Ghost, _images),
    "auxiliary": (Auxiliary, _images),
    "groups-shuffled": (_groups_shuffled, _images),
    "norm-and-activation": (_fused, _images),
    "standardised": (_standardised, _images),
    "old-norms": (_old_norms, lambda: torch.randn(2, 5)),
    "tied-autoencoder": (TiedAutoencoder, lambda: torch.randn(2, 6)),
}
