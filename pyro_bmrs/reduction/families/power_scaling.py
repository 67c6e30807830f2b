# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
How a posterior changes as its priors, or its likelihood, are raised to a power: a first look at what it rests on.

N. Kallioinen, T. Paananen, P.-C. Bürkner and A. Vehtari (2023), *Detecting and diagnosing prior and likelihood
sensitivity with power-scaling*, https://arxiv.org/abs/2107.14054.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_bmrs import arviz_adapter
from pyro_bmrs.errors import ReductionError, ReductionWarning, check_number, name_of_unknown
from pyro_bmrs.evidence.dispatch import NUM_SAMPLES
from pyro_bmrs.evidence.importance import LARGEST_K
from pyro_bmrs.integration.stated_model import PriorLike, StatedModel, read_stated
from pyro_bmrs.posteriors.draws import Draws
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.structure.vectorised import TURN, Vectorised
from pyro_bmrs.tables import LabelsLike, SiteLabels, element_labels

if TYPE_CHECKING:
    import pandas as pd

# What is worth a word, as Kallioinen et al. have it.
_SENSITIVE = 0.05


@dataclass(frozen=True)
class PowerScaling:
    """
    How much the posterior of each element moves with a power of the priors and of the likelihood. Made by
    :func:`power_scaling`.

    The method is that of N. Kallioinen, T. Paananen, P.-C. Bürkner and A. Vehtari (2023), *Detecting and diagnosing
    prior and likelihood sensitivity with power-scaling*, https://arxiv.org/abs/2107.14054.

    :param prior: for each site, the sensitivity of each of its elements to the power of the priors, of the site's
        shape: a distance, which has no unit, for each doubling of the power.
    :param likelihood: the same of the power of the likelihood; None where it is not known at the draws.
    :param pareto_k: of the weights of both, the largest.
    :param draws: of each site, chains and draws along the first two dimensions.
    :param log_prior: of each site whose prior is scaled, at each draw.
    :param log_likelihood: of each observed site, its elements after chains and draws.
    :param labels: what the places along the dimensions of sites are called.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs import power_scaling
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> def exact(y):
        ...     pyro.sample("mean", dist.Normal(0.5, 0.5))
        >>> y = torch.tensor([0.4, 0.7, 0.9])
        >>> found = power_scaling(exact, model=model, args=(y,))
        >>> sorted(found.prior), found.pareto_k < 0.7
        (['mean'], True)
    """

    prior: Mapping[str, Tensor]
    likelihood: Mapping[str, Tensor] | None
    pareto_k: float
    draws: Mapping[str, np.ndarray]
    log_prior: Mapping[str, np.ndarray]
    log_likelihood: Mapping[str, np.ndarray]
    labels: Mapping[str, SiteLabels]

    def summary(self) -> pd.DataFrame:
        """
        A table of the elements, one row each: ``prior`` and ``likelihood`` sensitivity, and what they say together.

        From 0.05 on the posterior is called sensitive. Sensitive to the prior and to the likelihood: they may be in
        conflict. To the prior alone: it is strong, or the likelihood says little.
        """
        import pandas as pd

        tables = []
        for name, own in self.prior.items():
            likelihood = torch.full_like(own, math.nan) if self.likelihood is None else self.likelihood[name]
            columns = {"prior": own.reshape(-1).numpy(), "likelihood": likelihood.reshape(-1).numpy()}
            columns["diagnosis"] = np.array([_diagnosis(*pair) for pair in zip(*columns.values())], dtype=object)
            index = element_labels(name, own.shape, self.labels.get(name))
            tables.append(pd.DataFrame(columns, index=index))
        return pd.concat(tables)

    def to_arviz(self) -> Any:
        """
        The draws as ArviZ data, with the groups ``log_prior`` and ``log_likelihood``: for its ``psens`` (0.23) or
        ``psense`` (1.x), among others.
        """
        groups = {"posterior": self.draws, "log_prior": self.log_prior}
        return arviz_adapter.to_arviz(
            groups | ({"log_likelihood": self.log_likelihood} if self.log_likelihood else {}), self.labels
        )

    def __repr__(self) -> str:
        table = self.summary()
        found = table.index[table["diagnosis"] != "-"]
        said = ", ".join(f"{label}: {table.loc[label, 'diagnosis']}" for label in found[:5])
        more = f", and {len(found) - 5} more" if len(found) > 5 else ""
        return f"PowerScaling({len(table)} elements): {said + more or 'no prior is said to matter much'}"

    def _repr_html_(self) -> str:
        return self.summary().to_html(max_rows=20)


