# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Figures of one reduction: the evidence about each element, the posterior before and after, the check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.plotting.canvas import (
    FULL_COLOR,
    REDUCED_COLOR,
    draw_bars,
    flat,
    height_of,
    legend_above,
    name_rows,
    names_of,
    one_axes,
    two_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.distributions import Distribution

# Nats at which the grades of evidence of Kass and Raftery end, and how dark each is shaded.
_GRADES = ((5.0, "0.95"), (3.0, "0.90"), (1.0, "0.83"))
_GRADES_IN_WORDS = "shaded: bare mention (to 1), positive (to 3), strong (to 5); then very strong"
_TICKS = (1.0, 3.0)
_FAR = 30.0  # nats, beyond which the scale is logarithmic from the last grade on
_NUM_DRAWS = 2000
_LARGEST_K = 0.7


class CheckOfElements(Protocol):
    """What is asked of a check to draw what the model says of each element."""

    @property
    def elementwise(self) -> Mapping[str, Tensor] | None:
        """For each site, the change in log evidence of reducing each of its elements alone, by the model."""

    @property
    def elementwise_error(self) -> Mapping[str, Tensor] | None:
        """Their standard errors."""


class Reduced(Protocol):
    """What is asked of a reduction to draw its evidence."""

    @property
    def elementwise(self) -> Mapping[str, Tensor]:
        """For each site, the change in log evidence (nats) of reducing each of its elements alone."""

    @property
    def element_labels(self) -> Mapping[str, Sequence[str]]:
        """For each site, the names of its elements, in the order of ``tensor.flatten()``."""

    @property
    def checked(self) -> CheckOfElements | None:
        """What the model said; None where it was not asked."""


class ReducedPosterior(Protocol):
    """What is asked of a reduction to draw its posterior."""

    @property
    def fitted_posterior(self) -> Mapping[str, Distribution]:
        """The posterior of each site as it was fitted."""

    @property
    def posterior(self) -> Mapping[str, Distribution]:
        """The posterior of each site under the reduced model."""

    @property
    def element_labels(self) -> Mapping[str, Sequence[str]]:
        """For each reduced site, the names of its elements, in the order of ``tensor.flatten()``."""


class End(Protocol):
    """What is asked of one integral of a check."""

    @property
    def value(self) -> float:
        """The log evidence, in nats."""

    @property
    def standard_error(self) -> float:
        """Its standard error, in nats."""

    @property
    def pareto_k(self) -> float:
        """Of the weights that it is the mean of."""


class Checked(Protocol):
    """What is asked of a check to draw it."""

    @property
    def full(self) -> End:
        """The model that was fitted, integrated."""

    @property
    def reduced(self) -> End:
        """The reduced model, integrated."""

    @property
    def read_off(self) -> float:
        """The change in log evidence that was read off the posterior, in nats."""

    @property
    def read_off_error(self) -> float:
        """Its standard error."""

    @property
    def guide_pareto_k(self) -> float | None:
        """Of the guide's own weights; None where there is no guide."""


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
    What the model says, after ``reduction.check(elementwise=True)``, is marked with bars of two standard errors.

    Shades end where the words for evidence of R. E. Kass and A. E. Raftery (1995), *Bayes factors*,
    https://doi.org/10.1080/01621459.1995.10476572, do: at 1, 3 and 5 nats of either sign. Where a bar is longer than
    30 nats, the axis is logarithmic beyond 5.

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
    elementwise = reduction.elementwise
    by_site = names_of(elementwise, reduction.element_labels, labels)
    names, values = [name for own in by_site.values() for name in own], flat(elementwise)
    ax = one_axes(ax, 6.4, height_of(len(names)))
    _shade_grades(ax)
    checked = reduction.checked
    if checked is not None and checked.elementwise is not None:
        own = flat({site: checked.elementwise[site] for site in elementwise})
        errors = checked.elementwise_error
        spread = None if errors is None else [2 * error for error in flat({site: errors[site] for site in elementwise})]
        ax.errorbar(
            own, range(len(own)), xerr=spread, fmt="D", markersize=4, color="black", capsize=2, label="of the model"
        )
        values_in_view = [*values, *own]
    else:
        values_in_view = values
    _scale_nats(ax, values_in_view)
    lengths = [_to_the_edge(ax, place, value) for place, value in enumerate(values)]
    draw_bars(ax, names, lengths, [value > 0 for value in values], ("for the reduced prior", "for the full prior"))
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set_xlabel(f"change in log evidence (nats)\n{_GRADES_IN_WORDS}")
    if checked is not None and checked.elementwise is not None:
        legend_above(ax, 3)
    return ax


