# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Figures of a reduction. They need matplotlib, which ``pip install pyro_bmrs[plot]`` brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from .errors import ReductionError
from .summaries import element_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .reduction import Reduction
    from .search import ModelSpace

FULL_COLOR, REDUCED_COLOR = "tab:blue", "tab:orange"
_MOST_NAMED_BARS = 60


def plot_reduction(
    reduction: Reduction,
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
        >>> ax = plot_reduction(reduce_model(guide, {"weights": dist.Normal(0.0, 0.1)}))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['weights[0]', 'weights[1]', 'weights[2]']
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install pyro_bmrs[plot]") from error

    elementwise = {site: delta.detach().cpu() for site, delta in reduction.elementwise.items()}
    labels = dict(labels or {})
    if unknown := labels.keys() - elementwise.keys():
        raise ReductionError(f"labels names the sites {sorted(unknown)}, but the reduction has {sorted(elementwise)}")
    names = [name for site, delta in elementwise.items() for name in _names(site, delta.shape, labels.get(site))]
    values = [value for delta in elementwise.values() for value in delta.flatten().tolist()]

    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 1.2 + 0.25 * min(len(values), _MOST_NAMED_BARS)), layout="constrained")
    places = range(len(values))
    for color, wanted, meaning in ((REDUCED_COLOR, True, "reduced prior"), (FULL_COLOR, False, "full prior")):
        chosen = [place for place in places if (values[place] > 0) is wanted]
        if chosen:
            ax.barh(chosen, [values[place] for place in chosen], height=0.8, color=color, label=f"for the {meaning}")
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set_xlabel("change in log evidence (nats)")
    step = -(-len(values) // _MOST_NAMED_BARS)
    ax.set_yticks(places[::step], names[::step])
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, borderaxespad=0.0)
    return ax


def _names(site: str, shape: torch.Size, labels: Sequence[str] | None) -> list[str]:
    if labels is None:
        return element_labels(site, shape)
    if len(labels) != shape.numel():
        raise ReductionError(f"labels has {len(labels)} names for the {shape.numel()} elements of site {site!r}")
    return list(labels)


def plot_model_space(
    space: ModelSpace,
    *,
    num_models: int = 20,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """
    Draws the probabilities of the best models, and for each element the probability that it keeps its full prior.

    :param space: what :func:`~pyro_bmrs.search_models` returned.
    :param num_models: how many models.
    :param labels: names of a site's elements, as for :func:`plot_reduction`.
    :return: a new figure.
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
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install pyro_bmrs[plot]") from error

    inclusion = {site: probability.cpu() for site, probability in space.inclusion_probability.items()}
    labels = dict(labels or {})
    if unknown := labels.keys() - inclusion.keys():
        raise ReductionError(f"labels names the sites {sorted(unknown)}, but the space has {sorted(inclusion)}")
    names = [name for site, values in inclusion.items() for name in _names(site, values.shape, labels.get(site))]
    places = range(len(names))
    height = 1.2 + 0.25 * min(max(len(names), 10), _MOST_NAMED_BARS)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, height), layout="constrained")

    top = space.top(num_models)
    left.bar(range(1, len(top.probability) + 1), top.probability.tolist(), color="tab:gray")
    left.set_xlabel("model, the most probable first")
    left.set_ylabel("posterior probability")
    left.xaxis.get_major_locator().set_params(integer=True)
    probabilities = [probability for values in inclusion.values() for probability in values.flatten().tolist()]
    sides = [side for site in inclusion for side in space.reduced[site].flatten().tolist()]
    for color, wanted, meaning in ((FULL_COLOR, False, "full prior"), (REDUCED_COLOR, True, "reduced prior")):
        chosen = [place for place in places if sides[place] is wanted]
        if chosen:
            lengths = [probabilities[place] for place in chosen]
            right.barh(chosen, lengths, height=0.8, color=color, label=f"{meaning} in the best model")
    right.set_xlim(0.0, 1.0)
    right.set_xlabel("probability of the full prior")
    step = -(-len(names) // _MOST_NAMED_BARS)
    right.set_yticks(places[::step], names[::step])
    right.set_ylim(len(names) - 0.5, -0.5)
    right.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, borderaxespad=0.0)
    return figure
