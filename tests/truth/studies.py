# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Published models with their data, and the questions that are asked of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Study:
    """
    A model of published data, and what other priors would do to its evidence.

    :param model: a Pyro model; its arguments are the data.
    :param data: reads them.
    :param questions: by name, as in truth.json, reduced priors as :func:`pyro_bmrs.reduce_model` takes them.
    """

    model: Callable[..., Any]
    data: Callable[[], tuple[Tensor, ...]]
    questions: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.model.__name__


def columns(name: str, *keys: str) -> tuple[Tensor, ...]:
    """Columns of a file of the data, in the default dtype."""
    table = json.loads((FOLDER / "data" / f"{name}.json").read_text())
    return tuple(torch.tensor(table[key], dtype=torch.get_default_dtype()) for key in keys)


def standardised(values: Tensor) -> Tensor:
    """Of mean 0 and standard deviation 1 along the first dimension."""
    return (values - values.mean(0)) / values.std(0, correction=0)


def point(value: float | Tensor, event_dim: int = 0) -> dist.Delta:
    return dist.Delta(torch.as_tensor(value, dtype=torch.get_default_dtype()), event_dim=event_dim)


def without(*names: str) -> dict[str, dist.Delta]:
    """Scalar sites that are dropped from a model."""
    return {name: point(0.0) for name in names}