def _shade_grades(ax: Axes) -> None:
    """Behind all that is drawn; they do not count for the limits of the axis."""
    for level, shade in _GRADES:
        ax.fill_betweenx(
            [0.0, 1.0], -level, level, transform=ax.get_xaxis_transform(), color=shade, linewidth=0, zorder=0
        ).sticky_edges.x[:] = []


def _scale_nats(ax: Axes, values: Sequence[float]) -> None:
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    if max(-low, high) <= _FAR:
        room = 0.05 * max(high, 1.0) + 0.05 * max(-low, 1.0)
        ax.set_xlim(min(low, -1.0) - room, max(high, 1.0) + room)
        return
    last = _GRADES[0][0]
    ax.set_xscale("symlog", linthresh=last, linscale=1.0)
    ax.set_xlim(1.5 * min(low, -1.0), 1.5 * max(high, 1.0))
    decades = [10.0**power for power in range(1, 1 + math.ceil(math.log10(max(-low, high))))]
    ticks = [sign * tick for tick in (*_TICKS, *decades) for sign in (-1, 1)]
    shown = sorted(tick for tick in [0.0, *ticks] if ax.get_xlim()[0] <= tick <= ax.get_xlim()[1])
    ax.set_xticks(shown, [f"{tick:,.0f}".replace("-", "−") for tick in shown])
    ax.minorticks_off()


def _to_the_edge(ax: Axes, place: int, value: float) -> float:
    """A length that is infinite goes to the edge, with a word there that it is."""
    if not math.isinf(value):
        return value
    edge = ax.get_xlim()[value > 0]
    ax.annotate(
        "∞" if value > 0 else "−∞",
        (edge, place),
        (-4 if value > 0 else 4, 0),
        textcoords="offset points",
        ha="right" if value > 0 else "left",
        va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
    )
    return edge


