# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What figures are drawn with: axes, the names of elements, and colours that do not have to be told apart.

The colours are those of M. Okabe and K. Ito (2008), *Color universal design*, https://jfly.uni-koeln.de/color/. What
they mean is said a second time, by markers, lines or hatches, so that figures can be read in grey.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyro_bmrs.errors import ReductionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FULL_COLOR, REDUCED_COLOR = "#0072B2", "#E69F00"
REDUCED_HATCH = "////"
# Colour, dashes and marker; lines that coincide are seen through each other's gaps.
STYLES: tuple[tuple[str, Any, str], ...] = (
    ("#0072B2", "-", "o"),
    ("#D55E00", (0, (6, 2)), "s"),
    ("#009E73", (0, (4, 4)), "^"),
    ("#CC79A7", (0, (2, 3)), "D"),
    ("#000000", (0, (1, 2)), "X"),
    ("#56B4E9", (0, (5, 2, 1, 2)), "v"),
    ("#E69F00", (0, (8, 2)), "P"),
)
_MOST_NAMED = 60
_MOST_BARS = 2000  # of one figure, beyond which they cannot be told apart


def pyplot() -> Any:
    """Matplotlib's, or an error that names the extra."""
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install pyro_bmrs[plot]") from error
    return matplotlib.pyplot


def one_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The axes that were given, or those of a new figure of so many inches."""
    if ax is None:
        _, ax = pyplot().subplots(figsize=(width, height), layout="constrained")
        assert ax is not None
    return ax


def two_axes(
    axes: tuple[Axes, Axes] | None, height: float, width: float = 10.0, width_ratios: tuple[float, float] = (1, 1)
) -> tuple[Axes, Axes]:
    """The axes that were given, or those of a new figure of so many inches, side by side."""
    if axes is not None:
        return axes
    _, made = pyplot().subplots(1, 2, figsize=(width, height), width_ratios=width_ratios, layout="constrained")
    return made[0], made[1]


def figure_of(ax: Axes) -> Figure:
    """The whole figure that axes are in."""
    own: Any = ax.figure  # which may be a part of it
    figure: Figure = own.figure
    return figure


def height_of(rows: int) -> float:
    """Inches that so many named rows need."""
    return 1.2 + 0.25 * min(rows, _MOST_NAMED)


def flat(values: Mapping[str, Tensor]) -> list[Any]:
    """The elements of all sites, one after the other."""
    return [element for tensor in values.values() for element in tensor.detach().cpu().flatten().tolist()]


def names_of(
    sites: Iterable[str], own: Mapping[str, Sequence[str]], labels: Mapping[str, Sequence[str]] | None
) -> dict[str, list[str]]:
    """
    The names of the elements of each site.

    :param sites: their names.
    :param own: what the elements are called by themselves.
    :param labels: what they are to be called, of some of the sites.
    :raises ReductionError: where ``labels`` names no site, or not as many elements as the site has.
    """
    names = {site: list(own[site]) for site in sites}
    for site, given in (labels or {}).items():
        if site not in names:
            raise ReductionError(f"labels names the site {site!r}, but there are {sorted(names)}")
        if len(given) != len(names[site]):
            raise ReductionError(f"labels has {len(given)} names for the {len(names[site])} elements of site {site!r}")
        names[site] = list(given)
    return names


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Names along the vertical axis, from the top; of very many every second, third, ..."""
    step = -(-len(names) // _MOST_NAMED)
    ax.set_yticks(range(len(names))[::step], names[::step])
    ax.set_ylim(len(names) - 0.5, -0.5)


def log_axis(ax: Axes) -> None:
    """Sizes on a logarithmic axis, as numbers that do not run into each other over a few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}" if size >= 1 else f"{size:.2g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(axis="x", labelrotation=30)


def legend_above(ax: Axes, columns: int = 2, **options: Any) -> None:
    """A legend above the axes, where it hides nothing."""
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.0}
    ax.legend(ncols=columns, frameon=False, **place, **options)


def draw_bars(
    ax: Axes, names: Sequence[str], lengths: Sequence[float], reduced: Sequence[bool], meanings: tuple[str, str]
) -> None:
    """
    Named bars from the top, light and hatched where ``reduced`` is true and dark where it is not.

    Of more than can be told apart, a bar is the longest of its colour among so many neighbours.
    """
    values, is_reduced = np.asarray(lengths, dtype=float), np.asarray(reduced, dtype=bool)
    size = -(-len(names) // _MOST_BARS)
    for color, hatch, edge, wanted, meaning in (
        (REDUCED_COLOR, REDUCED_HATCH, "black", True, meanings[0]),
        (FULL_COLOR, None, FULL_COLOR, False, meanings[1]),
    ):
        places = np.flatnonzero(is_reduced == wanted)
        if not len(places):
            continue
        if size > 1:
            order = np.lexsort((-np.abs(values[places]), places // size))
            places = places[order][np.unique(places[order] // size, return_index=True)[1]]
            ax.hlines(places, 0.0, values[places], color=color, linewidth=1.0, label=meaning)
        else:
            ax.barh(places, values[places], 0.8, color=color, hatch=hatch, edgecolor=edge, linewidth=0.5, label=meaning)
    if size > 1:
        ax.set_ylabel(f"each bar is the longest of {size:,}")
    name_rows(ax, names)
    legend_above(ax)
