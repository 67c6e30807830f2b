# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models compared by their evidence, in a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.integration.coordinates import fixed_elements
from pyro_bmrs.integration.ends import LogEvidence
from pyro_bmrs.integration.fits import full_evidence
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.posteriors.reading import read_posterior
from pyro_bmrs.structure.layers import peel
from pyro_bmrs.structure.vectorised import TURN

if TYPE_CHECKING:
    import pandas as pd


def compare(
    fits: Mapping[str, Any], *, prior_log_odds: Mapping[str, float] | None = None, progress: bool = False
) -> pd.DataFrame:
    """
    Models fitted to the same data, by their log evidence, the best first.

    Differences are log Bayes factors (R. E. Kass and A. E. Raftery (1995), *Bayes factors*,
    https://doi.org/10.1080/01621459.1995.10476572).

    :param fits: for the name of each model what stands for its posterior: a fitted guide or a finished MCMC run that
        knows its model and arguments, or a tuple ``(posterior, model, args)`` or ``(posterior, model, args, kwargs)``.
    :param prior_log_odds: log prior weight of each model, in nats; 0 for those not named.
    :param progress: whether to show progress bars while drawing from guides.
    :return: a row a model: ``rank``, ``log_evidence`` (nats), ``difference`` to the best, ``standard_error`` of the
        difference (of the log evidence itself for the best), posterior ``probability``, ``weight`` in an average over
        the models (the probability, averaged over the errors of all log evidences), ``pareto_k``, ``effective_share``,
        and ``trusted``.
    :raises ReductionError: for models of different data, and for what :func:`log_evidence` refuses. Data are all that
        is observed and not masked, however it got into the model, with the weight that ``poutine.scale`` gives it.
        Names of sites do not matter, nor how the numbers are divided between them. Of data in ``pyro.factor`` no more
        is known than the models' arguments, which have to be the same then.

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
    data: dict[str, Observations] = {}
    with TURN:
        for name, fit in fits.items():
            fitted = read_posterior(*_parts(name, fit))
            data[name] = observations(fitted)
            first = next(iter(data))
            if not data[name].alike(data[first]):
                raise ReductionError(
                    f"models {first!r} and {name!r} have different data (or different arguments), so that their "
                    "evidence cannot be compared; fit all to the same observations"
                )
            estimates[name] = full_evidence(fitted, progress=progress)
    odds = dict.fromkeys(fits, 0.0) | dict(prior_log_odds or {})
    scores = torch.tensor([estimates[name].value + odds[name] for name in fits], dtype=torch.float64)
    errors = torch.tensor([estimates[name].standard_error for name in fits], dtype=torch.float64)
    probability = dict(zip(fits, torch.softmax(scores, 0).tolist()))
    weight = dict(zip(fits, mean_softmax(scores, errors).tolist()))
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
            "weight": weight[name],
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


def mean_softmax(scores: Tensor, errors: Tensor) -> Tensor:
    """The mean of a softmax over normal errors of what goes into it, by draws that are always the same."""
    noise = torch.randn(4000, len(scores), dtype=scores.dtype, generator=torch.Generator().manual_seed(0))
    return torch.softmax(scores + torch.cat([noise, -noise]) * errors, -1).mean(0)


@dataclass(frozen=True)
class Observations:
    """
    What a model observes.

    :param values: of each observed site in the order of the model, the elements that count.
    :param weights: how much each of them counts.
    :param arguments: those of the model, where it has factors, in which more may be observed; None where it has none.
    """

    values: list[Tensor]
    weights: list[Tensor]
    arguments: list[Any] | None

    def alike(self, other: Observations) -> bool:
        """Whether two models observe the same, whatever their sites are called and how these divide it up."""
        if (self.arguments is None) != (other.arguments is None):
            return False
        if self.arguments is not None and other.arguments is not None and not _same(self.arguments, other.arguments):
            return False
        mine, theirs = (_pairs(observed) for observed in (self, other))
        if mine.shape != theirs.shape:
            return False
        # In single precision the same numbers are rounded.
        dtypes = {value.dtype for observed in (self, other) for value in observed.values}
        if len({dtype for dtype in dtypes if dtype.is_floating_point}) > 1:
            mine, theirs = mine.float(), theirs.float()
        if torch.equal(mine, theirs):
            return True
        divided = [len(value) for value in self.values] != [len(value) for value in other.values]
        return divided and torch.equal(_in_order(mine), _in_order(theirs))


def observations(fitted: Posterior) -> Observations:
    """What the model of a fit observes."""
    with torch.no_grad(), poutine.block():
        trace = poutine.trace(fitted.model).get_trace(*fitted.args, **fitted.kwargs)
    nodes: Any = trace.nodes
    values, weights, has_factors = [], [], False
    for name in trace.observation_nodes:
        site = nodes[name]
        if site["infer"].get("_deterministic"):
            continue
        if isinstance(peel(site["fn"]).core, dist.Unit):
            has_factors = True
            continue
        counts = ~fixed_elements(site)
        value = site["value"].detach().expand(counts.shape)
        event_shape = (1,) * len(site["fn"].event_shape)
        scale = torch.as_tensor(site["scale"]).detach().to(value.device, torch.float64)
        values.append(value[counts])
        weights.append(scale.reshape(scale.shape + event_shape).expand(counts.shape)[counts])
    arguments = tree_leaves((fitted.args, fitted.kwargs)) if has_factors else None
    return Observations(values, weights, arguments)


def _pairs(observed: Observations) -> Tensor:
    """Values and weights side by side, shape ``(num_values, 2)``."""
    none = torch.zeros(0, dtype=torch.float64)
    columns = [[part.double().cpu() for part in parts] for parts in (observed.values, observed.weights)]
    return torch.stack([torch.cat([none, *column]) for column in columns], -1)


def _in_order(pairs: Tensor) -> Tensor:
    by_weight = pairs[pairs[:, 1].argsort(stable=True)]
    return by_weight[by_weight[:, 0].argsort(stable=True)]


def _same(one: list[Any], other: list[Any]) -> bool:
    if len(one) != len(other):
        return False
    return all(mine is theirs or _equal(mine, theirs) for mine, theirs in zip(one, other))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and np.array_equal(one, other)
