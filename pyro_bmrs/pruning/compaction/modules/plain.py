# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks whose layers hold their weights as parameters, one for each row and column of what they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode, resolve_name

from pyro_bmrs.pruning.compaction.modules.attention import Attention
from pyro_bmrs.pruning.compaction.modules.recurrence import fuse, unroll
from pyro_bmrs.pruning.compaction.modules.scaling import substitute
from pyro_bmrs.pruning.compaction.modules.shared_positions import SharedPositions
from pyro_bmrs.pruning.compaction.modules.widths_of_heads import forget_widths_of_heads, know_widths_of_heads
from pyro_bmrs.pruning.noise.recognition.calls_by_weight import call_by_weight, multiply_by_weight

_WITH_WEIGHTS: tuple[type[Any], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SETTINGS = ("stride", "padding", "dilation", "groups")


def make_plain(net: nn.Module) -> None:
    """
    Puts an :class:`~pyro_bmrs.pruning.Attention` in the place of each ``nn.MultiheadAttention``, what can lose heads in
    the place of attentions that share a bias of positions, or take the width of heads for that of their input, weights
    in the place of what computes them, such as weight normalisation, what recurrent layers do step by step in their
    place, and calls of layers in the place of products with their weights; in place.
    """
    for module in list(net.modules()):
        if type(module) is nn.MultiheadAttention:
            substitute(net, module, Attention.of(module))
        if isinstance(module, Attention):
            module.unpacked()
        if SharedPositions.is_for(module):
            substitute(net, module, SharedPositions.of(module))
        if isinstance(module, nn.TransformerEncoder):
            # Nested tensors are for the fused path only.
            module.use_nested_tensor = False
        fix_weights(module)
    know_widths_of_heads(net)
    call_by_weight(net)
    unroll(net)


def make_fast(net: nn.Module) -> None:
    """
    Puts torch's own recurrent layers in the place of those that are written out, one layer for queries, keys and values
    in the place of three, and modules' own code where their heads are as wide as their input and where it multiplies by
    weights of layers; in place.
    """
    fuse(net)
    multiply_by_weight(net)
    forget_widths_of_heads(net)
    for module in list(net.modules()):
        if isinstance(module, Attention):
            module.packed()


def restore_attentions(net: nn.Module, original: nn.Module) -> None:
    """
    Puts torch's own attentions, for which there are faster kernels, where they were and can be; in place.

    :param net: a network with an :class:`~pyro_bmrs.pruning.Attention` for each ``nn.MultiheadAttention``.
    :param original: the network that it was made of.
    """
    before = dict(original.named_modules())
    for name, module in list(net.named_modules()):
        if isinstance(module, Attention) and type(before.get(name)) is nn.MultiheadAttention:
            own = module.as_torchs()
            if own is not None:
                substitute(net, module, own)


def has_computed_weights(module: nn.Module) -> bool:
    """Whether a module computes its weights from parameters, each time that it is called."""
    return (
        parametrize.is_parametrized(module) or bool(_norm_hooks(module)) or _base_with_other_forward(module) is not None
    )


def fix_weights(module: nn.Module) -> None:
    """
    Keeps the weights that a module computes in evaluation, and not what computes them; in place.

    They are computed by parametrizations, by the hooks of torch's older norms of weights, or by a convolution's or
    linear layer's own forward, as in weight standardisation (S. Qiao et al. (2019), https://arxiv.org/abs/1903.10520).
    A forward that does more than that is left.
    """
    if parametrize.is_parametrized(module):
        _remove_parametrizations(module)
    for hook in _norm_hooks(module):
        remove: Callable[..., Any] = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
        remove(module, hook.name)
        # torch does not find this one, which it wraps.
        for key, loading in list(module._load_state_dict_pre_hooks.items()):
            if isinstance(getattr(loading, "hook", loading), SpectralNormLoadStateDictPreHook):
                del module._load_state_dict_pre_hooks[key]
    base = _base_with_other_forward(module)
    if base is not None:
        _take_computed_weight(module, base)


def _remove_parametrizations(module: nn.Module) -> None:
    """Unlike torch's own function, it leaves the module's class as it is, which copies of the module share."""
    parametrizations: Any = module.parametrizations
    weights = {name: getattr(module, name).detach().clone() for name in parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight))


def _norm_hooks(module: nn.Module) -> list[Any]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm | SpectralNorm)]


def _base_with_other_forward(module: nn.Module) -> type[Any] | None:
    """The layer of torch's that a module is but for its forward."""
    base = next((base for base in _WITH_WEIGHTS if isinstance(module, base)), None)
    return base if base is not None and type(module).forward is not base.forward else None


def _take_computed_weight(module: Any, base: type[Any]) -> None:
    """Makes a layer one of torch's, if all that its forward does besides is to compute its weight."""
    sizes: list[int] = []
    width = module.in_features if base is nn.Linear else module.in_channels
    if base is not nn.Linear:
        if module.padding_mode != "zeros":
            return
        sizes = [(kernel - 1) * step + 1 for kernel, step in zip(module.kernel_size, module.dilation)]
    given = module.weight.new_zeros(1, width, *sizes)
    was_training = module.training
    calls = _Calls()
    try:
        with torch.no_grad(), calls:
            output = module.eval()(given)
    # A forward that wants another input does more than a layer does.
    except Exception:
        return
    finally:
        module.train(was_training)
    weight = calls.weight_of(given, output, module)
    if weight is None or weight is module.weight:
        return
    bias = module.bias
    for name in list(module._parameters):
        del module._parameters[name]
    for name in list(module._buffers):
        del module._buffers[name]
    module.__class__ = base
    module.weight, module.bias = nn.Parameter(weight.detach().clone()), bias


class _Calls(TorchFunctionMode):
    """Notes the linear maps and convolutions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Sequence[Any], dict[str, Any], Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (resolve_name(func) or "").rpartition(".")[2] in ("linear", "conv1d", "conv2d", "conv3d"):
            self._calls.append((args, kwargs or {}, result))
        return result

    def weight_of(self, given: Tensor, output: Any, layer: Any) -> Tensor | None:
        """The weight of the one call, if it is all that leads from the input to the output."""
        if len(self._calls) != 1:
            return None
        args, kwargs, result = self._calls[0]
        names = ("input", "weight", "bias", *_SETTINGS)
        call = {**dict(zip(names, args)), **kwargs}
        is_all = call.get("input") is given and result is output and call.get("bias") is layer.bias
        defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        num_dims = len(getattr(layer, "kernel_size", ()))
        same = all(
            _spread(call.get(name, defaults[name]), num_dims) == _spread(getattr(layer, name), num_dims)
            for name in (_SETTINGS if num_dims else ())
        )
        weight: Any = call.get("weight")
        return weight if is_all and same and torch.is_tensor(weight) and weight.shape == layer.weight.shape else None


def _spread(value: Any, num_dims: int) -> Any:
    return (value,) * num_dims if isinstance(value, int) else tuple(value) if isinstance(value, list) else value
