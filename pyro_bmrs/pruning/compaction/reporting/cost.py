# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What the modules of a network cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pyro_bmrs.pruning.examples import call, evaluation

if TYPE_CHECKING:
    import pandas as pd


def cost(net: nn.Module, example_inputs: Any) -> pd.DataFrame:
    """
    What each module costs by itself, without those in it.

    Multiply-accumulate operations are half of what :class:`torch.utils.flop_counter.FlopCounterMode` counts: those of
    products of matrices, convolutions and attention.

    :param net: the network.
    :param example_inputs: what it is called with.
    :return: a row for each module that has parameters or multiplies, with ``parameters`` and ``macs``.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> cost(nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 2)), torch.ones(1, 10))
               parameters  macs
        layer
        0              55    50
        2              12    10
    """
    import pandas as pd

    # Attention is counted where it is done by products of matrices, as not all its fused kernels are known there.
    with (
        evaluation(net),
        _without_gradients(net),
        _without_fused_layers(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        call(net, example_inputs)
    root = type(net).__name__
    counts = {
        "" if name == root else name.removeprefix(f"{root}."): sum(by_operation.values()) // 2
        for name, by_operation in counter.get_flop_counts().items()
        if name != "Global"
    }
    own = dict(counts)
    for name, count in counts.items():
        around = name
        while around:
            around = around.rpartition(".")[0]
            if around in counts:
                own[around] -= count
                break
    rows = {}
    for name, module in net.named_modules():
        parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if parameters or own.get(name):
            rows[name] = {"parameters": parameters, "macs": own.get(name, 0)}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["parameters", "macs"], dtype=int)
    table.index.name = "layer"
    return table


@contextmanager
def _without_fused_layers() -> Iterator[None]:
    """LSTMs by products of matrices, which are counted, and not by a kernel of the processor's, which is not."""
    kernels: Any = torch.backends.mkldnn
    enabled, kernels.enabled = kernels.enabled, False
    try:
        yield
    finally:
        kernels.enabled = enabled


@contextmanager
def _without_gradients(net: nn.Module) -> Iterator[None]:
    """
    The network with parameters that require no gradients, for as long as they are not computed.

    Under ``no_grad`` alone, views of a parameter, as a class token that is expanded, require one that has no function:
    the counter does not run on modules that are given these.
    """
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def compare_costs(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Both costs side by side, 0 for a module that is not there."""
    table = before.add_suffix("_before").join(after.add_suffix("_after"), how="outer").fillna(0).astype(int)
    order = [*before.index, *after.index.difference(before.index, sort=False)]
    return table.loc[order, ["parameters_before", "parameters_after", "macs_before", "macs_after"]]
