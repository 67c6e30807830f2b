# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A reduction as a table, and as ArviZ data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from . import arviz_adapter
from .chains import FittedDraws
from .guides import DrawsGuide
from .posteriors import FittedGuide

if TYPE_CHECKING:
    import pandas as pd

    from .reduction import Reduction

# Draws for the moments of a posterior that has no closed form for them.
_NUM_DRAWS = 4000


def element_labels(name: str, shape: torch.Size) -> list[str]:
    """Labels of a site's elements, as ArviZ writes them.

    Example::

        >>> element_labels("w", torch.Size([2]))
        ['w[0]', 'w[1]']
    """
    indices = itertools.product(*map(range, shape))
    return [f"{name}[{', '.join(map(str, index))}]" if index else name for index in indices]


@torch.no_grad()
def moments(distribution: Distribution | None, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each element; by draws where the distribution knows no closed form."""
    missing = torch.full(shape, torch.nan)
    if distribution is None or distribution.batch_shape + distribution.event_shape != shape:
        return missing, missing
    try:
        return distribution.mean, distribution.stddev
    except NotImplementedError:
        draws = distribution.sample(torch.Size([_NUM_DRAWS]))
        return draws.mean(0), draws.std(0)


def summarise(reduction: Reduction, fitted_posterior: Mapping[str, Distribution]) -> pd.DataFrame:
    """The table behind :meth:`pyro_bmrs.Reduction.summary`."""
    import pandas as pd

    tables = []
    for name in reduction.reduced_sites:
        delta = reduction.elementwise[name].detach()
        mean, sd = moments(fitted_posterior.get(name), delta.shape)
        reduced_mean, reduced_sd = moments(reduction.posterior.get(name), delta.shape)
        columns = {
            "mean": mean,
            "sd": sd,
            "reduced_mean": reduced_mean,
            "reduced_sd": reduced_sd,
            "delta_evidence": delta,
            "probability": torch.sigmoid(delta),
        }
        flat = {label: column.detach().reshape(-1).cpu().numpy() for label, column in columns.items()}
        tables.append(pd.DataFrame(flat, index=element_labels(name, delta.shape)))
    return pd.concat(tables)


@torch.no_grad()
def to_arviz(fitted: FittedGuide | FittedDraws, reduction: Reduction, num_samples: int) -> Any:
    """The data behind :meth:`pyro_bmrs.Reduction.to_arviz`."""
    guide = reduction.guide
    draws = guide.resample(num_samples) if isinstance(guide, DrawsGuide) else _run_guide(fitted, guide, num_samples)
    chain = {name: values.unsqueeze(0).cpu().numpy() for name, values in draws.items()}
    data = arviz_adapter.to_arviz({"posterior": chain})
    data.posterior.attrs["method"] = reduction.method
    for attribute in ("delta_evidence", "standard_error", "pareto_k", "effective_sample_size"):
        value = getattr(reduction, attribute)
        if value is not None:
            data.posterior.attrs[attribute] = float(value)
    return data


def _run_guide(fitted: FittedGuide | FittedDraws, guide: Any, num_samples: int) -> dict[str, Tensor]:
    draws: dict[str, list[Tensor]] = {}
    for _ in range(num_samples):
        trace = poutine.trace(guide).get_trace(*fitted.args, **fitted.kwargs)
        for name in fitted.sites:
            draws.setdefault(name, []).append(trace.nodes[name]["value"])
    return {name: torch.stack(values) for name, values in draws.items()}
