# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models compared by their evidence, in a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.integration.ends import LogEvidence
from pyro_bmrs.integration.log_evidence import integrate
from pyro_bmrs.posteriors.reading import read_posterior

if TYPE_CHECKING:
    import pandas as pd


def compare(
    fits: Mapping[str, Any], *, prior_log_odds: Mapping[str, float] | None = None, progress: bool = False
) -> pd.DataFrame:
    """
    Models fitted to the same data, by their log evidence, the best first.

    :param fits: for the name of each model what stands for its posterior: a fitted guide or a finished MCMC run that
        knows its model and arguments, or a tuple ``(posterior, model, args)`` or ``(posterior, model, args, kwargs)``.
    :param prior_log_odds: log prior weight of each model, in nats; 0 for those not named.
    :param progress: whether to show progress bars while drawing from guides.
    :return: a row a model: ``rank``, ``log_evidence`` (nats), ``difference`` to the best, ``standard_error`` of the
        difference (of the log evidence itself for the best), posterior ``probability``, ``pareto_k``,
        ``effective_share``, and ``trusted``.
    :raises ReductionError: for models of different data, and for what :func:`log_evidence` refuses.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y, scale):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, scale))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y, guides = torch.tensor([0.5, 1.5]), {}
        >>> for name, scale in {"narrow": 0.1, "wide": 1.0}.items():
        ...     guides[name] = AutoNormal(model)
        ...     _ = guides[name](y, torch.tensor(scale))
        >>> compare(guides)[["rank", "difference"]].round(1)
                rank  difference
        wide       0         0.0
        narrow     1        -0.1
    """
    import pandas as pd

    if not fits:
        raise ReductionError("there is nothing to compare; name at least one model")
    unknown = sorted(set(prior_log_odds or {}) - set(fits))
    if unknown:
        raise ReductionError(f"prior_log_odds names {unknown}, but the models are {sorted(fits)}")
    estimates: dict[str, LogEvidence] = {}
    data: dict[str, list[torch.Tensor]] = {}
    for name, fit in fits.items():
        source, model, args, kwargs = _parts(name, fit)
        fitted = read_posterior(source, model, args, kwargs)
        data[name] = _observed(fitted)
        first = next(iter(data))
        if not _alike(data[name], data[first]):
            raise ReductionError(
                f"models {first!r} and {name!r} have different data (or different arguments), so that their evidence "
                "cannot be compared; fit all to the same observations"
            )
        estimates[name] = integrate(fitted, progress=progress)
    odds = dict.fromkeys(fits, 0.0) | dict(prior_log_odds or {})
    scores = torch.tensor([estimates[name].value + odds[name] for name in fits], dtype=torch.float64)
    probability = dict(zip(fits, torch.softmax(scores, 0).tolist()))
    order = sorted(fits, key=lambda name: -estimates[name].value)
    best = estimates[order[0]]
    rows = {}
    for rank, name in enumerate(order):
        own = estimates[name]
        error = own.standard_error if rank == 0 else math.hypot(own.standard_error, best.standard_error)
        rows[name] = {
            "rank": rank,
            "log_evidence": own.value,
            "difference": own.value - best.value,
            "standard_error": error,
            "probability": probability[name],
            "pareto_k": own.pareto_k,
            "effective_share": own.effective_share,
            "trusted": own.trusted,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _parts(name: str, fit: Any) -> tuple[Any, Any, tuple[Any, ...], dict[str, Any]]:
    if not isinstance(fit, tuple):
        return fit, None, (), {}
    if not 2 <= len(fit) <= 4:
        raise ReductionError(f"model {name!r} is a tuple of {len(fit)}; give (posterior, model, args[, kwargs])")
    source, model, *rest = fit
    args = rest[0] if rest else ()
    return source, model, args, rest[1] if len(rest) > 1 else {}


def _observed(fitted: Any) -> list[torch.Tensor]:
    with torch.no_grad(), poutine.block():
        trace = poutine.trace(fitted.model).get_trace(*fitted.args, **fitted.kwargs)
    return [trace.nodes[name]["value"].detach() for name in sorted(trace.observation_nodes)]


def _alike(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Whether two models observe the same numbers, whatever the names of their sites are."""
    if sorted(value.numel() for value in one) != sorted(value.numel() for value in other):
        return False
    mine, theirs = (torch.cat([value.flatten().double() for value in values]).sort().values for values in (one, other))
    return torch.equal(mine, theirs)
