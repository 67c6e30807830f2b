# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What the layers of a network are: their units, their dimensions, what their biases can take over."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

# What acts on each unit by itself, and what makes the value that the next layer sees of it.
_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Hardtanh),
    *(nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Threshold),
)
_ACTIVATION_NAMES = frozenset(
    "relu relu_ relu6 leaky_relu leaky_relu_ prelu rrelu elu elu_ selu selu_ celu celu_ gelu silu mish tanh tanh_ "
    "sigmoid sigmoid_ softplus softsign tanhshrink softshrink hardshrink hardtanh hardtanh_ hardsigmoid hardswish "
    "logsigmoid threshold".split()
)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
# Parameters, but no weights between units.
_UNWEIGHTED = (*_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
_POOLINGS: tuple[type[nn.Module], ...] = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)
_PASSIVE = (nn.Identity, nn.modules.dropout._DropoutNd, *_POOLINGS, nn.Upsample, nn.ZeroPad2d)
_PASSIVE_NAMES = frozenset(
    "contiguous dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout interpolate pad".split()
) | frozenset(f"{kind}_pool{n}d" for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg") for n in (1, 2, 3))

_CONVOLUTIONS = nn.modules.conv._ConvNd
_ATTENTION = nn.MultiheadAttention
_TRANSFORMER_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
HEAD_COUNTS = ("num_heads", "n_heads", "n_head", "nhead", "num_attention_heads", "heads", "h")
_PROJECTED = frozenset(
    "q k v qkv kv qk q_proj k_proj v_proj qkv_proj kv_proj in_proj query key value queries keys values to_q to_k to_v "
    "to_qkv to_kv wq wk wv wqkv w_q w_k w_v c_attn q_lin k_lin v_lin query_key_value".split()
)


def layer_units(layer: nn.Module) -> int | None:
    """How many units a layer puts out; None for what is no linear or convolutional layer."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, _CONVOLUTIONS) else None


def has_channels_in_columns(module: Any) -> bool:
    """Whether it is a convolution whose weight has all the channels that it is given in its second dimension."""
    return type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and module.groups == 1


def _unit_dim(layer: nn.Module) -> int:
    return 1 if isinstance(layer, _CONVOLUTIONS) else -1


def channel_dim(layer: nn.Module, input: Tensor) -> int:
    """The dimension of a linear or convolutional layer's input or output that counts its channels."""
    return input.dim() - 1 - (len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0)


def can_absorb(reader: nn.Module) -> bool:
    """Whether a constant input of the layer is a constant of its output: not where its borders are padded with 0."""
    if isinstance(reader, _ConvTransposeNd):
        return False
    if isinstance(reader, _ConvNd) and reader.padding_mode == "zeros":
        return not any(reader._reversed_padding_repeated_twice)
    return True


@torch.no_grad()
def absorb(reader: nn.Linear | _ConvNd, channels: Collection[int], constants: Tensor) -> None:
    """
    Adds to a layer's bias what it gets from constant input channels.

    :param reader: the layer.
    :param channels: which of its input channels.
    :param constants: the constant of each input channel.
    """
    contributions = torch.zeros_like(constants)
    contributions[list(channels)] = constants[list(channels)]
    if not contributions.any():
        return
    groups = reader.groups if isinstance(reader, _ConvNd) else 1
    weight = reader.weight.flatten(2).sum(-1) if isinstance(reader, _ConvNd) else reader.weight
    offset = torch.einsum("goi,gi->go", weight.unflatten(0, (groups, -1)), contributions.unflatten(0, (groups, -1)))
    reader.bias = nn.Parameter(offset.flatten() if reader.bias is None else reader.bias + offset.flatten())


def _mixes_all(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and module.groups == 1
