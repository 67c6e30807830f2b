# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Noise on a network as it is: attached by hooks, and taken off again.

The noise acts in a forward hook, on what a module returns, or in a forward pre-hook, on what a module is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from pyro_bmrs.pruning.noise import MultiplicativeNoise


@dataclass(frozen=True)
class NoiseSite:
    """
    Where noise acts in a network.

    :param name: name of the sample site.
    :param noise: the noise, with ``num_units``, ``unit_size``, ``dim`` and ``kept``.
    :param module: name of the layer whose outputs (for heads: whose heads; for a block: whose whole output) the units
        are. Empty for noise that the network calls itself.
    :param place: name of the module that is hooked; it may lie a few elementwise steps after ``module``: a batch norm,
        an activation, a pooling, a dropout.
    :param when: ``"output"`` if the noise multiplies what ``place`` returns, ``"input"`` if what it is given.
    :param kind: ``"units"`` of a layer (features, channels; behind a flattening, ``unit_size`` elements are one
        channel), ``"heads"`` of an attention (each ``unit_size`` features of what the output projection is given; for
        ``nn.MultiheadAttention``, which calls no projection, ``place`` is its ``out_proj`` nevertheless), or a
        ``"block"``, the whole residual branch that ends at ``place``, as one unit.
    """

    name: str
    noise: MultiplicativeNoise
    module: str
    place: str
    when: str
    kind: str


class NoiseHook:
    """
    The hook through which noise acts on a module; an object without a closure, so that it is copied with the network.

    :param noise: the noise.
    :param layer: the layer whose units they are.
    :param when: ``"output"`` or ``"input"``.
    :param kind: ``"units"``, ``"heads"`` or ``"block"``.
    """

    def __init__(self, noise: MultiplicativeNoise, layer: nn.Module, when: str, kind: str) -> None:
        # In a tuple, as the layer is no part of the hook.
        self.noise, self._layer, self.when, self.kind = noise, (layer,), when, kind

    @property
    def layer(self) -> nn.Module:
        """The layer whose units the noise is on."""
        return self._layer[0]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> Any:
        """What a forward hook and a forward pre-hook do."""
        if self.when == "input":
            return (self.noise(args[0]), *args[1:])
        return self.noise(output)


def noise_sites(net: nn.Module) -> dict[str, NoiseSite]:
    """
    The noise in a network, in the order in which its modules are registered.

    :param net: a network after :func:`attach_noise`, or one that calls :class:`MultiplicativeNoise` itself.
    :return: for each site name, where it acts.
    """
    names = {module: name for name, module in net.named_modules()}
    hooked = [
        NoiseSite(hook.noise.site_name, hook.noise, names.get(hook.layer, ""), place, hook.when, hook.kind)
        for place, module in net.named_modules()
        for hook in noise_hooks(module)
    ]
    known = {site.noise for site in hooked}
    called = [
        NoiseSite(module.site_name, module, "", place, "output", "units")
        for place, module in net.named_modules()
        if isinstance(module, MultiplicativeNoise) and module not in known
    ]
    return {site.name: site for site in [*hooked, *called]}


def noise_hooks(module: nn.Module) -> Iterator[NoiseHook]:
    """The noise hooks on one module."""
    for hook in [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]:
        if isinstance(hook, NoiseHook):
            yield hook
