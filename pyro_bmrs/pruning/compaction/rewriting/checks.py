# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a network, its factors and the inputs have to be, so that there is a compact network."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any

from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.modules.plain import make_plain
from pyro_bmrs.pruning.compaction.modules.scaling import Scale
from pyro_bmrs.pruning.compaction.rewriting.fastest import AUTO
from pyro_bmrs.pruning.examples import Outputs, failure_in_training, run
from pyro_bmrs.pruning.noise.attachment import NoiseSite


def check_comparable(bare: nn.Module, example_inputs: Any) -> None:
    """
    Sees that a network computes the same whenever it is called, and with attentions that can lose heads.

    :raises ReductionError: if not.
    """
    outputs = Outputs(bare, example_inputs)
    plain = deepcopy(bare)
    make_plain(plain)
    if outputs.difference(plain) > 1:
        raise ReductionError(
            "the network's output is random in evaluation mode, or not the same with plain attention in place of "
            "nn.MultiheadAttention: no two networks can be compared"
        )


def check_sizes(round_to: Any, batch_sizes: Any) -> None:
    """
    Sees that sizes are positive integers.

    :raises ReductionError: if not.
    """
    if round_to is not None and round_to != AUTO and not _is_size(round_to):
        raise ReductionError(f"round_to is a positive integer, {AUTO!r} or None, not {round_to!r}")
    if not all(map(_is_size, batch_sizes)):
        raise ReductionError(f"batch_sizes are positive integers, not {batch_sizes!r}")


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def checked_gates(net: nn.Module, gates: Mapping[str, Tensor], sites: Mapping[str, NoiseSite]) -> dict[str, Tensor]:
    """
    The gates in the precision, and on the device, of the weights that they multiply.

    :raises ReductionError: for gates that do not fit the sites, or are negative, NaN or infinite.
    """
    if gates.keys() != sites.keys():
        raise ReductionError(f"gates are for the sites {sorted(gates)}, but the network has {sorted(sites)}")
    weights = next((parameter for parameter in net.parameters() if parameter.is_floating_point()), None)
    if not sites or weights is None:
        raise ReductionError("the network has no noise: attach_noise(net) comes first, and fitting")
    for name, gate in gates.items():
        num_units = sites[name].noise.num_units
        if gate.shape != (num_units,):
            raise ReductionError(f"site {name!r} has {num_units} units, but its gates have shape {tuple(gate.shape)}")
        if not gate.isfinite().all() or (gate < 0).any():
            raise ReductionError(f"the gates of site {name!r} must be finite and not negative, but are {gate.tolist()}")
    return {name: gate.detach().to(weights) for name, gate in gates.items()}


def check_weights(net: nn.Module) -> None:
    """
    Sees that a network's weights are numbers.

    :raises ReductionError: for any that are NaN or infinite.
    """
    bad = {
        name: int((~tensor.isfinite()).sum())
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]
        if tensor.is_floating_point() and not tensor.isfinite().all()
    }
    if bad:
        counts = ", ".join(f"{count} in {name}" for name, count in bad.items())
        raise ReductionError(f"the network's weights are NaN or infinite ({counts}): train again, at a lower rate")


def check_called(net: nn.Module, scales: Mapping[str, Scale], example_inputs: Any) -> None:
    """
    Sees that a network calls all its multiplications, in evaluation or in training.

    :raises ReductionError: if not.
    """
    called: set[str] = set()
    failure = None

    def note(name: str, *_: Any) -> None:
        called.add(name)

    hooks = [scale.register_forward_hook(partial(note, name)) for name, scale in scales.items()]
    try:
        run(net, example_inputs)
        if scales.keys() - called:
            failure = failure_in_training(net, example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    missing = sorted(scales.keys() - called)
    if missing:
        reason = f" in evaluation, and in training it does not run on them ({failure})" if failure else ""
        raise ReductionError(
            f"on example_inputs the network does not call what has the noise of {missing}{reason}: pass inputs on "
            "which it does, larger ones perhaps, or take that noise off"
        )
