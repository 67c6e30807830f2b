# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What the layers of a network are: one row of a table for each kind of layer with weights.

All that pruning asks about a layer is answered from its row: how many units it has and which dimension counts them, the
weights of each, whether its bias can take over a constant, which channels can be taken out of it, and how. A kind of
layer that is not in the table is added by :func:`register_layer`. Attentions have heads in the place of units; they,
and the modules between layers, are listed below the table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pyro_bmrs.errors import ReductionError

SIDES = ("in", "out", "through")


@dataclass(frozen=True)
class LayerKind:
    """
    What the layers of one kind are.

    Such a layer computes each channel of its output from channels of its input, by a parameter ``weight``, and a
    ``bias`` of one number for each output, which may be None. Its channels are the last dimension of what it is given
    and returns, or the last before those of a kernel.

    :param types: the classes of these layers.
    :param inputs: the attribute that counts the channels of the input; None where it has none to be taken out.
    :param outputs: the attribute that counts the channels of the output, which are the layer's units.
    :param is_transposed: whether the first dimension of the weight counts the inputs and the second the outputs, and
        not the other way round. In a layer of groups the second counts those of one group.
    :param groups: the attribute that counts the groups of channels that do not see each other; None for no groups.
    :param kernel: the attribute that holds the size of a kernel; None for no kernel.
    :param keeps_constants: whether a constant input channel of a layer is a constant of its output, so that the bias
        can take it over.
    :param sides: on which sides channels can be taken out: ``"in"``, ``"out"``, or ``"through"`` of a layer that treats
        each channel by itself.
    :param has_units: whether noise goes on its outputs.
    :raises ReductionError: for types that are no modules, sides that there are not, or units that nothing counts.

    Example::

        >>> from torch import nn
        >>> from pyro_bmrs.pruning import LayerKind
        >>> LayerKind((nn.Linear,), inputs="in_features", outputs="out_features").sides
        ('in', 'out')
    """

    types: tuple[type[nn.Module], ...]
    inputs: str | None = None
    outputs: str | None = None
    is_transposed: bool = False
    groups: str | None = None
    kernel: str | None = None
    keeps_constants: Callable[[Any], bool] = lambda layer: True
    sides: Collection[str] = ("in", "out")
    has_units: bool = True

    def __post_init__(self) -> None:
        if not self.types or not all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in self.types):
            raise ReductionError(f"the types of a kind of layer are a tuple of classes of modules, not {self.types!r}")
        for side in self.sides:
            if side not in SIDES:
                raise ReductionError(f"the sides of a layer are {', '.join(map(repr, SIDES))}, not {side!r}")
        if self.has_units and (self.inputs is None or self.outputs is None):
            raise ReductionError(
                f"inputs and outputs are the attributes in which a {self.types[0].__name__} counts its channels; give "
                "both, or has_units=False"
            )

    @property
    def is_channelwise(self) -> bool:
        """Whether each channel is treated by itself."""
        return set(self.sides) == {"through"}


def _pads_with_its_input(layer: Any) -> bool:
    """At borders that are padded with 0, what a convolution makes of a constant is no constant."""
    return layer.padding_mode != "zeros" or not any(layer._reversed_padding_repeated_twice)


_LINEAR = LayerKind((nn.Linear,), "in_features", "out_features")
_CONVOLUTION = LayerKind(
    (_ConvNd,),
    "in_channels",
    "out_channels",
    groups="groups",
    kernel="kernel_size",
    keeps_constants=_pads_with_its_input,
)
_TRANSPOSED_CONVOLUTION = LayerKind(
    (_ConvTransposeNd,),
    "in_channels",
    "out_channels",
    is_transposed=True,
    groups="groups",
    kernel="kernel_size",
    keeps_constants=lambda layer: False,
)
# Its input are numbers of rows. As a table alone, each of its columns is by itself.
_EMBEDDING = LayerKind(
    (nn.Embedding,), None, "embedding_dim", is_transposed=True, sides=("out", "through"), has_units=False
)
_EMBEDDING_BAG = LayerKind(
    (nn.EmbeddingBag,), None, "embedding_dim", is_transposed=True, sides=("out",), has_units=False
)
# Norms over examples, images or both.
_NORM = LayerKind((_NormBase,), "num_features", "num_features", sides=("through",), has_units=False)
# Its one weight may be that of all channels.
_PRELU = LayerKind((nn.PReLU,), "num_parameters", "num_parameters", sides=("through",), has_units=False)

