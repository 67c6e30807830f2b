# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What layers are given whatever the network's input is.

A unit can be removed, exactly, where what the layers behind it get from it is 0, or a constant that their biases can
take over. That is found by calling the network on NaNs: they spread to all that depends on the input, and not past a
multiplication by 0.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from pyro_bmrs.pruning.examples import call, evaluation, map_floating
from pyro_bmrs.pruning.layers import channel_dim, mixes_all


def constant_inputs(net: nn.Module, readers: Collection[str], example_inputs: Any) -> dict[str, Tensor]:
    """
    What layers are given in each of their input channels, where it does not depend on the network's input.

    :param net: a network with multiplications, some of them by 0.
    :param readers: names of linear and convolutional layers.
    :param example_inputs: what the network is called with.
    :return: for each of the layers that is called, the constant of each input channel; NaN for a channel that depends
        on the input, or whose constant is not the same everywhere.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning.scaling import Scale
        >>> net = nn.Sequential(nn.Linear(2, 2), Scale(torch.tensor([0.0, 1.0]), -1), nn.Sigmoid(), nn.Linear(2, 1))
        >>> constant_inputs(net, ["3"], torch.ones(1, 2))["3"]
        tensor([0.5000,    nan])
    """
    modules = dict(net.named_modules())
    seen: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            channels = args[0].movedim(channel_dim(module, args[0]), 0).flatten(1)
            seen.setdefault(name, []).append(channels)

        return hook

    with evaluation(net), torch.no_grad(), _ZeroProducts(), ExitStack() as hooks:
        for module in net.modules():
            if mixes_all(module):
                hooks.callback(module.register_forward_hook(_poison).remove)
        for name in readers:
            hooks.callback(modules[name].register_forward_pre_hook(note(name)).remove)
        call(net, map_floating(lambda values: torch.full_like(values, torch.nan), example_inputs))
    return {name: _constant(torch.cat(channels, -1)) for name, channels in seen.items()}


def _poison(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    # What such a layer returns depends on the input, even where the input is of integers, which have no NaN.
    return torch.full_like(output, torch.nan)


class _ZeroProducts(TorchFunctionMode):
    """Products with 0 are 0, those of NaNs too: what is not NaN is a constant."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (resolve_name(func) or "").rpartition(".")[2].rstrip("_")
        if name not in ("mul", "multiply") or len(args) < 2:
            return func(*args, **(kwargs or {}))
        # Before the product, which may take the place of a factor.
        zeros = [factor == 0 for factor in args[:2]]
        product = func(*args, **(kwargs or {}))
        return product.masked_fill_(torch.logical_or(*map(torch.as_tensor, zeros)).to(product.device), 0)


def _constant(channels: Tensor) -> Tensor:
    """The constant of each row; NaN where there is none."""
    low, high = channels.amin(1), channels.amax(1)
    # Vectorised and scalar code may round differently.
    rounding = 8 * torch.finfo(channels.dtype).eps * torch.maximum(low.abs(), high.abs())
    return torch.where(high - low <= rounding, low, torch.nan)
