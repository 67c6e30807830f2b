# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The hooks through which noise acts on the modules of a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from pyro_bmrs.pruning.noise.multiplicative_noise import MultiplicativeNoise


class NoiseHook:
    """
    The hook through which noise acts on a module; an object without a closure, so that it is copied with the network.

    :param noise: the noise.
    :param layer: the layer whose units they are.
    :param place: the module on whose output or input the noise acts.
    :param when: ``"output"`` or ``"input"``.
    :param kind: ``"units"``, ``"heads"`` or ``"block"``.
    """

    def __init__(self, noise: MultiplicativeNoise, layer: nn.Module, place: nn.Module, when: str, kind: str) -> None:
        self.noise, self.layer, self.place, self.when, self.kind = noise, layer, place, when, kind
        # Those that made nested tensors before, which noise cannot multiply.
        self.encoders: list[nn.TransformerEncoder] = []

    def attach(self) -> None:
        """Hangs the hook on the module, and the noise below it."""
        self.place.add_module(f"{self.kind}_noise_on_{self.when}", self.noise)
        if self.when == "input":
            self.place.register_forward_pre_hook(self)
        else:
            self.place.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> Any:
        """What a forward hook and a forward pre-hook do."""
        # Straight to forward: what Pyro does around the call of a module has no use here, and costs as much as a layer.
        noise = self.noise.forward
        return (noise(args[0]), *args[1:]) if self.when == "input" else noise(output)


class ConvolutionHook(NoiseHook):
    """
    Noise on the channels that a convolution is given: on its weight, which is the same and smaller than the images.

    Where there is a draw for each example, or the weight is no plain parameter, it acts on the images.
    """

    def attach(self) -> None:
        super().attach()
        self.place.register_forward_hook(self, always_call=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *output: Any) -> Any:
        """What a forward pre-hook and a forward hook do."""
        if output:
            vars(module).pop("weight", None)
            return None
        noise, weight = self.noise.draw(len(args[0])), module._parameters.get("weight")
        if noise.dim() > 1 or weight is None:
            return self.noise.multiply(args[0], noise), *args[1:]
        # What is found in the instance comes before its parameter, which stays as it is.
        vars(module)["weight"] = self.noise.multiply(weight, noise)
        return None


class AttentionHook(NoiseHook):
    """
    Noise on the heads of ``nn.MultiheadAttention``, which uses its output projection's weight and never calls it.

    While the attention runs, the columns of the weight that belong to a head are multiplied by the head's noise.
    """

    def attach(self) -> None:
        self.place.add_module(f"{self.kind}_noise_on_{self.when}", self.noise)
        self.layer.register_forward_pre_hook(self)
        self.layer.register_forward_hook(self, always_call=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *output: Any) -> None:
        if output:
            vars(self.place).pop("weight", None)
        else:
            vars(self.place)["weight"] = self.noise(self.place.weight)


def noise_hooks_in(net: nn.Module) -> Iterator[NoiseHook]:
    """The noise hooks on a network and its modules; that of an attention, which hangs there twice, twice."""
    for module in net.modules():
        for hook in [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]:
            if isinstance(hook, NoiseHook):
                yield hook
