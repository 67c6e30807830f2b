# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduced models compared by how well they predict each observation without it, as ArviZ does."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_bmrs import arviz_adapter
from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.integration.coordinates import fixed_elements
from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.search.averaging.prediction import Averaged
from pyro_bmrs.search.probabilities.models import Models
from pyro_bmrs.structure.layers import peel
from pyro_bmrs.structure.vectorised import Vectorised, own_parameters, own_random_numbers, set_seed

if TYPE_CHECKING:
    import pandas as pd


def compare_predictions(averaged: Averaged, names: Sequence[str], num_samples: int, method: str) -> pd.DataFrame:
    """
    What ``arviz.compare`` says of the most probable models.

    :param averaged: the posterior, and the models.
    :param names: of each of them, the most probable first.
    :param num_samples: draws from the reduced posterior of each.
    :param method: how the weights are had, as for ``arviz.compare``.
    :raises ReductionError: for fewer than two models, and for models without observed sites, of which each observation
        has a density of its own.
    :warns ReductionWarning: where the leave-one-out estimate of a model is not to be trusted.
    """
    if len(names) < 2:
        raise ReductionError(f"there is nothing to compare {len(names)} models with; ask for at least two")
    top = averaged.models.top(len(names))
    one, data = torch.ones_like(top.delta_evidence[:1]), {}
    with torch.no_grad(), own_random_numbers(), own_parameters():
        set_seed(0)
        for place, name in enumerate(names):
            drawn = averaged.over(Models(*(part[place : place + 1] for part in top)), one).draw(num_samples)
            data[name] = _with_log_likelihood(averaged.fitted, drawn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said below, of which models
        table: pd.DataFrame = arviz_adapter.compare(data, method)
    doubtful = sorted(table.index[table["warning"].astype(bool)])
    if doubtful:
        warnings.warn(
            f"Pareto k is above 0.7 for some observations, so that elpd_loo is not to be trusted of {doubtful}: the "
            "posterior without one of them is another. Leave these out by refits.",
            ReductionWarning,
            stacklevel=3,
        )
    return table


def _with_log_likelihood(fitted: FittedGuide, drawn: dict[str, Tensor]) -> Any:
    def of_each(values: dict[str, Tensor]) -> Tensor:
        conditioned = poutine.condition(fitted.model, data=values)
        nodes: Any = poutine.trace(conditioned).get_trace(*fitted.args, **fitted.kwargs).nodes
        observed = [site for name, site in nodes.items() if _is_data(site) and name not in values]
        if not observed:
            raise ReductionError(
                "the model has no observed site, so that its observations cannot be told apart; give the data as obs="
            )
        return torch.cat([_log_prob(site) for site in observed])

    log_likelihood = Vectorised("evaluating the likelihood")(of_each, drawn)
    chain = {name: values.unsqueeze(0).cpu().numpy() for name, values in drawn.items()}
    return arviz_adapter.to_arviz(
        {"posterior": chain, "log_likelihood": {"data": log_likelihood.double().unsqueeze(0).cpu().numpy()}}
    )


def _is_data(site: Any) -> bool:
    is_observed = site["type"] == "sample" and site["is_observed"] and not site["infer"].get("_deterministic")
    return bool(is_observed and not isinstance(peel(site["fn"]).core, dist.Unit))


def _log_prob(site: Any) -> Tensor:
    """Of each observation that counts."""
    log_prob: Tensor = site["fn"].log_prob(site["value"])
    masked = fixed_elements(site)
    masked = masked.reshape(masked.shape[: log_prob.dim()] + (-1,)).all(-1)
    return log_prob[~masked.expand(log_prob.shape)] if masked.any() else log_prob.reshape(-1)
