# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks of many kinds, and where noise goes in them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pyro_bmrs.pruning import attach_noise, noise_sites


class LeNet(nn.Module):
    """Activations, pooling and flattening are functions."""

    def __init__(self, activation=torch.tanh):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 5), nn.Conv2d(3, 4, 5)
        self.fc1, self.fc2 = nn.Linear(4 * 4 * 4, 7), nn.Linear(7, 5)
        self.activation = activation

    def forward(self, x):
        x = F.max_pool2d(self.activation(self.conv1(x)), 2)
        x = F.max_pool2d(self.activation(self.conv2(x)), 2)
        return self.fc2(self.activation(self.fc1(x.view(x.size(0), -1))))


class Block(nn.Module):
    """A residual block whose one activation serves twice."""

    def __init__(self, width, out, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride), nn.BatchNorm2d(out)) if stride > 1 else None

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.layers = nn.Sequential(Block(4, 4), Block(4, 6, stride=2))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.layers(self.stem(x)).mean((-1, -2)))


class Attention(nn.Module):
    def __init__(self, width=8, num_heads=2):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.norm1, self.attn = nn.LayerNorm(8), Attention()
        self.norm2, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(1))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 4), nn.Tanh())
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return self.head(torch.tanh(self.hidden(self.body(x))))


def mlp():
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))


IMAGES, SMALL_IMAGES = (2, 1, 28, 28), (2, 1, 12, 12)
NETWORKS = {
    "mlp": (mlp, (3, 6)),
    "lenet": (LeNet, IMAGES),
    "resnet": (ResNet, SMALL_IMAGES),
    "vit": (ViT, SMALL_IMAGES),
    "encoder": (encoder, (2, 5, 8)),
    "untraceable": (Untraceable, (3, 6)),
}


def places(net, **options):
    sites = noise_sites(attach_noise(net, **options)).values()
    return {site.name: (site.place, site.when, site.noise.num_units, site.noise.unit_size) for site in sites}


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(16, 2)),
    )
