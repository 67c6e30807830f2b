# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Multiplications by fixed factors in a network: noise at its posterior mean, as plain modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pyro_bmrs.pruning.layers import beside_weight
from pyro_bmrs.pruning.noise.attachment import NoiseSite
from pyro_bmrs.pruning.noise.multiplicative_noise import MultiplicativeNoise
from pyro_bmrs.pruning.streams.experts import reading_by


class Scale(nn.Module):
    """
    Multiplies each element along one dimension by a factor of its own.

    :param factor: the factors, shape ``(n,)``.
    :param dim: the dimension of the input that has ``n`` elements; None for one factor of all that the input holds.

    Example::

        >>> import torch
        >>> Scale(torch.tensor([0.0, 2.0]), dim=1)(torch.ones(1, 2))
        tensor([[0., 2.]])
    """

    factor: Tensor

    def __init__(self, factor: Tensor, dim: int | None) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("factor", factor)

    def forward(self, input: Tensor) -> Tensor:
        return input * self.along(self.factor, input)

    def along(self, values: Tensor, input: Tensor) -> Tensor:
        """One value for each factor, in a shape that broadcasts with an input."""
        shape = [1] * input.dim()
        if self.dim is not None:
            shape[self.dim] = -1
        return values.reshape(shape)

    def extra_repr(self) -> str:
        return f"{len(self.factor)}, dim={self.dim}"


class Scaled(nn.Module):
    """
    A module whose output, or whose first input, is multiplied by fixed factors; of several outputs the first; or
    experts whose hidden units are.

    :param module: the module.
    :param scale: the factors.
    :param when: ``"output"``, ``"input"``, or ``"hidden"``.
    """

    def __init__(self, module: nn.Module, scale: Scale, when: str) -> None:
        super().__init__()
        self.module, self.scale, self.when = module, scale, when
        self.training = module.training

    def __getattr__(self, name: str) -> Any:
        # Networks ask their layers for more than a call: for the weight, say, or its precision.
        return super().__getattr__(name) if name in ("module", "scale") else getattr(self.module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.when == "input":
            return self.module(self.scale(args[0]), *args[1:], **kwargs)
        if self.when == "hidden":
            with reading_by(self.module, self.scale(self.module.down_proj)):
                return self.module(*args, **kwargs)
        output = self.module(*args, **kwargs)
        # What an LSTMCell keeps for itself comes behind what it puts out.
        return (self.scale(output[0]), *output[1:]) if isinstance(output, tuple) else self.scale(output)

    def as_seen(self, name: str) -> Tensor:
        """The layer's weight or bias, multiplied as what the layer is given is."""
        tensor: Tensor = self.module.as_seen(name) if isinstance(self.module, Scaled) else getattr(self.module, name)
        # What multiplies the output is beside the weight, which may be tied and used for something else.
        if name == "bias" or self.when == "output":
            return tensor
        # By a call, which others look for.
        shape = [1] * 5
        if self.scale.dim is not None:
            shape[self.scale.dim] = len(self.scale.factor)
        factors = self.scale(tensor.new_ones(shape)).flatten()
        scaled: Tensor = tensor * (beside_weight(self.module, "in", factors) if len(factors) > 1 else factors)
        return scaled

    def extra_repr(self) -> str:
        return f"when={self.when!r}"


def substitute(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts one module in the place of another, under each name that it has."""
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):
            if child is old and parent is not new:
                parent._modules[name] = new


def scale_network(net: nn.Module, gates: Mapping[str, Tensor], sites: Mapping[str, NoiseSite]) -> dict[str, Scale]:
    """
    Puts multiplications by the gates where the noise acts, in place.

    :param net: a network without noise hooks, whose recurrent layers are written out.
    :param gates: for each site the factors of its units, shape ``(num_units,)``.
    :param sites: for each site where it acts.
    :return: for each site the multiplication.
    """
    outermost: dict[nn.Module, nn.Module] = {}
    places = {name: net.get_submodule(site.place) for name, site in sites.items()}
    scales = {}
    for name, site in sites.items():
        place = places[name]
        scale = Scale(gates[name].detach().repeat_interleave(site.noise.unit_size), site.noise.dim)
        if site.part is not None:
            layer: Any = place.get_submodule(f"{site.part.name}.layer")
            layer.seen = scales[name] = scale
            continue
        current = outermost.get(place, place)
        # Noise that the network calls itself is all that its module does.
        new = scale if isinstance(place, MultiplicativeNoise) else Scaled(current, scale, site.when)
        substitute(net, current, new)
        outermost[place], scales[name] = new, scale
    return scales


def unwrap(net: nn.Module, scale: Scale) -> None:
    """Takes a multiplication out of the network, in place."""
    for module in list(net.modules()):
        if isinstance(module, Scaled) and module.scale is scale:
            substitute(net, module, module.module)
            return
    substitute(net, scale, nn.Identity())


def scales_of(net: nn.Module) -> dict[str, Scale]:
    """The multiplications in a network by the names of their modules."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Scale)}
