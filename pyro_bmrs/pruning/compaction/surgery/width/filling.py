# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Channels of a stream that are pruned and stay, so that it is of a size at which layers are fast.

A norm over more channels is another function; but not if these hold what it takes from all others: the mean of those
that are kept, or 0 for a norm that takes no mean. The mean is then the same, and the variance is smaller in the
proportion of the channels, by which the norm's weight and epsilon make up. The layers that write to a stream are
linear, so that what comes of the mean of their rows is the mean of what comes of these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.coupling.rounding import Rounding
from pyro_bmrs.pruning.examples import real_parameter
from pyro_bmrs.pruning.layers import channel_dims, num_channels
from pyro_bmrs.pruning.streams.norms import EPSILONS, UnevenGroupNorm, is_centred
from pyro_bmrs.pruning.streams.streams import Stream


def fillers(rounding: Rounding, stream: Stream, pruned: Tensor, merits: Tensor) -> tuple[Tensor, str]:
    """
    Which of a stream's pruned units stay, and why.

    :param rounding: what sizes are rounded up to.
    :param stream: the stream.
    :param pruned: which units are multiplied by 0.
    :param merits: which of these rather come back.
    """
    layers = frozenset(side.name for side in stream.units)
    number, reason = rounding.fill(layers, int((~pruned).sum()), len(pruned), 1)
    best = torch.where(pruned.cpu(), merits.cpu().double(), -torch.inf).argsort(descending=True, stable=True)
    back = torch.zeros_like(pruned)
    back[best[:number].to(pruned.device)] = True
    return back, reason


def fill(net: nn.Module, stream: Stream, kept: Tensor, back: Tensor) -> Tensor:
    """
    Has channels hold what a stream's norms take from the others, in place.

    :param net: the network.
    :param stream: the stream.
    :param kept: which units are kept.
    :param back: which of the others stay.
    :return: what the norms' outputs are multiplied by, which are to be over the units that are kept or stay.
    :raises ReductionError: for a stream of which that is not known: with norms over places, or over parts of it, or
        with layers on its way that do more than to write to it.
    """
    norms: list[tuple[Any, int]] = [(net.get_submodule(norm.name), norm.dim) for norm in stream.norms]
    if any(isinstance(norm, nn.GroupNorm | UnevenGroupNorm) for norm, _ in norms):
        raise ReductionError("norms that are over places, too, have another mean at each")
    centred = {is_centred(norm, dim) for norm, dim in norms}
    if len(centred) > 1 or any(side.side == "through" for side in stream.units):
        raise ReductionError("what the norms take from all channels differs between them")
    share = int(kept.sum()) / int((kept | back).sum())
    for norm, _ in norms:
        name = next((name for name in EPSILONS if name in vars(norm)), None)
        if name is None:
            raise ReductionError(f"nothing says what epsilon a {type(norm).__name__} has")
        epsilon = getattr(norm, name)
        # As torch has it where nothing is said.
        setattr(norm, name, share * (torch.finfo(real_parameter(net).dtype).eps if epsilon is None else epsilon))
    seen: set[int] = set()
    for side, units in stream.units.items():
        units = units.to(kept.device)
        is_own = units >= 0
        sources, targets = is_own & kept[units], is_own & back[units]
        if side.side == "parameter":
            tensors = {getattr(net.get_submodule(side.name.rpartition(".")[0]), side.name.rpartition(".")[2]): side.dim}
        elif side.side == "out":
            layer: Any = net.get_submodule(side.name)
            size = num_channels(layer, "out") or len(units)
            tensors = {getattr(layer, name): dim for name, dim in channel_dims(layer, "out", size).items()}
        else:
            continue
        for tensor, dim in tensors.items():
            # Parameters that are shared are filled once.
            if id(tensor) not in seen:
                seen.add(id(tensor))
                _fill(tensor.detach().movedim(dim, 0), sources, targets, is_mean=centred == {True})
    return torch.tensor(share, dtype=torch.float64).sqrt()


def _fill(rows: Tensor, sources: Tensor, targets: Tensor, *, is_mean: bool) -> None:
    if targets.any():
        mean = rows[sources].double().mean(0) if is_mean and sources.any() else torch.zeros_like(rows[0])
        rows[targets] = mean.to(rows.dtype)
