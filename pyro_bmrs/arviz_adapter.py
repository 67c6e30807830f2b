# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
All that the package asks of ArviZ, alike for its versions 0.23 (InferenceData) and 1.x (DataTree).

ArviZ is imported on first use: it brings a plotting library with it, and most reductions have a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.tables import SiteLabels, counted

FEWEST_DRAWS = 25  # below this, the tail that Pareto smoothing fits has fewer than five draws
FEWEST_IN_CHAIN = 4  # for its autocorrelation to be seen at all
NEGLIGIBLE = -720.0  # a log weight so far below the largest is beyond the least normal float


def smooth_log_weights(
    log_weights: np.ndarray, relative_efficiency: float | np.ndarray = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """
    Pareto-smooth importance weights (Vehtari et al. 2024, https://arxiv.org/abs/1507.02646).

    :param log_weights: shape ``(..., num_draws)``; minus infinity is a weight of 0.
    :param relative_efficiency: effective sample size of the draws over their number, of shape ``(...)``; 1 where they
        are independent, and below for most Markov chains.
    :return: the smoothed log weights, on the scale of ``log_weights`` (not normalised), and the shape k of their tail,
        of shape ``(...)``: minus infinity where the largest weight recurs so often that there is no tail to fit,
        infinity where there are too few draws to tell.

    Example::

        >>> import numpy as np
        >>> from pyro_bmrs.arviz_adapter import smooth_log_weights
        >>> smoothed, k = smooth_log_weights(0.1 * np.random.default_rng(0).standard_normal(1000))
        >>> smoothed.shape, bool(k < 0.7)
        ((1000,), True)
    """
    flat = np.array(log_weights, dtype=np.float64).reshape(-1, log_weights.shape[-1])
    tails = np.full(len(flat), np.inf)
    efficiencies = np.broadcast_to(relative_efficiency, log_weights.shape[:-1]).reshape(-1)
    for row, (draws, efficiency) in enumerate(zip(flat, efficiencies)):
        tails[row] = _smooth(draws, max(float(efficiency), 1 / len(draws)))
    return flat.reshape(log_weights.shape), tails.reshape(log_weights.shape[:-1])


def _smooth(draws: np.ndarray, relative_efficiency: float) -> float:
    """Smooth one row in place and return the shape of its tail."""
    # The tail is one of weights: where most draws have none, it is not to reach down to those.
    weighty = draws > max(draws.max() + NEGLIGIBLE, -np.finfo(float).max)
    count = int(weighty.sum())
    if count < FEWEST_DRAWS:
        return math.inf
    raw = draws[weighty]
    tail = math.floor(min(count / 5, 3 * math.sqrt(count / relative_efficiency)))
    if (raw == raw.max()).sum() >= tail:
        return -math.inf
    smoothed, shape = _psislw(raw.copy(), relative_efficiency)
    if not np.isfinite(shape):
        return math.inf
    # Both versions of ArviZ can normalise only; the smallest weight is in the body, which smoothing leaves alone.
    body = raw.argmin()
    draws[weighty] = smoothed + (raw[body] - smoothed[body])
    return float(shape)


def _psislw(draws: np.ndarray, relative_efficiency: float) -> tuple[np.ndarray, np.ndarray]:
    arviz = _arviz()
    smoothed: tuple[np.ndarray, np.ndarray]
    with np.errstate(over="ignore"):  # on its way to weights that are 0
        if "psislw" in vars(arviz):
            smoothed = arviz.psislw(draws, reff=relative_efficiency)
        else:
            from arviz_stats.base import array_stats

            smoothed = array_stats.psislw(-draws, r_eff=relative_efficiency)  # takes log likelihoods: the reciprocals
    return smoothed


def _arviz() -> Any:
    """ArviZ, whichever version there is: to a type checker, which sees one of them only, it is anything."""
    import arviz

    return arviz


def relative_efficiency(values: np.ndarray) -> np.ndarray:
    """
    Effective sample size of the mean of Markov chains, over the number of their draws.

    From the autocorrelation within chains and the variance between them (Vehtari, Gelman, Simpson, Carpenter and
    Bürkner 2021, https://arxiv.org/abs/1903.08008).

    :param values: shape ``(num_chains, num_draws, ...)``, at least four draws a chain.
    :return: shape ``(...)``; 1 for independent draws, NaN where a value is.

    Example::

        >>> import numpy as np
        >>> from pyro_bmrs.arviz_adapter import relative_efficiency
        >>> noise = np.random.default_rng(0).standard_normal((4, 1000))
        >>> bool(relative_efficiency(np.cumsum(noise, 1)) < 0.1)
        True
    """
    arviz = _arviz()
    columns: np.ndarray = values.reshape(*values.shape[:2], -1)
    count = columns[:, :, 0].size
    # Not ArviZ's relative=True, which is the number of draws itself where all values are alike.
    sizes = [float(arviz.ess(columns[:, :, column], method="mean")) for column in range(columns.shape[-1])]
    return np.asarray(np.reshape(sizes, values.shape[2:]) / count)


def mixing(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    How well Markov chains have mixed: effective sample size and potential scale reduction, both of normalised ranks.

    Of Vehtari et al. 2021 (https://arxiv.org/abs/1903.08008), but for chains that never move, of which these say
    nothing: a chain that stays where it is has one draw, and where all stay at one place there is none.

    :param values: shape ``(num_chains, num_draws, ...)``, at least four draws a chain.
    :return: the bulk effective sample size and the split R-hat, of shape ``(...)``; R-hat is NaN where there are too
        few draws to tell.

    Example::

        >>> import numpy as np
        >>> from pyro_bmrs.arviz_adapter import mixing
        >>> noise = np.random.default_rng(0).standard_normal((4, 1000))
        >>> size, r_hat = mixing(np.stack([noise, noise + 3 * np.arange(4)[:, None], np.ones((4, 1000))], -1))
        >>> size.round(), r_hat.round(2)
        (array([3926.,    5.,    0.]), array([1. , 2.7, inf]))
    """
    columns: np.ndarray = values.reshape(*values.shape[:2], -1)
    found = [_mixing(columns[:, :, column]) for column in range(columns.shape[-1])]
    sizes, r_hats = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return sizes.reshape(values.shape[2:]), r_hats.reshape(values.shape[2:])


def _mixing(chains: np.ndarray) -> tuple[float, float]:
    arviz = _arviz()
    stays = (chains == chains[:, :1]).all(1)
    if stays.all() and (chains == chains[0, 0]).all():
        return 0.0, math.inf
    # Of a single chain, its halves are compared.
    halves = chains[:, : chains.shape[1] // 2 * 2].reshape(2 * len(chains), -1)
    split = chains if len(chains) > 1 else halves
    with np.errstate(divide="ignore", invalid="ignore"):
        size = float(arviz.ess(chains, method="bulk"))
        r_hat = float(arviz.rhat(split, method="rank")) if split.shape[1] >= FEWEST_IN_CHAIN else math.nan
    return (min(size, len(chains)) if stays.any() else size), r_hat


def to_arviz(groups: Mapping[str, Mapping[str, np.ndarray]], labels: Mapping[str, SiteLabels] | None = None) -> Any:
    """
    Arrays by group and variable as an ArviZ object.

    :param groups: for groups of draws such as ``"posterior"``, arrays of shape ``(chain, draw, ...)``.
    :param labels: what the dimensions of variables are called, and the places along them; of those that do not fit an
        array, none are taken.
    :return: an ``InferenceData`` with ArviZ 0.23, an ``xarray.DataTree`` with ArviZ 1.x.

    Example::

        >>> import numpy as np
        >>> from pyro_bmrs.arviz_adapter import to_arviz
        >>> to_arviz({"posterior": {"weights": np.zeros((4, 100, 3))}})["posterior"]["weights"].shape
        (4, 100, 3)
    """
    arviz = _arviz()
    nested: dict[str, Any] = {group: dict(variables) for group, variables in groups.items()}
    arrays = {name: array for variables in nested.values() for name, array in variables.items()}
    fitting = {
        name: own for name, own in (labels or {}).items() if name in arrays and own.shape == arrays[name].shape[2:]
    }
    named = {
        "dims": {name: list(own.dims) for name, own in fitting.items()},
        "coords": {dim: list(places) for own in fitting.values() for dim, places in zip(own.dims, own.coords)},
    }
    if "InferenceData" in vars(arviz):  # merely to ask for the attribute makes ArviZ 1.x warn
        data = arviz.from_dict(**nested, **named)
        if beside := {name: variables for name, variables in nested.items() if name not in data.groups()}:
            data.add_groups(beside, **named)  # such as log_prior, which from_dict does not know
        return data
    return arviz.from_dict(nested, **named)


def add_elements(
    data: Any,
    group: str,
    values: Mapping[str, np.ndarray],
    labels: Mapping[str, SiteLabels],
    attributes: Mapping[str, str | float] | None = None,
) -> None:
    """
    A group with a number for each element of sites, beside the draws, along the same dimensions.

    :param data: what :func:`to_arviz` made.
    :param group: its name.
    :param values: for each site an array of its shape, or its batch shape.
    :param labels: as for :func:`to_arviz`.
    :param attributes: of the group.

    Example::

        >>> import numpy as np
        >>> from pyro_bmrs.arviz_adapter import add_elements, to_arviz
        >>> data = to_arviz({"posterior": {"weights": np.zeros((4, 100, 3))}})
        >>> add_elements(data, "evidence", {"weights": np.ones(3)}, {}, {"method": "exact"})
        >>> data["evidence"]["weights"].dims
        ('weights_dim_0',)
    """
    own = {name: labels.get(name) or counted(name, array.shape) for name, array in values.items()}
    variables = {name: (own[name].dims[: array.ndim], array) for name, array in values.items()}
    coords = {dim: list(places) for found in own.values() for dim, places in zip(found.dims, found.coords)}
    used = {dim for dims, _ in variables.values() for dim in dims}
    add_group(data, group, variables, {dim: places for dim, places in coords.items() if dim in used}, attributes)


def add_group(
    data: Any,
    group: str,
    variables: Mapping[str, tuple[Sequence[str], np.ndarray]],
    coords: Mapping[str, Sequence[Any]],
    attributes: Mapping[str, str | float] | None = None,
) -> None:
    """
    A group of any variables, each with its dimensions; the other parameters are those of :func:`add_elements`.

    :param coords: what the places along dimensions are called.
    """
    import xarray

    dataset = xarray.Dataset(dict(variables), dict(coords), dict(attributes or {}))
    if hasattr(data, "add_groups"):
        data.add_groups({group: dataset})
    else:
        data[group] = xarray.DataTree(dataset)


def compare(data: Mapping[str, Any], method: str) -> Any:
    """
    Models by their expected log predictive density, leaving one observation out: ``arviz.compare``.

    :param data: of each model, an ArviZ object with a posterior and the log likelihood of each observation.
    :param method: how the weights are had.
    :return: a data frame, the best model first, with the columns that ArviZ 0.23 gives: ``elpd_loo``, ``p_loo``, and
        ``warning``, for which version 1 has words.
    """
    arviz = _arviz()
    whole = {"round_to": "none"} if "round_to" in signature(arviz.compare).parameters else {}  # version 1 rounds
    try:
        table = arviz.compare(dict(data), method=method, **whole)
        if "diag_elpd" in table:
            table = table.rename(columns={"elpd": "elpd_loo", "p": "p_loo"}).assign(warning=table["diag_elpd"] != "")
        return table
    except ValueError as error:
        raise ReductionError(f"ArviZ cannot compare these models by {method!r}: {error}") from error


@dataclass(frozen=True)
class Drawn:
    """
    The draws of a variable.

    :param values: shape ``(chain, draw, ...)``.
    :param labels: what its further dimensions are called, and the places along them.
    """

    values: np.ndarray
    labels: SiteLabels


def has_posterior(data: object) -> bool:
    """
    Whether an object is ArviZ's or xarray's, with draws to read.

    Example::

        >>> from pyro_bmrs.arviz_adapter import has_posterior
        >>> has_posterior({"posterior": {}})
        False
    """
    return _dataset(data) is not None


def _dataset(data: Any) -> Any:
    """The group of the posterior: of all of ArviZ's data, or given by itself, or one variable of it."""
    if hasattr(getattr(data, "posterior", None), "data_vars"):
        return data.posterior
    if hasattr(data, "data_vars"):
        return data if len(data.data_vars) else None
    if hasattr(data, "to_dataset") and getattr(data, "name", None) is not None:
        return data.to_dataset()
    return None


def posterior_draws(data: Any) -> dict[str, Drawn]:
    """
    The draws of a posterior, of whatever language it was sampled in.

    :param data: an ``InferenceData`` or ``DataTree``; its posterior group alone; or what ``arviz.extract`` makes of
        either, with chains and draws in one dimension: chains again where all of it is there, else taken for one.
    :return: the draws of each variable of numbers that has any.
    :raises ReductionError: where no variable has the dimensions of draws.

    Example::

        >>> import numpy as np
        >>> from pyro_bmrs.arviz_adapter import posterior_draws, to_arviz
        >>> posterior_draws(to_arviz({"posterior": {"weights": np.zeros((4, 100, 3))}}))["weights"].values.shape
        (4, 100, 3)
    """
    dataset = _dataset(data)
    stacked = "sample" in dataset.dims and "draw" not in dataset.dims
    leading = ("sample",) if stacked else ("chain", "draw")
    found, lacking = {}, {}
    for name, array in dataset.data_vars.items():
        if missing := set(leading) - set(array.dims):
            lacking[name] = (array.dims, sorted(missing))
        elif array.dtype.kind in "biuf":
            values = array.transpose(*leading, ...).values
            found[str(name)] = Drawn(_in_chains(dataset, values) if stacked else values, _labels(array, leading))
    if lacking and not found:
        name, (dims, without) = next(iter(lacking.items()))
        raise ReductionError(
            f"variable {name!r} of the ArviZ posterior has dimensions {dims} and lacks {without}; "
            "give draws of shape (chain, draw, ...): posterior.expand_dims('chain') makes one chain of them"
        )
    return found


def group(data: Any, name: str, num_draws: int) -> dict[str, np.ndarray]:
    """
    What another group of ArviZ data has at the draws, one chain after the other; empty where there is no such group.

    :param data: as for :func:`posterior_draws`.
    :param name: of the group, such as ``"log_likelihood"``.
    :param num_draws: of the posterior.
    :raises ReductionError: where it has another number of draws.

    Example::

        >>> import numpy as np
        >>> from pyro_bmrs.arviz_adapter import group, to_arviz
        >>> data = to_arviz({"posterior": {"b": np.zeros((2, 3))}, "log_likelihood": {"y": np.zeros((2, 3, 5))}})
        >>> {variable: values.shape for variable, values in group(data, "log_likelihood", 6).items()}
        {'y': (6, 5)}
    """
    whole = getattr(data, name, None)
    if not hasattr(whole, "data_vars"):
        return {}
    found = {
        variable: drawn.values.reshape(-1, *drawn.values.shape[2:])
        for variable, drawn in posterior_draws(whole).items()
    }
    for variable, values in found.items():
        if len(values) != num_draws:
            raise ReductionError(
                f"{variable!r} of the group {name} has {len(values)} draws, not {num_draws} as the posterior has; thin "
                "both alike"
            )
    return found


def _in_chains(dataset: Any, values: np.ndarray) -> np.ndarray:
    """Draws that were stacked, chain by chain again."""
    if {"chain", "draw"} <= set(dataset.coords):
        chain, draw = dataset.coords["chain"].values, dataset.coords["draw"].values
        pairs = set(zip(chain.tolist(), draw.tolist()))
        chains, draws = len(set(chain.tolist())), len(set(draw.tolist()))
        if len(pairs) == len(chain) == chains * draws:
            return np.asarray(values[np.lexsort((draw, chain))].reshape(chains, draws, *values.shape[1:]))
    return values[None]


def _labels(array: Any, leading: tuple[str, ...]) -> SiteLabels:
    dims = tuple(str(dim) for dim in array.dims if dim not in leading)
    sizes = dict(zip(map(str, array.dims), array.shape))
    places = (_places(array.coords[dim].values) if dim in array.coords else range(sizes[dim]) for dim in dims)
    return SiteLabels(dims, tuple(map(tuple, places)))


def _places(values: np.ndarray) -> list[Any]:
    """What the places along a dimension are called; of two that are called alike, the later one has its number, too."""
    names = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in values.tolist()]
    if len({str(name) for name in names}) == len(names):
        return names
    first = {str(name): place for place, name in reversed(list(enumerate(names)))}
    return [name if first[str(name)] == place else f"{name} ({place})" for place, name in enumerate(names)]