def _diagnosis(prior: float, likelihood: float) -> str:
    if math.isnan(likelihood):
        return "sensitive to the prior" if prior >= _SENSITIVE else "-"
    if prior >= _SENSITIVE:
        conflict = likelihood >= _SENSITIVE
        return "potential prior-data conflict" if conflict else "potential strong prior or weak likelihood"
    return "-"


def power_scaling(
    guide: Any,
    *,
    sites: Collection[str] | None = None,
    delta: float = 0.01,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    prior: PriorLike | None = None,
    num_samples: int = NUM_SAMPLES,
    labels: LabelsLike | None = None,
    progress: bool = False,
) -> PowerScaling:
    """
    How much the posterior moves as priors, or the likelihood, are raised to a power a little off 1.

    The draws are weighted for the power, with Pareto smoothing; how far a marginal moves is its cumulative
    Jensen-Shannon distance, and the sensitivity is what that changes by for each doubling of the power (Kallioinen et
    al. 2023, https://arxiv.org/abs/2107.14054). It is 0 where nothing moves. Of a guide it is as good as the guide is.

    :param guide: a fitted guide or draws from the posterior, as for :func:`~pyro_bmrs.reduce_model`.
    :param sites: whose priors are scaled; by default all. In a hierarchical model those at the top are the ones to ask
        about.
    :param delta: the powers are 1 + ``delta`` and its reciprocal.
    :param model: the model, where the guide does not know it.
    :param args: positional arguments of model and guide; autoguides and an MCMC run remember theirs.
    :param kwargs: keyword arguments of both, remembered as those are.
    :param prior: the priors of draws that know no model, as for :func:`~pyro_bmrs.reduce_model`. The likelihood is then
        that of the data's ``log_likelihood`` group, if there is one.
    :param num_samples: draws from a guide.
    :param labels: names of a site's elements, as for :func:`~pyro_bmrs.reduce_model`.
    :param progress: whether to show a progress bar.
    :return: the :class:`PowerScaling`.
    :raises ReductionError: for a site that was not drawn, and whatever :func:`~pyro_bmrs.reduce_model` cannot read.
    :warns ReductionWarning: where the Pareto k of the weights is above 0.7.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import power_scaling
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0., 1.))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 3.), obs=y)
        >>> y = torch.tensor([4., 5., 6.])
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> guide = AutoNormal(model, init_scale=0.87); _ = guide(y)
        >>> with torch.no_grad():
        ...     _ = guide.locs.mean.copy_(torch.tensor(1.25))
        >>> power_scaling(guide)
        PowerScaling(1 elements): mean: potential prior-data conflict
    """
    check_number(delta, "delta", above=0.0)
    with TURN, torch.no_grad():
        fitted = read_stated(guide, model, args, kwargs, prior, None, labels)
        chosen = fitted.sites if sites is None else frozenset([sites] if isinstance(sites, str) else sites)
        for name in chosen - fitted.sites:
            raise name_of_unknown(name, fitted.sites, fitted.noun)
        draws = fitted.draw((), num_samples, progress)
        of_prior, of_data = _log_densities(fitted, draws, chosen, progress)
    if isinstance(fitted.model, StatedModel):
        of_data = arviz_adapter.group(guide, "log_likelihood", _num_draws(draws))
    chains = draws.num_chains or 1
    values = {name: drawn.detach().cpu() for name, drawn in draws.values.items()}
    prior_weights, k = _weights(sum(map(_per_draw, of_prior.values())), delta, chains)
    found = {name: _sensitivities(drawn, prior_weights, delta) for name, drawn in values.items()}
    of_likelihood = None
    if of_data:
        likelihood_weights, other = _weights(sum(map(_per_draw, of_data.values())), delta, chains)
        of_likelihood = {name: _sensitivities(drawn, likelihood_weights, delta) for name, drawn in values.items()}
        k = max(k, other)
    if k > LARGEST_K:
        warnings.warn(
            f"Sensitivities are not to be trusted: the Pareto k of their weights is {k:.2f}, above {LARGEST_K}. Take "
            "more draws, or a smaller delta.",
            ReductionWarning,
            stacklevel=2,
        )

    def by_chain(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array.reshape(chains, -1, *array.shape[1:]) for name, array in arrays.items()}

    whole = by_chain({name: drawn.numpy() for name, drawn in values.items()})
    return PowerScaling(found, of_likelihood, k, whole, by_chain(of_prior), by_chain(of_data), fitted.labels)