def plot_posterior(
    reduction: ReducedPosterior,
    ax: Axes | None = None,
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Axes:
    """
    Draws the posterior of each element of the reduced sites, full and reduced, as medians and intervals.

    The thick part of a line is half of the posterior, the whole line 95 % of it, by quantiles of 2,000 draws whose
    random numbers are their own. Of what is reduced to a point there is a mark without a line.

    :param reduction: what :func:`~pyro_bmrs.reduce_model` returned.
    :param ax: the axes to draw on; a new figure, as high as the elements need, by default.
    :param labels: names of a site's elements, as for :func:`plot_reduction`.
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
        >>> ax = plot_posterior(reduce_model(guide, {"weights": dist.Normal(0.0, 0.1)}, check=False))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['full', 'reduced']
    """
    before, after = reduction.fitted_posterior, reduction.posterior
    by_site = names_of(reduction.element_labels, reduction.element_labels, labels)
    missing = sorted(site for site in by_site if site not in before or site not in after)
    if missing:
        raise ReductionError(f"the posterior of {missing} is not known by itself; draws of it are in to_arviz()")
    quantiles = {site: (_quantiles(before[site]), _quantiles(after[site])) for site in by_site}
    names = [name for site, own in by_site.items() for name in _names_of_parts(own, quantiles[site][0].shape[1])]
    ax = one_axes(ax, 6.4, height_of(len(names)))
    for kind, label, color, marker, offset in (
        (0, "full", FULL_COLOR, "o", -0.17),
        (1, "reduced", REDUCED_COLOR, "s", 0.17),
    ):
        low, lower, middle, upper, high = np.concatenate([pair[kind] for pair in quantiles.values()], axis=1)
        places = np.arange(len(names)) + offset
        ax.hlines(places, low, high, color=color, linewidth=1.0)
        ax.hlines(places, lower, upper, color=color, linewidth=3.0)
        ax.plot(
            middle, places, marker, color=color, markersize=5, markeredgecolor="black", markeredgewidth=0.6, label=label
        )
    ax.axvline(0.0, color="black", linewidth=0.8, zorder=0)
    name_rows(ax, names)
    ax.set_xlabel("posterior: median, 50 % and 95 %")
    legend_above(ax)
    return ax


def _quantiles(posterior: Distribution) -> np.ndarray[Any, Any]:
    """2.5, 25, 50, 75 and 97.5 % of each element."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        drawn = posterior.sample(torch.Size([_NUM_DRAWS])).reshape(_NUM_DRAWS, -1)
    return np.asarray(np.quantile(drawn.double().cpu().numpy(), [0.025, 0.25, 0.5, 0.75, 0.975], axis=0))


def _names_of_parts(names: Sequence[str], count: int) -> list[str]:
    """Where the elements of an event cannot be parted, a name is of several numbers."""
    if count == len(names):
        return list(names)
    return [f"{name}, {part}" for name in names for part in range(count // len(names))]


def plot_check(check: Checked, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    """
    Draws the two ends of a change in log evidence as they were integrated, beside what was read off; and Pareto k.

    On the left, the log evidence of the full and of the reduced model, and that of the reduced model if the change
    that was read off the posterior is right; bars are two standard errors, and what spans from the full model is ΔF.
    On the right, the k of the weights of both integrals and of the guide's own; the shade begins at 0.7, above which
    weights are not to be trusted.

    :param check: what ``reduction.check()`` returned, or ``reduction.checked``.
    :param axes: the two axes to draw on; a new figure by default.
    :return: the axes.
    :raises ImportError: without matplotlib.

    Example::

        >>> from types import SimpleNamespace
        >>> full = SimpleNamespace(value=-9.3, standard_error=0.02, pareto_k=0.2)
        >>> reduced = SimpleNamespace(value=-10.5, standard_error=0.02, pareto_k=0.1)
        >>> check = SimpleNamespace(full=full, reduced=reduced, read_off=-1.3, read_off_error=0.0, guide_pareto_k=0.5)
        >>> evidence, weights = plot_check(check)
        >>> [label.get_text() for label in weights.get_yticklabels()]
        ['full model', 'reduced model', "guide's own"]
    """
    left, right = two_axes(axes, 2.6, width=9.0, width_ratios=(3, 2))
    full, reduced = check.full, check.reduced
    rows = (
        ("full model", full.value, full.standard_error, "o", FULL_COLOR),
        ("reduced model", reduced.value, reduced.standard_error, "s", REDUCED_COLOR),
        ("reduced, read off", full.value + check.read_off, check.read_off_error, "D", "white"),
    )
    left.axvline(full.value, color="black", linewidth=0.8, linestyle=":")
    for place, (_, value, error, marker, color) in enumerate(rows):
        left.hlines(place, full.value, value, color="0.6", linewidth=1.0, zorder=1)
        left.errorbar(
            value,
            place,
            xerr=2 * error,
            fmt=marker,
            color=color,
            markeredgecolor="black",
            ecolor="black",
            capsize=3,
            markersize=7,
        )
    error = math.hypot(full.standard_error, reduced.standard_error)
    for place, words in (
        (1, f"ΔF = {reduced.value - full.value:.2f} ± {error:.2g}"),
        (2, f"ΔF = {check.read_off:.2f}"),
    ):
        middle = (full.value + rows[place][1]) / 2
        left.annotate(words, (middle, place), (0, 6), textcoords="offset points", ha="center", fontsize="small")
    name_rows(left, [name for name, *_ in rows])
    left.margins(x=0.15)
    left.locator_params(axis="x", nbins=5)
    left.set_xlabel("log evidence (nats)")
    tails = {"full model": full.pareto_k, "reduced model": reduced.pareto_k}
    if check.guide_pareto_k is not None:
        tails["guide's own"] = check.guide_pareto_k
    _draw_tails(right, tails)
    return left, right


def _draw_tails(ax: Axes, tails: Mapping[str, float]) -> None:
    finite = [k for k in tails.values() if math.isfinite(k)]
    low, high = min([*finite, 0.0]) - 0.2, max([*finite, 1.0]) + 0.2
    ax.axvspan(_LARGEST_K, high, color="0.9", linewidth=0)
    ax.axvline(_LARGEST_K, color="black", linewidth=0.8, linestyle="--")
    for place, k in enumerate(tails.values()):
        if math.isfinite(k):
            ax.plot(k, place, "X" if k > _LARGEST_K else "o", color="black", markersize=7)
        else:
            ax.annotate(
                "weights without a tail" if k < 0 else "no weights to speak of",
                (low, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize="small",
            )
    ax.set_xlim(low, high)
    name_rows(ax, list(tails))
    ax.set_xlabel("Pareto k of the weights")