# Later rows come first.
_TABLE = [_LINEAR, _CONVOLUTION, _TRANSPOSED_CONVOLUTION, _EMBEDDING, _EMBEDDING_BAG, _NORM, _PRELU]
_NUM_OWN = len(_TABLE)
# Classes of other packages that have a row, which is added when the package is there.
_FOREIGN: list[type[nn.Module]] = []


def register_layer(kind: LayerKind) -> LayerKind:
    """
    Adds a kind of layer to those that have noise, are scored, pruned and taken out.

    A kind that is registered later comes before the earlier ones, so that a derived class can differ from its base.

    :param kind: what these layers are.
    :return: the same.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import LayerKind, attach_noise, noise_sites, register_layer
        >>> class Conv1D(nn.Module):  # as in GPT-2: linear, its weight stored the other way round
        ...     def __init__(self, nf, nx):
        ...         super().__init__()
        ...         self.nf, self.nx = nf, nx
        ...         self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))
        ...     def forward(self, x):
        ...         return x @ self.weight + self.bias
        >>> _ = register_layer(LayerKind((Conv1D,), inputs="nx", outputs="nf", is_transposed=True))
        >>> net = attach_noise(nn.Sequential(Conv1D(5, 3), nn.GELU(), Conv1D(2, 5)))
        >>> {name: site.noise.num_units for name, site in noise_sites(net).items()}
        {'0': 5}
    """
    _TABLE.append(kind)
    return kind


def _know_transformers() -> None:
    """Adds the linear layer of GPT-2, whose weight is the other way round, once transformers are there."""
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    if conv1d is not None and conv1d not in _FOREIGN:
        _FOREIGN.append(conv1d)
        _TABLE.append(LayerKind((conv1d,), "nx", "nf", is_transposed=True))


def layer_kind(module: Any) -> LayerKind | None:
    """The row of the table that a module is of; None for what is no layer with weights."""
    _know_transformers()
    return next((kind for kind in reversed(_TABLE) if isinstance(module, kind.types)), None)


def is_registered(kind: LayerKind) -> bool:
    """Whether a kind was added by :func:`register_layer`, so that other libraries do not know it."""
    return not any(kind is own for own in _TABLE[:_NUM_OWN])


def layer_units(layer: Any) -> int | None:
    """How many units a layer puts out; None for what is no layer with units."""
    kind = layer_kind(layer)
    return num_channels(layer, "out") if kind is not None and kind.has_units else None


def num_channels(layer: Any, side: str) -> int | None:
    """How many channels a layer has on a side; None where nothing counts them."""
    kind = layer_kind(layer)
    attribute = None if kind is None else kind.inputs if side == "in" else kind.outputs
    return None if attribute is None else getattr(layer, attribute)


def num_groups(layer: Any) -> int:
    """In how many groups a layer's channels are that do not see each other."""
    kind = layer_kind(layer)
    return 1 if kind is None or kind.groups is None else getattr(layer, kind.groups)


def kernel_dims(layer: Any) -> int:
    """How many dimensions a layer's kernel has: 0 for a linear layer, 2 for a convolution of images."""
    kind = layer_kind(layer)
    return 0 if kind is None or kind.kernel is None else len(getattr(layer, kind.kernel))


def unit_dim(layer: Any) -> int:
    """The dimension of a batch of a layer's outputs that counts its units."""
    return 1 if kernel_dims(layer) else -1


def channel_dim(layer: Any, input: Tensor) -> int:
    """The dimension of a layer's input or output, with or without a batch, that counts its channels."""
    # Norms and PReLUs have the channels behind the examples, whatever comes after.
    if isinstance(layer, _NormBase | nn.PReLU):
        return min(1, input.dim() - 1)
    return input.dim() - 1 - kernel_dims(layer)


