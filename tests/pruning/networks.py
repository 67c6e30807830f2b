# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks of many kinds, as their users write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(activation: type[nn.Module]) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(5, 8), activation(), nn.Linear(8, 7), activation(), nn.Linear(7, 3))


class LeNet5(nn.Module):
    """Two convolutions and two hidden layers, whose activations are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 8, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(8 * 16, 20), nn.Linear(20, 12), nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = F.max_pool2d(F.relu(self.conv1(images)), 2)
        features = F.max_pool2d(F.relu(self.conv2(features)), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(features.flatten(1))))))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which is strided with them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        shortcut = images if self.downsample is None else self.downsample(images)
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.bn2(self.conv2(features))
        features += shortcut
        return self.relu(features)


class ResNet(nn.Module):
    """A stem and three residual blocks, the second of which halves the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()
        self.layer1 = nn.Sequential(ResidualBlock(6, 6, 1))
        self.layer2 = nn.Sequential(ResidualBlock(6, 8, 2), ResidualBlock(8, 8, 1))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(images)))))
        return self.fc(torch.flatten(self.avgpool(features), 1))


def grouped() -> nn.Module:
    """Convolutions in two groups, then depthwise and pointwise."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.LeakyReLU(),
        nn.Conv2d(12, 6, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


class Transformer(nn.Module):
    """Torch's own encoder over tokens, with its average in front of a classifier."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 12)
        layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.1, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


class SelfAttention(nn.Module):
    """Attention written with one projection for queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, length, 3, self.num_heads, self.head_dim)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        heads = F.scaled_dot_product_attention(queries, keys, values)
        return self.proj(heads.transpose(1, 2).reshape(batch, length, -1))


class EncoderBlock(nn.Module):
    """Attention and a hidden layer, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class ViT(nn.Module):
    """A small vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 12, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 12))
        self.positions = nn.Parameter(torch.randn(1, 5, 12))
        self.blocks = nn.Sequential(*(EncoderBlock(12, 3, 16) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


# What makes each network, and an input of it.
NETWORKS = {
    "mlp-tanh": (lambda: mlp(nn.Tanh), lambda: torch.randn(3, 5)),
    "mlp-relu": (lambda: mlp(nn.ReLU), lambda: torch.randn(3, 5)),
    "lenet-5": (LeNet5, lambda: torch.randn(2, 1, 28, 28)),
    "resnet": (ResNet, lambda: torch.randn(2, 3, 8, 8)),
    "grouped": (grouped, lambda: torch.randn(2, 2, 10, 10)),
    "transformer": (Transformer, lambda: torch.randint(11, (2, 5))),
    "vit": (ViT, lambda: torch.randn(2, 1, 8, 8)),
}


def make(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network as if it had been trained, in evaluation mode, and an input of it."""
    torch.manual_seed(seed)
    factory, example = NETWORKS[name]
    net, inputs = factory(), example()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.to(dtype).eval(), inputs.to(dtype) if inputs.is_floating_point() else inputs
