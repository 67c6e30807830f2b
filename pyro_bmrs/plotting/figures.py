# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Figures of results: axes in, and axes or their figure out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from pyro_bmrs.errors import ReductionError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FULL_COLOR, REDUCED_COLOR = "tab:blue", "tab:orange"
_MOST_NAMED_BARS = 60
_MOST_BARS = 2000  # of one figure, beyond which they cannot be told apart
_MOST_CURVES = 10
_SOURCES = {"model": "", "model, in doubt": " (in doubt)", "posterior": " (read off the posterior)"}


class Reduced(Protocol):
    """What is asked of a reduction to draw it."""

    @property
    def elementwise(self) -> Mapping[str, Tensor]:
        """For each site, the change in log evidence (nats) of reducing each of its elements alone."""

    @property
    def element_labels(self) -> Mapping[str, Sequence[str]]:
        """For each site, the names of its elements, in the order of ``tensor.flatten()``."""


class Top(Protocol):
    """What is asked of the most probable models."""

    @property
    def probability(self) -> Tensor:
        """The posterior probability of each, the largest first."""


class Space(Protocol):
    """What is asked of a space of models to draw it."""

    @property
    def inclusion_probability(self) -> Mapping[str, Tensor]:
        """For each site, the probability that each of its elements keeps its full prior."""

    @property
    def reduced(self) -> Mapping[str, Tensor]:
        """For each site, which of its elements are reduced in the most probable model."""

    @property
    def element_labels(self) -> Mapping[str, Sequence[str]]:
        """For each site, the names of its elements, in the order of ``tensor.flatten()``."""

    @property
    def source(self) -> str:
        """What probabilities go by: ``"model"``, ``"model, in doubt"`` or ``"posterior"``."""

    def top(self, num_models: int) -> Top:
        """The most probable models."""


class Sensitivity(Protocol):
    """What is asked of a sensitivity to priors to draw it."""

    @property
    def label(self) -> str:
        """What varies."""

    @property
    def places(self) -> Sequence[Any]:
        """What each prior is told by: a number, or a name."""

    @property
    def log_bayes_factor(self) -> Tensor:
        """Of each prior, in nats."""

    @property
    def checked_log_bayes_factor(self) -> Tensor | None:
        """What the model says of it; None where it was not asked."""

    @property
    def threshold(self) -> float:
        """Nats within which nothing is decided."""

    @property
    def mean(self) -> Tensor:
        """Posterior means, the priors along the first dimension."""

    @property
    def sd(self) -> Tensor:
        """Posterior standard deviations, likewise."""

    @property
    def labels(self) -> Sequence[str]:
        """Names of the elements whose prior varies."""


class CompressionPath(Protocol):
    """What is asked of a compression to draw it."""

    @property
    def path(self) -> pd.DataFrame:
        """
        A row for each network: ``parameters``, ``log_likelihood`` of held-out data in nats and its ``error``, which is
        ``chosen``.
        """

    @property
    def units(self) -> pd.DataFrame:
        """A row for each network, a column for each site: how many units are left."""