def linear_width(module: Any) -> int:
    """How many features a linear layer is given; 0 for what is no linear layer."""
    is_linear = layer_units(module) is not None and not kernel_dims(module)
    return (num_channels(module, "in") or 0) if is_linear else 0


def is_channelwise(module: Any) -> bool:
    """Whether it is a layer that treats each channel by itself, such as a batch norm."""
    kind = layer_kind(module)
    return kind is not None and kind.is_channelwise


def has_channels_in_columns(module: Any) -> bool:
    """Whether it is a convolution of torch's whose weight has all that it is given in its second dimension."""
    # Not of a derived class, which may do with its weight as it likes.
    return type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and num_groups(module) == 1


def can_lose_channels(module: Any, side: str) -> bool:
    """Whether a layer without some of its channels on a side is the same function of the others."""
    kind = layer_kind(module)
    if kind is None:
        return False
    # A convolution of as many groups as channels treats each by itself.
    is_depthwise = kind.groups and num_groups(module) == num_channels(module, "in") == num_channels(module, "out")
    return side in kind.sides or (side == "through" and bool(is_depthwise))


def weight_rows(layer: Any) -> Tensor:
    """The weights of each of a layer's outputs, shape ``(outputs, inputs of a group, *kernel)``."""
    kind = layer_kind(layer)
    weight: Tensor = layer.weight
    if kind is None or not kind.is_transposed:
        return weight
    by_group: Tensor = weight.unflatten(0, (num_groups(layer), -1))
    return by_group.transpose(1, 2).flatten(0, 1)


def beside_weight(layer: Any, side: str, factors: Tensor) -> Tensor:
    """
    One factor for each of a layer's channels, in a shape that multiplies its weight.

    :param layer: the layer.
    :param side: ``"in"`` or ``"out"``.
    :param factors: one for each channel on that side.
    """
    kind, weight = layer_kind(layer), layer.weight
    kernel = [1] * (weight.dim() - 2)
    if kind is None or (side == "out") != kind.is_transposed:
        return factors.reshape(-1, 1, *kernel)
    groups = num_groups(layer)
    by_group = factors.reshape(groups, 1, -1).expand(groups, len(weight) // groups, -1)
    return by_group.reshape(*weight.shape[:2], *kernel)


def can_absorb(reader: Any) -> bool:
    """Whether a layer's bias can take over what it makes of constant input channels."""
    kind = layer_kind(reader)
    return kind is not None and hasattr(reader, "bias") and kind.keeps_constants(reader)


@torch.no_grad()
def absorb(reader: Any, channels: Collection[int], constants: Tensor) -> None:
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
    groups = num_groups(reader)
    weight = weight_rows(reader).flatten(2).sum(-1) if kernel_dims(reader) else weight_rows(reader)
    offset = torch.einsum("goi,gi->go", weight.unflatten(0, (groups, -1)), contributions.unflatten(0, (groups, -1)))
    reader.bias = nn.Parameter(offset.flatten() if reader.bias is None else reader.bias + offset.flatten())


@torch.no_grad()
def take_out(layer: Any, side: str, channels: Collection[int]) -> None:
    """
    Takes channels out of a layer, in place.

    :param layer: the layer; of one in groups, channels at the same places of each go.
    :param side: ``"in"``, ``"out"`` or ``"through"``.
    :param channels: which.
    :raises ReductionError: for a module that is of no known kind, or whose channels on this side nothing counts.
    """
    kind, size = layer_kind(layer), num_channels(layer, side)
    if kind is None or size is None:
        raise ReductionError(f"no channels can be taken out of a {type(layer).__name__}: nothing says how many it has")
    kept = torch.tensor([channel for channel in range(size) if channel not in set(channels)])
    for name, dim in channel_dims(layer, side, size).items():
        tensor = getattr(layer, name)
        # Where a dimension counts the channels of one group, the first group stands for all.
        values = tensor.index_select(dim, kept[kept < tensor.shape[dim]].to(tensor.device))
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(layer, name, nn.Parameter(values, tensor.requires_grad) if is_parameter else values)
    # A convolution through which channels go has a group for each.
    of_all = {kind.inputs, kind.outputs, kind.groups}
    counts = {"in": {kind.inputs}, "out": {kind.outputs}, "through": of_all}[side]
    # A count that is computed, from the weight perhaps, follows by itself.
    for attribute in counts & vars(layer).keys():
        setattr(layer, str(attribute), len(kept))


def channel_dims(layer: Any, side: str, size: int) -> dict[str, int]:
    """For the tensors of a layer that have its channels on a side, the dimension that counts them."""
    kind = layer_kind(layer)
    if kind is None:
        return {}
    if side == "through":
        tensors = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        return {name: 0 for name, tensor in tensors if tensor.shape[:1] == (size,)}
    weight = {"weight": int((side == "in") != kind.is_transposed)}
    has_bias = side == "out" and getattr(layer, "bias", None) is not None
    return {**weight, "bias": 0} if has_bias else weight


ATTENTION = nn.MultiheadAttention
TRANSFORMER_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
HEAD_COUNTS = ("num_heads", "n_heads", "n_head", "nhead", "num_attention_heads", "heads", "h")
# Of keys and values that several heads of queries share.
GROUP_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")
HEAD_WIDTHS = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "dim_head", "dim_per_head")
# Names of the layers that make queries, keys and values, in attentions written as projections.
PROJECTIONS = frozenset(
    "q k v qkv kv qk q_proj k_proj v_proj qkv_proj kv_proj in_proj query key value queries keys values to_q to_k to_v "
    "to_qkv to_kv wq wk wv wqkv w_q w_k w_v c_attn q_attn q_lin k_lin v_lin query_key_value query_proj key_proj "
    # Of what stands for positions, too.
    "value_proj pos_query_proj pos_key_proj "
    # Of what is made by way of a narrow layer, as in DeepSeek's.
    "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj".split()
)

