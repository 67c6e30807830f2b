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
        tokens = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class Concatenating(nn.Module):
    """Layers that see all that came before, down to half the size and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.dense, self.down = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 8, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(14, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.norm(self.stem(images)))
        features = torch.cat([features, F.relu(self.dense(features))], 1)
        below = F.relu(self.down(F.max_pool2d(features, 2)))
        return self.last(torch.cat([features, F.relu(self.up(below))], 1))


class SqueezeExcitation(nn.Module):
    """Channels that are multiplied by what their averages say."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.SiLU()
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.next, self.last = nn.Conv2d(8, 4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.act(self.conv(images))
        weights = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(features, 1)))))
        return self.last(F.adaptive_avg_pool2d(F.relu(self.next(features * weights)), 1).flatten(1))


class Normalised(nn.Module):
    """Norms over groups of channels and over images, and weights that are normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.groups = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)
        self.second, self.images = nn.Conv2d(8, 6, 3), nn.InstanceNorm2d(6, affine=True)
        self.third = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 4, 3))
        self.last = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.images(self.second(F.relu(self.groups(self.first(images))))))
        return self.last(F.relu(self.third(features)).amax((2, 3)))


class Recurrent(nn.Module):
    """An LSTM between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm = nn.Linear(4, 6), nn.LSTM(6, 5, batch_first=True)
        self.second, self.last = nn.Linear(5, 7), nn.Linear(7, 2)

    def forward(self, sequences: Tensor) -> Tensor:
        return self.last(F.relu(self.second(self.lstm(F.relu(self.first(sequences)))[0])))


class TiedEmbedding(nn.Module):
    """The weights of the embedding are those of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.back = nn.Embedding(10, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.last = nn.Linear(6, 10, bias=False)
        self.last.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.back(F.gelu(self.hidden(self.embedding(tokens)))))


class Mixer(nn.Module):
    """Layers across tokens and across features, by turns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 6), nn.LayerNorm(6)
        self.tokens, self.tokens_back = nn.Linear(5, 7), nn.Linear(7, 5)
        self.features, self.features_back = nn.Linear(6, 8), nn.Linear(8, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, sequences: Tensor) -> Tensor:
        hidden = self.first(sequences)
        across = self.tokens_back(F.gelu(self.tokens(self.norm(hidden).transpose(1, 2))))
        hidden = hidden + across.transpose(1, 2)
        return self.last((hidden + self.features_back(F.gelu(self.features(self.norm(hidden))))).mean(1))


class Decoder(nn.Module):
    """Torch's own decoder, which looks at what it has decoded and at a memory."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True)
        self.decoder, self.last = nn.TransformerDecoder(layer, 2), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1]).to(tokens)
        return self.last(self.decoder(tokens, tokens.flip(1), tgt_mask=mask))


class Circular(nn.Module):
    """A sigmoid, which makes a constant of a pruned unit, and padding that keeps constants what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 6, 3, padding="same", padding_mode="circular")
        self.second, self.norm = nn.Conv1d(6, 5, 3, bias=False), nn.BatchNorm1d(5)
        self.last = nn.Linear(40, 2)

    def forward(self, signals: Tensor) -> Tensor:
        return self.last(F.leaky_relu(self.norm(self.second(torch.sigmoid(self.first(signals)))), 0.1).flatten(1))


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
OTHER_NETWORKS = {
    "concatenating": (Concatenating, lambda: torch.randn(2, 3, 6, 6)),
    "squeeze-excitation": (SqueezeExcitation, lambda: torch.randn(2, 3, 6, 6)),
    "normalised": (Normalised, lambda: torch.randn(2, 3, 9, 9)),
    "recurrent": (Recurrent, lambda: torch.randn(2, 5, 4)),
    "tied-embedding": (TiedEmbedding, lambda: torch.randint(10, (3, 4))),
    "mixer": (Mixer, lambda: torch.randn(2, 5, 3)),
    "decoder": (Decoder, lambda: torch.randn(2, 5, 8)),
    "circular": (Circular, lambda: torch.randn(2, 2, 10)),
}


def make(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network as if it had been trained, in evaluation mode, and an input of it."""
    torch.manual_seed(seed)
    factory, example = {**NETWORKS, **OTHER_NETWORKS}[name]
    net, inputs = factory(), example()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.to(dtype).eval(), inputs.to(dtype) if inputs.is_floating_point() else inputs
