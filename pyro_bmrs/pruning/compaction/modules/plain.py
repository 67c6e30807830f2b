# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks whose layers hold their weights as parameters, one for each row and column of what they compute."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from pyro_bmrs.pruning.compaction.modules.attention import Attention
from pyro_bmrs.pruning.compaction.modules.scaling import substitute
from pyro_bmrs.pruning.compaction.modules.shared_positions import SharedPositions


def make_plain(net: nn.Module) -> None:
    """
    Puts an :class:`~pyro_bmrs.pruning.Attention` in the place of each ``nn.MultiheadAttention``, what can lose heads in
    the place of attentions that share a bias of positions, and weights in the
    place of their parametrizations, such as weight normalisation; in place.
    """
    for module in list(net.modules()):
        if type(module) is nn.MultiheadAttention:
            substitute(net, module, Attention.of(module))
        if SharedPositions.is_for(module):
            substitute(net, module, SharedPositions.of(module))
        if isinstance(module, nn.TransformerEncoder):
            # Nested tensors are for the fused path only.
            module.use_nested_tensor = False
        remove_parametrizations(module)


def remove_parametrizations(module: nn.Module) -> None:
    """
    Keeps the weights that a module's parametrizations compute, and not these.

    Unlike torch's own function, it leaves the module's class as it is, which copies of the module share.
    """
    if not parametrize.is_parametrized(module):
        return
    parametrizations: Any = module.parametrizations
    weights = {name: getattr(module, name).detach().clone() for name in parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight))
