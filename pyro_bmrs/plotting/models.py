# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Figures of many models: a space of reduced ones, a family of priors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from pyro_bmrs.plotting.canvas import (
    FULL_COLOR,
    REDUCED_COLOR,
    STYLES,
    draw_bars,
    figure_of,
    flat,
    height_of,
    names_of,
    two_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SOURCES = {"model": "", "model, in doubt": " (in doubt)", "posterior": " (read off the posterior)"}


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
        """Posterior standard deviations, of the shape of the means."""

    @property
    def labels(self) -> Sequence[str]:
        """Names of the elements whose prior varies."""


def plot_model_space(
    space: Space,
    axes: tuple[Axes, Axes] | None = None,
    *,
    num_models: int = 20,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """
    Draws the probabilities of the best models, and for each element the probability that it keeps its full prior.

    It says so where these were read off the posterior, and not the model's own. The dashed line is at one half, where
    the median model is parted.

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
    inclusion = space.inclusion_probability
    by_site = names_of(inclusion, space.element_labels, labels)
    names = [name for own in by_site.values() for name in own]
    left, right = two_axes(axes, height_of(max(len(names), 10)), width_ratios=(2, 3))
    top = space.top(num_models)
    left.bar(range(1, len(top.probability) + 1), top.probability.tolist(), color="tab:gray")
    left.set_xlabel("model, the most probable first")
    left.set_ylim(bottom=0.0)
    left.set_ylabel("posterior probability")
    left.locator_params(axis="x", integer=True)
    reduced = flat({site: space.reduced[site] for site in inclusion})
    draw_bars(right, names, flat(inclusion), reduced, ("reduced in the best", "full in the best"))
    right.axvline(0.5, color="black", linewidth=0.8, linestyle="--")
    right.set_xlim(0.0, 1.0)
    right.set_xlabel(f"probability of the full prior{_SOURCES[space.source]}")
    return figure_of(left)


def plot_sensitivity(sensitivity: Sensitivity, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    """
    Draws the log Bayes factor, and the posterior of the elements, along a grid of priors.

    Bands are one standard deviation of the posterior, of the first seven elements. What the model says is dotted.

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
    left, right = axes = two_axes(axes, 3.6, width=8.5)
    places = sensitivity.places
    by_name = isinstance(places[0], str)
    where: Sequence[Any] = range(len(places)) if by_name else places
    # Between priors by name there is nothing.
    circle, square, line, dots = ("o", "s", "", "") if by_name else ("", "", "-", ":")
    factors = sensitivity.log_bayes_factor.tolist()
    left.plot(where, factors, marker=circle, linestyle=line, color=FULL_COLOR, label="of the posterior")
    checked = sensitivity.checked_log_bayes_factor
    if checked is not None:
        left.plot(
            where,
            checked.tolist(),
            marker=square,
            markerfacecolor="none",
            markersize=9,
            linestyle=dots,
            linewidth=2.5,
            color=REDUCED_COLOR,
            label="of the model",
        )
        left.legend(frameon=False)
    for level in sorted({sensitivity.threshold, -sensitivity.threshold}):
        left.axhline(level, color="black", linewidth=0.8)
    left.set_ylabel("log Bayes factor (nats)")
    mean, sd = (moment.detach().cpu().reshape(len(places), -1) for moment in (sensitivity.mean, sensitivity.sd))
    labels = sensitivity.labels[: len(STYLES)]
    for place, (name, (color, dashes, marker)) in enumerate(zip(labels, STYLES)):
        own, spread = mean[:, place].tolist(), sd[:, place].tolist()
        if by_name:
            beside = [at + 0.08 * (place - (len(labels) - 1) / 2) for at in where]
            right.errorbar(beside, own, spread, fmt=marker, color=color, capsize=3, label=name)
            continue
        right.plot(where, own, color=color, linestyle=dashes, label=name)
        low, high = (mean[:, place] - sd[:, place]).tolist(), (mean[:, place] + sd[:, place]).tolist()
        right.fill_between(where, low, high, color=color, alpha=0.15, linewidth=0)
    right.set_ylabel("posterior mean and standard deviation")
    right.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for ax in axes:
        ax.set_xlabel(sensitivity.label)
        if by_name:
            ax.set_xticks(list(where), [str(place) for place in places])
            ax.set_xlim(-0.5, len(places) - 0.5)
        elif places[0] > 0 and places[-1] > 20 * places[0]:
            ax.set_xscale("log")
    return axes