def _num_draws(draws: Draws) -> int:
    return len(next(iter(draws.values.values())))


def _per_draw(array: np.ndarray) -> Any:
    return array.reshape(len(array), -1).sum(-1)


def _log_densities(
    fitted: Posterior, draws: Draws, chosen: Collection[str], progress: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The log density of priors, a number for each site, and of data, a number for each observation, at each draw."""
    names = sorted(fitted.sites)

    def at(values: list[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        held = poutine.condition(fitted.model, data=dict(zip(names, values)))
        trace = poutine.trace(held).get_trace(*fitted.args, **fitted.kwargs)
        trace.compute_log_prob()
        nodes: Any = trace.nodes
        sampled = {n: s for n, s in nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}
        if missing := sorted(n for n in fitted.latent - fitted.sites if n in sampled):
            raise ReductionError(
                f"the posterior does not hold {missing}, without which neither prior nor likelihood is known at its "
                "draws; have them drawn, too"
            )
        observed = {n: s["log_prob"] for n, s in sampled.items() if n not in fitted.sites}
        return {n: sampled[n]["log_prob_sum"] for n in sorted(chosen)}, observed

    inputs = [draws.values[name] for name in names]
    of_prior, of_data = Vectorised("densities at the draws")(at, inputs, progress=progress)
    return tuple({n: v.cpu().double().numpy() for n, v in part.items()} for part in (of_prior, of_data))  # type: ignore[return-value]


def _weights(log_density: np.ndarray, delta: float, chains: int) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """Weights for both powers, adding up to 1, and the larger Pareto k."""
    if not np.isfinite(log_density).all():
        raise ReductionError(
            "a prior or the likelihood is not finite at some draws, so that it has no power to be raised to"
        )
    columns = np.stack([(power - 1) * log_density for power in (1 / (1 + delta), 1 + delta)])
    smoothed, k = arviz_adapter.smooth_log_weights(columns)
    weights = np.exp(smoothed - smoothed.max(-1, keepdims=True))
    below, above = weights / weights.sum(-1, keepdims=True)
    return (below, above), float(np.max(k))


def _sensitivities(drawn: Tensor, weights: tuple[np.ndarray, np.ndarray], delta: float) -> Tensor:
    """Of each element of a site, of whatever type; shape of the site."""
    flat = drawn.reshape(len(drawn), -1).double().numpy()
    order = np.argsort(flat, axis=0, kind="stable")
    ascending = np.take_along_axis(flat, order, 0)
    total = sum(_distances(ascending, of_power[order]) for of_power in weights)
    return torch.as_tensor(total / (2 * math.log2(1 + delta))).reshape(drawn.shape[1:])


def _distances(ascending: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    The cumulative Jensen-Shannon distance of weighted draws from the same draws without weights, element by element.

    Of H.-V. Nguyen and J. Vreeken (2015), *Non-parametric Jensen-Shannon divergence*, between 0 and 1; it is not the
    same for the draws and their negatives, and the larger of the two counts.

    :param ascending: draws in ascending order along the first dimension.
    :param weights: of each, adding up to 1 along the first dimension.
    """
    widths = np.diff(ascending, axis=0)
    count = len(ascending)
    equal = np.arange(1, count)[:, None] / count
    other = np.cumsum(weights, 0)[:-1].clip(0.0, 1.0)
    mirrored = 1 - equal, 1 - other  # of the negatives, from the other end
    larger: np.ndarray = np.maximum(_distance(equal, other, widths), _distance(*mirrored, widths))
    return larger


def _distance(one: np.ndarray, other: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Of two distribution functions that are steps of these widths."""
    middle = (one + other) / 2
    divergence = np.zeros(widths.shape[1])
    for own in (one, other):
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(own > 0, own * np.log2(own / middle), 0.0)
        divergence += (widths * terms).sum(0)
    area = (widths * (one + other)).sum(0)
    # Rounding may take a divergence of 0 below it; an element that is the same in all draws has no distance.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(area > 0, np.sqrt(np.maximum(divergence, 0.0) / area), 0.0))
