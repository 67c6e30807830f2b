# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Results as figures ask for them, made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bmrs.tables import element_labels


def reduction(checked: Any = None, **elementwise: Tensor) -> SimpleNamespace:
    labels = {name: element_labels(name, values.shape) for name, values in elementwise.items()}
    return SimpleNamespace(elementwise=elementwise, element_labels=labels, checked=checked)


def posteriors(before: Mapping[str, Any], after: Mapping[str, Any], **shapes: tuple[int, ...]) -> SimpleNamespace:
    labels = {name: element_labels(name, torch.Size(shape)) for name, shape in shapes.items()}
    return SimpleNamespace(fitted_posterior=before, posterior=after, element_labels=labels)


def two_slopes() -> SimpleNamespace:
    before = {"slopes": dist.Normal(torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.5])).to_event(1)}
    after = {"slopes": dist.Normal(torch.tensor([0.0, -1.5]), torch.tensor([0.1, 0.4])).to_event(1)}
    return posteriors(before, after, slopes=(2,))


def end(value: float, error: float = 0.05, k: float = 0.2) -> SimpleNamespace:
    return SimpleNamespace(value=value, standard_error=error, pareto_k=k)


def check(**changes: Any) -> SimpleNamespace:
    parts = {"full": end(-9.0), "reduced": end(-10.5, k=0.4), "read_off": -1.2, "read_off_error": 0.0}
    return SimpleNamespace(**(parts | {"guide_pareto_k": 0.9} | changes))


def space() -> SimpleNamespace:
    return SimpleNamespace(
        inclusion_probability={"slopes": torch.tensor([0.9, 0.2, 0.6])},
        reduced={"slopes": torch.tensor([False, True, False])},
        element_labels={"slopes": ["age", "dose", "sex"]},
        source="model",
        top=lambda num: SimpleNamespace(probability=torch.tensor([0.5, 0.3, 0.2])[:num]),
    )


def sensitivity() -> SimpleNamespace:
    places = torch.logspace(-1, 1, 9)
    return SimpleNamespace(
        label="scale",
        places=places.tolist(),
        log_bayes_factor=2 - places.log().square(),
        checked_log_bayes_factor=1.8 - places.log().square(),
        threshold=1.0,
        mean=torch.stack([places / (1 + places), -places / (3 + places)], 1),
        sd=torch.full((9, 2), 0.2),
        labels=["age", "dose"],
    )


def compression() -> SimpleNamespace:
    path = {
        "parameters": [900, 300, 90, 20],
        "log_likelihood": [-0.1, -0.3, -0.12, -0.4],
        "error": [0.0, 0.1, 0.02, 0.1],
    }
    flags = {"trained": [True, False, True, True], "chosen": [False, False, True, False]}
    units = pd.DataFrame({"conv": [20, 15, 9, 2], "linear": [50, 40, 8, 5]})
    return SimpleNamespace(path=pd.DataFrame(path | flags), units=units)


def report() -> SimpleNamespace:
    sites = {"units": [20, 50, 500], "kept": [8, 12, 40], "masked": [0, 5, 0]}
    return SimpleNamespace(sites=pd.DataFrame(sites, index=["conv1", "conv2", "linear"]))


def methods() -> pd.DataFrame:
    rows = [("ours", 0.1, 0.98), ("ours", 0.14, 0.97), ("peer", 0.1, 0.95), ("peer", 0.3, 0.975), ("dense", 1.0, 0.98)]
    return pd.DataFrame(rows, columns=["method", "share", "accuracy"])


def correlations() -> pd.DataFrame:
    names = ["BMRS_N", "SNR", "WeightNorm"]
    return pd.DataFrame([[1.0, 0.9, -0.3], [0.9, 1.0, 0.1], [-0.3, 0.1, 1.0]], names, names)
