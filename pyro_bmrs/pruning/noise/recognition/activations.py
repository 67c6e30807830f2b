# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Modules that act on each unit by itself, and those that leave what they are given."""

from __future__ import annotations

import torch
from torch import nn

from pyro_bmrs.pruning.layers import ACTIVATIONS, PASSIVE


def is_activation(module: nn.Module | None) -> bool:
    """
    Whether a module is an activation: one of torch's, or any without weights that computes each element from itself.

    Other libraries write activations as modules of their own, which is found by calling them.

    :param module: the module, which is in a copy of the network: it may store what it is given.

    Example::

        >>> from torch import nn
        >>> class SquaredReLU(nn.Module):
        ...     def forward(self, input):
        ...         return input.relu().square()
        >>> is_activation(SquaredReLU()), is_activation(nn.Softmax(-1)), is_activation(nn.Linear(2, 2))
        (True, False, False)
    """
    if module is None or isinstance(module, PASSIVE):
        return False
    return isinstance(module, ACTIVATIONS) or (_has_no_parts(module) and _is_elementwise(module))


def _has_no_parts(module: nn.Module) -> bool:
    return not (module._modules or module._parameters or module._buffers)


@torch.no_grad()
def _is_elementwise(module: nn.Module) -> bool:
    """Whether it changes elements, each whatever the others are."""
    values = torch.linspace(-3.0, 2.0, 24).reshape(2, 3, 4)
    # Along every dimension some of the others change.
    is_same = torch.arange(2).reshape(-1, 1, 1) + torch.arange(3).reshape(-1, 1) + torch.arange(4)
    is_same = is_same % 2 == 0
    training = module.training
    try:
        module.eval()
        # Not by a call, which is something symbolic while a network is traced.
        one, other = module.forward(values.clone()), module.forward(torch.where(is_same, values, values + 1))
    # A module may ask for whatever it likes; what cannot be called with a tensor is no activation.
    except Exception:
        return False
    finally:
        module.training = training
    if not torch.is_tensor(one) or one.shape != values.shape or not one.is_floating_point():
        return False
    return torch.allclose(one[is_same], other[is_same], equal_nan=True) and not torch.equal(one, values)
