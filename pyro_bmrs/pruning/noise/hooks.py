# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The hooks through which noise acts on the modules of a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.pruning.noise.multiplicative_noise import MultiplicativeNoise
from pyro_bmrs.pruning.streams.norms import forward_of, normalise_kept
from pyro_bmrs.pruning.streams.streams import NormPlace


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

    It takes the place of the convolution's ``forward``, so that the weight itself is never touched, whatever interrupts
    it. Where there is a draw for each example, it acts on the images.
    """

    def attach(self) -> None:
        self.place.add_module(f"{self.kind}_noise_on_{self.when}", self.noise)
        vars(self.place)["forward"] = self

    def __call__(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """What the convolution computes."""
        place: Any = self.place
        noise, weight = self.noise.draw(len(input)), place.weight
        if noise.dim() > 1:
            input = self.noise.multiply(input, noise)
        else:
            weight = self.noise.multiply(weight, noise)
        output: Tensor = place._conv_forward(input, weight, place.bias)
        return output


class WidthHook(NoiseHook):
    """
    Noise on the channels of a stream, at one of the norms that lead out of it: on what the norm puts out.

    Its mean and variance are of the channels that are kept, as they will be without the others. It takes the place of
    the norm's ``forward``. The noise is the same at all norms of the stream, and hangs on the first.

    :param norm: the norm, and which unit each of its channels is.
    :param position: which of the stream's norms it is.
    """

    def __init__(
        self, noise: MultiplicativeNoise, layer: nn.Module, place: nn.Module, norm: NormPlace, position: int
    ) -> None:
        super().__init__(noise, layer, place, "output", "width")
        self.norm, self.position = norm, position
        self._units = torch.tensor(norm.units)

    def attach(self) -> None:
        if self.position == 0:
            self.place.add_module(f"{self.kind}_noise_on_{self.when}", self.noise)
        vars(self.place)["forward"] = self

    def __call__(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """What the norm computes."""
        noise, units = self.noise.draw(len(input)), self._units.to(input.device)
        dim = input.dim() + self.norm.dim
        kept = self.noise.kept
        if not self.place.training and noise.dim() == 1:
            # Where no noise is drawn, a factor of 0 says that a channel is not there.
            kept = kept & (noise != 0)
        if kept is self.noise.kept and self.noise.is_whole or bool(kept.all()):
            output = forward_of(self.place, input)
        else:
            kept = kept[units]
            output = normalise_kept(self.place, input, kept.nonzero().flatten(), dim)
        noise = noise[..., units]
        batch = noise.shape[:-1]
        between = (1,) * (dim - 1) if batch else ()
        noise = noise.reshape(batch + between + noise.shape[-1:] + (1,) * (-1 - self.norm.dim))
        return (output * noise).to(output.dtype)


class AttentionHook(NoiseHook):
    """
    Noise on the heads of ``nn.MultiheadAttention``, which uses its output projection's weight and never calls it.

    While the attention runs, the columns of the weight that belong to a head are multiplied by the head's noise. As a
    hook it does nothing; but where there are hooks, torch's transformers do not go past their attentions.
    """

    def attach(self) -> None:
        self.place.add_module(f"{self.kind}_noise_on_{self.when}", self.noise)
        self.layer.register_forward_pre_hook(self)
        vars(self.layer)["forward"] = _WithNoise(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        """What a forward pre-hook does."""


class _WithNoise:
    """The forward of an attention, with noise on the weight of its output projection."""

    def __init__(self, hook: AttentionHook) -> None:
        self.hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer, place = self.hook.layer, self.hook.place
        weight = self.hook.noise(place.weight)
        # What is found in the instance comes before its parameter, which stays as it is. No call stands between these
        # lines, at which an interrupt could come in.
        attributes = vars(place)
        try:
            attributes["weight"] = weight
            return type(layer).forward(layer, *args, **kwargs)
        finally:
            del attributes["weight"]


def noise_hooks_in(net: nn.Module) -> Iterator[NoiseHook]:
    """The noise hooks on a network and its modules."""
    for module in net.modules():
        forward = vars(module).get("forward")
        for hook in [*module._forward_pre_hooks.values(), *module._forward_hooks.values(), forward]:
            if isinstance(hook, NoiseHook):
                yield hook


def remove_hooks(net: nn.Module) -> None:
    """Takes the noise hooks, and the noise, off a network and its modules."""
    for hook in list(noise_hooks_in(net)):
        for module in (hook.place, hook.layer):
            for registry in (module._forward_pre_hooks, module._forward_hooks):
                for key in [key for key, other in registry.items() if other is hook]:
                    del registry[key]
            if isinstance(vars(module).get("forward"), NoiseHook | _WithNoise):
                del vars(module)["forward"]
        for name in [name for name, child in hook.place.named_children() if child is hook.noise]:
            delattr(hook.place, name)