# What acts on each unit by itself, and what makes the value that the next layer sees of it.
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Hardtanh),
    *(nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Threshold),
)
ACTIVATION_NAMES = frozenset(
    "relu relu_ relu6 leaky_relu leaky_relu_ prelu rrelu elu elu_ selu selu_ celu celu_ gelu silu mish tanh tanh_ "
    "sigmoid sigmoid_ softplus softsign tanhshrink softshrink hardshrink hardtanh hardtanh_ hardsigmoid hardswish "
    "logsigmoid threshold sin cos atan arctan exp expm1 square abs erf clamp clamp_min clamp_max".split()
)
POOLINGS: tuple[type[nn.Module], ...] = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)
PASSIVE = (nn.Identity, nn.modules.dropout._DropoutNd, *POOLINGS, nn.Upsample, nn.ZeroPad2d)
PASSIVE_NAMES = frozenset(
    "contiguous dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout interpolate pad".split()
) | frozenset(f"{kind}_pool{n}d" for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg") for n in (1, 2, 3))


def normalised_width(module: nn.Module) -> int:
    """Over how many units a norm is, all together or by groups; 0 for what is no such norm."""
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return int(module.normalized_shape[-1])
    # Other libraries have theirs, with a number for each unit and no parts.
    parameters = list(module.parameters())
    is_norm = "norm" in type(module).__name__.lower() and not module._modules and layer_kind(module) is None
    # As nn.LayerNorm holds it, one without parameters may.
    shape = getattr(module, "normalized_shape", None)
    if is_norm and not parameters and isinstance(shape, tuple | list) and len(shape) == 1:
        return int(shape[0])
    is_along_units = bool(parameters) and all(part.shape == parameters[0].shape for part in parameters)
    return parameters[0].numel() if is_norm and is_along_units and parameters[0].dim() == 1 else 0


def has_weights_between_units(module: nn.Module) -> bool:
    """Whether it has parameters, and is neither a norm nor an activation."""
    if is_channelwise(module) or normalised_width(module):
        return False
    return any(True for _ in module.parameters())