def plot_reduction(
    reduction: Reduced,
    ax: Axes | None = None,
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Axes:
    """
    Draws, for each element of each site, the change in log evidence when that element alone is reduced.

    A bar to the right of zero says that the data are better explained without the element (with its reduced prior),
    a bar to the left that they speak for it. Bars stand in the order of the sites and of their elements, from the top.

    :param reduction: what :func:`~pyro_bmrs.reduce_model` returned; its ``elementwise`` is drawn, in nats.
    :param ax: the axes to draw on; a new figure, as high as the bars need, by default.
    :param labels: names of a site's elements, in the order of ``tensor.flatten()``; by default ``site[i, j]``.
    :return: the axes.
    :raises ImportError: without matplotlib.
    :raises ReductionError: where ``labels`` names no site of the reduction, or not as many elements as the site has.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import reduce_model
        >>> def model():
        ...     return pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        >>> guide = AutoNormal(model)
        >>> _ = guide()
        >>> ax = plot_reduction(reduce_model(guide, {"weights": dist.Normal(0.0, 0.1)}, check=False))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['weights[0]', 'weights[1]', 'weights[2]']
    """
    elementwise = {site: delta.detach().cpu() for site, delta in reduction.elementwise.items()}
    names, values = _names(elementwise, reduction.element_labels, labels), _flat(elementwise)
    if ax is None:
        _, ax = pyplot().subplots(figsize=(6.4, height_of(len(names))), layout="constrained")
    _draw_bars(ax, names, values, [value > 0 for value in values], ("for the reduced prior", "for the full prior"))
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set_xlabel("change in log evidence (nats)")
    return ax


def plot_model_space(
    space: Space,
    axes: tuple[Axes, Axes] | None = None,
    *,
    num_models: int = 20,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """
    Draws the probabilities of the best models, and for each element the probability that it keeps its full prior.

    It says so where these were read off the posterior, and not the model's own.

    :param space: what :func:`~pyro_bmrs.search_models` returned.
    :param axes: the two axes to draw on; a new figure by default.
    :param num_models: how many models.
    :param labels: names of a site's elements, as for :func:`plot_reduction`.
    :return: the figure.
    :raises ImportError: without matplotlib.
    :raises ReductionError: where ``labels`` names no site of the space, or not as many elements as the site has.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import search_models
        >>> def model():
        ...     return pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        >>> guide = AutoNormal(model)
        >>> _ = guide()
        >>> models, elements = plot_model_space(search_models(guide, {"weights": dist.Normal(0.0, 0.1)})).axes
        >>> len(models.patches), len(elements.patches)
        (8, 3)
    """
    inclusion = {site: probability.cpu() for site, probability in space.inclusion_probability.items()}
    names = _names(inclusion, space.element_labels, labels)
    if axes is None:
        size = (10.0, height_of(max(len(names), 10)))
        _, made = pyplot().subplots(1, 2, figsize=size, width_ratios=(2, 3), layout="constrained")
        axes = made[0], made[1]
    left, right = axes
    top = space.top(num_models)
    left.bar(range(1, len(top.probability) + 1), top.probability.tolist(), color="tab:gray")
    left.set_xlabel("model, the most probable first")
    left.set_ylim(bottom=0.0)
    left.set_ylabel("posterior probability")
    left.locator_params(axis="x", integer=True)
    reduced = _flat({site: space.reduced[site] for site in inclusion})
    meanings = ("reduced in the best", "full in the best")
    _draw_bars(right, names, _flat(inclusion), reduced, meanings)
    right.set_xlim(0.0, 1.0)
    right.set_xlabel(f"probability of the full prior{_SOURCES[space.source]}")
    return _figure_of(left)


def plot_sensitivity(sensitivity: Sensitivity, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    """
    Draws the log Bayes factor, and the posterior of the elements, along a grid of priors.

    Bands are one standard deviation of the posterior, of the first ten elements. What the model says is dotted.

    :param sensitivity: what :func:`~pyro_bmrs.prior_sensitivity` returned.
    :param axes: the two axes to draw on; a new figure by default.
    :return: the axes.
    :raises ImportError: without matplotlib.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import prior_sensitivity
        >>> def model():
        ...     return pyro.sample("slope", dist.Normal(0.0, 1.0))
        >>> guide = AutoNormal(model)
        >>> _ = guide()
        >>> evidence, posterior = plot_sensitivity(prior_sensitivity(guide, "slope", check=False))
        >>> evidence.get_xlabel(), posterior.get_xlabel()
        ('scale', 'scale')
    """
    if axes is None:
        _, made = pyplot().subplots(1, 2, figsize=(10.0, 4.0), layout="constrained")
        axes = made[0], made[1]
    left, right = axes
    places = sensitivity.places
    by_name = isinstance(places[0], str)
    marker = "o" if by_name or len(places) == 1 else ""
    where: Sequence[Any] = range(len(places)) if by_name else places
    left.plot(where, sensitivity.log_bayes_factor.tolist(), marker=marker, color=FULL_COLOR, label="of the posterior")
    checked = sensitivity.checked_log_bayes_factor
    if checked is not None:
        left.plot(where, checked.tolist(), ":", marker=marker, color=REDUCED_COLOR, label="of the model")
        left.legend(frameon=False)
    for level in sorted({sensitivity.threshold, -sensitivity.threshold}):
        left.axhline(level, color="black", linewidth=0.8)
    left.set_ylabel("log Bayes factor (nats)")
    mean, sd = (moment.detach().cpu().reshape(len(places), -1) for moment in (sensitivity.mean, sensitivity.sd))
    for place, name in enumerate(sensitivity.labels[:_MOST_CURVES]):
        (line,) = right.plot(where, mean[:, place].tolist(), marker=marker, label=name)
        low, high = (mean[:, place] - sd[:, place]).tolist(), (mean[:, place] + sd[:, place]).tolist()
        right.fill_between(where, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    right.set_ylabel("posterior mean and standard deviation")
    right.legend(frameon=False)
    for ax in axes:
        ax.set_xlabel(sensitivity.label)
        if by_name:
            ax.set_xticks(list(where), [str(place) for place in places])
        elif places[0] > 0 and places[-1] > 20 * places[0]:
            ax.set_xscale("log")
    return axes


def plot_compression(compression: CompressionPath, axes: tuple[Axes, Axes] | None = None) -> Figure:
    """
    Draws the held-out log likelihood of the networks on a path against their size, and what each site has left.

    Bars are one standard error. The chosen network is marked.

    :param compression: what :func:`~pyro_bmrs.pruning.compress` returned.
    :param axes: the two axes to draw on; a new figure by default.
    :return: the figure.
    :raises ImportError: without matplotlib.

    Example::

        >>> import pandas as pd
        >>> from types import SimpleNamespace
        >>> path = pd.DataFrame({"parameters": [90, 20], "log_likelihood": [-1.0, -1.1], "error": [0.0, 0.2]})
        >>> path["chosen"] = [False, True]
        >>> figure = plot_compression(SimpleNamespace(path=path, units=pd.DataFrame({"0": [9, 2]})))
        >>> [ax.get_xlabel() for ax in figure.axes]
        ['parameters', 'parameters']
    """
    path, units = compression.path, compression.units
    if axes is None:
        _, made = pyplot().subplots(1, 2, figsize=(10.0, 4.0), layout="constrained")
        axes = made[0], made[1]
    left, right = axes
    left.errorbar(path["parameters"], path["log_likelihood"], path["error"], marker="o", color=FULL_COLOR)
    chosen = path[path["chosen"]]
    left.plot(chosen["parameters"], chosen["log_likelihood"], "o", color=REDUCED_COLOR, label="chosen", zorder=3)
    left.set_ylabel("held-out log likelihood (nats an example)")
    left.legend(frameon=False)
    for site in units:
        right.plot(path["parameters"], units[site] / units[site].iloc[0], marker=".", label=site)
    right.set_ylabel("share of the units left")
    right.legend(frameon=False, title="site")
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xlabel("parameters")
    return _figure_of(left)


def _figure_of(ax: Axes) -> Figure:
    own: Any = ax.figure  # which may be a part of it
    figure: Figure = own.figure
    return figure


def pyplot() -> Any:
    """Matplotlib's, or an error that names the extra."""
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install pyro_bmrs[plot]") from error
    return matplotlib.pyplot


def _flat(values: Mapping[str, Tensor]) -> list[Any]:
    return [element for tensor in values.values() for element in tensor.flatten().tolist()]


def _names(
    sites: Iterable[str], own: Mapping[str, Sequence[str]], labels: Mapping[str, Sequence[str]] | None
) -> list[str]:
    names = {site: list(own[site]) for site in sites}
    for site, given in (labels or {}).items():
        if site not in names:
            raise ReductionError(f"labels names the site {site!r}, but there are {sorted(names)}")
        if len(given) != len(names[site]):
            raise ReductionError(f"labels has {len(given)} names for the {len(names[site])} elements of site {site!r}")
        names[site] = list(given)
    return [name for site_names in names.values() for name in site_names]


def height_of(bars: int) -> float:
    """Inches that so many bars need."""
    return 1.2 + 0.25 * min(bars, _MOST_NAMED_BARS)


def _draw_bars(
    ax: Axes, names: Sequence[str], lengths: Sequence[float], reduced: Sequence[bool], meanings: tuple[str, str]
) -> None:
    """
    Named bars from the top, in one colour where ``reduced`` is true and in another where it is not.

    Of more than can be told apart, a bar is the longest of its colour among so many neighbours.
    """
    values, is_reduced = np.asarray(lengths, dtype=float), np.asarray(reduced, dtype=bool)
    size = -(-len(names) // _MOST_BARS)
    for color, wanted, meaning in zip((REDUCED_COLOR, FULL_COLOR), (True, False), meanings):
        places = np.flatnonzero(is_reduced == wanted)
        if not len(places):
            continue
        if size > 1:
            order = np.lexsort((-np.abs(values[places]), places // size))
            places = places[order][np.unique(places[order] // size, return_index=True)[1]]
            ax.hlines(places, 0.0, values[places], color=color, linewidth=1.0, label=meaning)
        else:
            ax.barh(places, values[places], height=0.8, color=color, label=meaning)
    if size > 1:
        ax.set_ylabel(f"each bar is the longest of {size:,}")
    step = -(-len(names) // _MOST_NAMED_BARS)
    ax.set_yticks(range(len(names))[::step], names[::step])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, borderaxespad=0.0)
