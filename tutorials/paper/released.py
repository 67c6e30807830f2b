# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The defaults of the code released with the paper beside what it gave, and parameters counted as it counts them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd
import torch
from torch import nn

from .networks import build_network
from .tables import MEASURES, SETUP, Row, Unpruned, measured, over_seeds

# What the code released with the paper gave on MNIST, one seed each: units and parameters removed, accuracy, all in
# percent; its networks were trained for 40 epochs and fine-tuned for 5. None where it was not recorded.
RELEASED = (
    ("mlp-6x50", "BMRS_N", 79.7, 54.6, 95.3),
    ("mlp-6x50", "BMRS_U-8", None, 56.2, 95.5),
    ("mlp-6x50", "SNR", 79.7, 54.6, 95.6),
    ("lenet5", "BMRS_N", 83.6, 87.2, 95.8),
)
RELEASED_UNPRUNED = {"mlp-6x50": 96.8}
COUNT = "as released counts"

# By which of them, as the table calls it.
_SETTINGS = {"released_images": "this program, its images", "released": "this program"}
_DATA, _CLASSES = "mnist", 10
_GREY, _COLOUR = (1, 32, 32), (3, 32, 32)
_MEASURES = (*MEASURES[:3], COUNT)


def released_table(rows: Sequence[Row]) -> pd.DataFrame:
    """
    The settings of the released code's command line on MNIST beside what the code released with the paper gave.

    :param rows: the results.
    :return: as :func:`~tutorials.paper.tables.continuous_table`, and in a column of its own what share of the
        parameters the released code would say is removed.
    """
    compared = {(network, criterion) for network, criterion, *_ in RELEASED}
    ours = [
        {**measured(row), COUNT: released_count(row["network"], row["sites"])}
        for row in rows
        if (row["experiment"], row["data"]) == ("continuous", _DATA)
        and row["settings"] in _SETTINGS
        and (row["network"], row.get("criterion")) in compared
    ]
    if not ours:
        return pd.DataFrame()
    table = over_seeds(pd.DataFrame(ours), ["network", "criterion", "settings", *SETUP], _MEASURES)
    unpruned, lines = Unpruned(rows), list[dict[Any, Any]]()
    for network, criterion, units, parameters, accuracy in RELEASED:
        theirs = {"units removed": units, COUNT: parameters, "accuracy": accuracy}
        setup = {"network": network, "criterion": criterion, "by": "released code", "epochs": "40 + 5", "seeds": 1}
        lines.append({**setup, **theirs, "unpruned": RELEASED_UNPRUNED.get(network)})
        match = table[(table["network"] == network) & (table["criterion"] == criterion)]
        known = {"unpruned": unpruned.get((_DATA, network, "released"))}
        lines += [{**line, **known, "by": _SETTINGS[line["settings"]]} for line in match.to_dict("records")]
    columns = ["data", "network", "criterion", "by", "epochs", "seeds", "unpruned"]
    measures = [column for name in _MEASURES for column in (name, f"{name} sd")]
    return pd.DataFrame(lines).assign(data=_DATA).reindex(columns=[*columns, *measures])


def released_count(network: str, sites: Mapping[str, Sequence[int]], data: str = _DATA) -> float:
    """
    The share of a network's parameters that the code released with the paper counts as removed, in percent.

    Those are the weights that are certain to be multiplied by 0, without biases, and the two parameters of the noise
    of each unit; of all parameters, those of the noise among them. A weight on what a removed unit puts out counts
    only where the layer has one input for each unit: not behind filters that are flattened.

    :param network: one of :mod:`tutorials.paper.networks`.
    :param sites: of each layer with noise, how many units it had and has.
    :param data: whose images the network is for, of 32x32 pixels; in colour are those of CIFAR-10.

    Example::

        >>> sites = {"0": [6, 6], "3": [16, 8], "7": [120, 120], "9": [84, 84]}  # half of LeNet-5's second filters
        >>> round(released_count("lenet5", sites), 2)  # 8 of them, with 6x5x5 weights each, and their noise
        1.96
    """
    parameters, layers = _layers(network, _COLOUR if data == "cifar10" else _GREY)
    removed, inputs, left = 0, 0, 0
    for name, (outputs, columns, *kernel) in layers.items():
        units, units_left = sites.get(name, (outputs, outputs))
        pixels = math.prod(kernel)
        weights_left = pixels * units_left * (left if columns == inputs else columns)
        removed += pixels * outputs * columns - weights_left + 2 * (units - units_left)
        inputs, left = units, units_left
    return 100 * removed / (parameters + 2 * sum(units for units, _ in sites.values()))


@cache
def _layers(network: str, shape: tuple[int, int, int]) -> tuple[int, dict[str, torch.Size]]:
    """How many parameters a network has, and the shapes of the weights of its layers."""
    net = build_network(network, shape, _CLASSES)
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    return sum(map(torch.numel, net.parameters())), {name: layer.weight.shape for name, layer in layers.items()}
