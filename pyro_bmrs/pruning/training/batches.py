# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Batches as data loaders give them, and what networks return for them.

Inputs are what :mod:`pyro_bmrs.pruning.examples` says: a tensor, a sequence of positional arguments, or a mapping of
keyword arguments. A mapping may hold the targets too, under ``"labels"``, as batches for transformers do.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_bmrs.errors import ReductionError

_LABELS, _LOGITS = "labels", "logits"


def targets_of(x: Any, y: Tensor | None) -> Tensor | None:
    """
    What was observed: what is given by itself, else what a mapping of inputs holds under ``"labels"``.

    :param x: the inputs.
    :param y: the targets, if they are given by themselves.
    """
    return x.get(_LABELS) if y is None and isinstance(x, Mapping) else y


def pair_of(batch: Any) -> tuple[Any, Tensor]:
    """
    The inputs and the targets of a batch.

    :param batch: a pair of both, or a mapping of inputs that holds the targets as ``"labels"``.
    :raises ReductionError: for a batch that is neither.

    Example::

        >>> import torch
        >>> from pyro_bmrs.pruning.training.batches import pair_of
        >>> pair_of({"x": torch.zeros(2, 3), "labels": torch.tensor([0, 1])})[1]
        tensor([0, 1])
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        x, y = batch
    else:
        x, y = batch, targets_of(batch, None)
    if not isinstance(y, Tensor):
        raise ReductionError(
            "a batch is a pair of inputs and targets, or a mapping that has the targets as 'labels'; not "
            f"{type(batch).__name__}"
        )
    return x, y


def on_device(batch: Any, device: torch.device) -> Any:
    """
    A batch on a device: all in it that knows how to go there, as tensors and the batches of transformers do.

    :param batch: the batch.
    :param device: the device.

    Example::

        >>> import torch
        >>> from pyro_bmrs.pruning.training.batches import on_device
        >>> on_device(({"x": torch.zeros(2)}, None), torch.device("meta"))[0]["x"].device
        device(type='meta')
    """
    return tree_map(lambda value: value.to(device) if hasattr(value, "to") else value, batch)


def run_on_batch(net: nn.Module, x: Any) -> Any:
    """
    What a network returns for a batch.

    Labels in a mapping are left out, unless the network cannot do without them: they are the likelihood's.

    :param net: the network.
    :param x: its inputs.
    """
    if isinstance(x, Mapping):
        return net(**{name: value for name, value in x.items() if name != _LABELS or _needs_labels(net, x)})
    return net(*x) if isinstance(x, tuple | list) else net(x)


def _needs_labels(net: nn.Module, x: Mapping[str, Any]) -> bool:
    """Whether a network makes the inputs of its decoder of the labels, or has no default for them."""
    if getattr(getattr(net, "config", None), "is_encoder_decoder", False) and "decoder_input_ids" not in x:
        return True
    parameter = inspect.signature(net.forward).parameters.get(_LABELS)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def prediction(output: Any) -> Tensor:
    """
    The tensor by which a network says what it expects to be observed.

    :param output: what the network returned: that tensor; what has it as ``logits``, as the outputs of transformers do;
        a tuple or list, of which it is the first; or a mapping of nothing else.
    :raises ReductionError: if there is none, or one without a dimension for examples.

    Example::

        >>> import torch
        >>> from pyro_bmrs.pruning.training.batches import prediction
        >>> prediction({"logits": torch.ones(2, 3), "hidden_states": None}).shape
        torch.Size([2, 3])
    """
    if isinstance(output, Tensor) and output.dim():
        return output
    found = output
    if isinstance(output, Mapping):
        only = next(iter(output.values())) if len(output) == 1 else None
        found = output.get(_LOGITS, only)
    elif hasattr(output, _LOGITS):
        found = output.logits
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    if not isinstance(found, Tensor) or not found.dim():
        parts = f" of {list(output)}" if isinstance(output, Mapping) else ""
        raise ReductionError(
            f"the network returns a {type(output).__name__}{parts}, and no tensor in it is known to be the logits, or "
            "means, of a batch: return that tensor, or have it under 'logits'"
        )
    return found
