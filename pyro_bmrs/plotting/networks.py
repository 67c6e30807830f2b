# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Figures of networks: what is left of them, how well they do, and which units go first."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.plotting.canvas import (
    FULL_COLOR,
    REDUCED_COLOR,
    REDUCED_HATCH,
    STYLES,
    figure_of,
    legend_above,
    log_axis,
    one_axes,
    two_axes,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LAYER_WIDTH = 0.56  # of a layer's place in the diagram
_ROOM = 0.07  # beneath and above the layers, of their height
_LOOKS: dict[str, dict[str, Any]] = {
    "before": {"facecolor": "white", "edgecolor": "0.4", "linestyle": "--"},
    "left": {"facecolor": FULL_COLOR, "edgecolor": "black"},
    "masked": {"facecolor": REDUCED_COLOR, "edgecolor": "black", "hatch": REDUCED_HATCH},
}
_LIGHT = 0.35  # on a scale from -1 to 1, above which the map is light enough for black ink


class CompressionPath(Protocol):
    """What is asked of a compression to draw it."""

    @property
    def path(self) -> pd.DataFrame:
        """
        A row for each network: ``parameters``, ``log_likelihood`` of held-out data in nats and its ``error``, whether
        it was ``trained`` without noise, and which is ``chosen``.
        """

    @property
    def units(self) -> pd.DataFrame:
        """A row for each network, a column for each site: how many units are left."""


class Units(Protocol):
    """What is asked of a report to draw the network's layers."""

    @property
    def sites(self) -> pd.DataFrame:
        """A row for each site, in the order of the network: how many ``units`` it had, ``kept``, and ``masked``."""


def plot_compression(compression: CompressionPath, axes: tuple[Axes, Axes] | None = None) -> Figure:
    """
    Draws the held-out log likelihood of the networks on a path against their size, and what each site has left.

    Bars are one standard error. The chosen network is marked. Networks that were not trained on without noise are
    hollow, and no line goes through them: they are as noise left them, and not to be compared with the others.

    :param compression: what :func:`~pyro_bmrs.pruning.compress` returned.
    :param axes: the two axes to draw on; a new figure by default.
    :return: the figure.
    :raises ImportError: without matplotlib.

    Example::

        >>> import pandas as pd
        >>> from types import SimpleNamespace
        >>> path = pd.DataFrame({"parameters": [90, 20], "log_likelihood": [-1.0, -1.1], "error": [0.0, 0.2]})
        >>> path["trained"], path["chosen"] = [True, True], [False, True]
        >>> figure = plot_compression(SimpleNamespace(path=path, units=pd.DataFrame({"0": [9, 2]})))
        >>> [ax.get_xlabel() for ax in figure.axes]
        ['parameters', 'parameters']
    """
    path, units = compression.path, compression.units
    left, right = two_axes(axes, 3.6, width=8.5)
    for is_trained, fill, line, label in ((True, FULL_COLOR, "-", "trained"), (False, "white", "", "as noise left it")):
        rows = path[path["trained"] == is_trained]
        if len(rows):
            left.errorbar(
                rows["parameters"],
                rows["log_likelihood"],
                rows["error"],
                linestyle=line,
                marker="o",
                color=FULL_COLOR,
                markerfacecolor=fill,
                label=label,
            )
    chosen = path[path["chosen"]]
    left.plot(
        chosen["parameters"],
        chosen["log_likelihood"],
        "D",
        color=REDUCED_COLOR,
        markeredgecolor="black",
        markersize=9,
        label="chosen",
        zorder=3,
    )
    left.set_ylabel("held-out log likelihood (nats an example)")
    left.legend(frameon=False)
    for site, (color, dashes, marker) in zip(units, cycle(STYLES)):
        share = units[site] / units[site].iloc[0]
        right.plot(path["parameters"], share, marker=marker, markersize=4, color=color, linestyle=dashes, label=site)
    right.set_ylim(bottom=0.0)
    right.set_ylabel("share of the units left")
    right.legend(frameon=False, title="site")
    for ax in (left, right):
        log_axis(ax)
        ax.set_xlabel("parameters")
    return figure_of(left)


def plot_units(report: Units, ax: Axes | None = None) -> Axes:
    """
    Draws the network as its layers, from left to right: how many units each had, and how many are left.

    The outline of a layer is higher the more units it had, as their logarithm; of it the share that is left is filled,
    and what is hatched is pruned, but still there as weights of 0. A layer is the site of noise on its units.

    :param report: what :func:`~pyro_bmrs.pruning.compaction_report` returned, or ``compress(...).report``.
    :param ax: the axes to draw on; a new figure, as wide as the layers need, by default.
    :return: the axes.
    :raises ImportError: without matplotlib.
    :raises ReductionError: for a network without sites.

    Example::

        >>> import pandas as pd
        >>> from types import SimpleNamespace
        >>> sites = pd.DataFrame({"units": [20, 50], "kept": [4, 7], "masked": [0, 1]}, index=["conv1", "conv2"])
        >>> ax = plot_units(SimpleNamespace(sites=sites))
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['conv1\\n4 of 20', 'conv2\\n7 of 50']
    """
    sites = report.sites
    if not len(sites):
        raise ReductionError("there are no sites of noise, so no layers to draw")
    ax = one_axes(ax, 1.6 + 0.95 * len(sites), 3.4)
    from matplotlib.patches import Polygon, Rectangle

    heights = np.log1p(sites["units"]) / np.log1p(sites["units"].max())
    share = sites[["units", "kept", "masked"]].mul(heights / sites["units"], axis="index")
    half = _LAYER_WIDTH / 2
    drawn = share["kept"] + share["masked"]
    for place, (before, after) in enumerate(zip(drawn[:-1], drawn[1:])):
        left, right = place + half, place + 1 - half
        corners = [(left, -before / 2), (right, -after / 2), (right, after / 2), (left, before / 2)]
        ax.add_patch(Polygon(corners, facecolor="0.85", edgecolor="none", zorder=1))
    for place, (units, kept, masked) in enumerate(share.to_numpy().tolist()):
        bottom = -(kept + masked) / 2
        parts = {"before": (-units / 2, units), "left": (bottom, kept), "masked": (bottom + kept, masked)}
        for name, (start, height) in parts.items():
            if height:
                ax.add_patch(Rectangle((place - half, start), _LAYER_WIDTH, height, zorder=2, **_LOOKS[name]))
    shown = [name for name in _LOOKS if name != "masked" or share["masked"].any()]
    legend_above(ax, 3, handles=[Rectangle((0, 0), 1, 1, label=name, **_LOOKS[name]) for name in shown])
    ax.set_xlim(-0.6, len(sites) - 0.4)
    ax.set_ylim(-0.5 - _ROOM, 0.5 + _ROOM)
    counts = zip(sites.index, sites["kept"], sites["units"])
    ax.set_xticks(range(len(sites)), [f"{name}\n{kept} of {units}" for name, kept, units in counts])
    ax.set_yticks([])
    ax.spines[["left", "right", "top", "bottom"]].set_visible(False)
    ax.tick_params(axis="x", length=0)
    return ax


def plot_trade_off(
    table: pd.DataFrame, ax: Axes | None = None, *, size: str = "share", score: str = "accuracy", joined: bool = False
) -> Axes:
    """
    Draws how well networks do against how large they are, method beside method.

    Small marks are the rows of the table, as those of several seeds; a large one is their mean. With ``joined`` the
    rows of a method are points of one curve instead.

    :param table: a row for each network: its ``method``, and columns for its size and its score.
    :param ax: the axes to draw on; a new figure by default.
    :param size: the column of sizes, as the share of the parameters that is left.
    :param score: the column of scores, as the accuracy.
    :param joined: whether to draw a line through the rows of a method, in the order of their size.
    :return: the axes.
    :raises ImportError: without matplotlib.
    :raises ReductionError: where the table lacks one of the columns.

    Example::

        >>> import pandas as pd
        >>> rows = {"method": ["ours", "ours", "peer"], "share": [0.1, 0.12, 0.2], "accuracy": [0.98, 0.97, 0.97]}
        >>> ax = plot_trade_off(pd.DataFrame(rows))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['ours', 'peer']
    """
    missing = [column for column in ("method", size, score) if column not in table]
    if missing:
        raise ReductionError(f"the table lacks the columns {missing}; it has {list(table)}")
    ax = one_axes(ax, 6.4, 4.0)
    for (method, rows), (color, dashes, marker) in zip(table.groupby("method", sort=False), cycle(STYLES)):
        if joined:
            ordered = rows.sort_values(size)
            ax.plot(
                ordered[size], ordered[score], linestyle=dashes, marker=marker, markersize=4, color=color, label=method
            )
            continue
        ax.plot(rows[size], rows[score], marker, color=color, markersize=4, alpha=0.6)
        ax.plot(
            rows[size].mean(),
            rows[score].mean(),
            marker,
            color=color,
            markeredgecolor="black",
            markersize=10,
            label=str(method),
        )
    smallest, largest = table[size].min(), table[size].max()
    if smallest > 0 and largest > 20 * smallest:
        log_axis(ax)
    ax.set_xlabel("share of the parameters left" if size == "share" else size.replace("_", " "))
    ax.set_ylabel(score.replace("_", " "))
    ax.legend(frameon=False)
    return ax


def plot_rank_correlations(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """
    Draws the rank correlations between the orders in which criteria remove units, as a map with its numbers.

    :param table: what :func:`~pyro_bmrs.pruning.rank_correlations` returned: a square, criteria by criteria.
    :param ax: the axes to draw on; a new figure by default.
    :return: the axes.
    :raises ImportError: without matplotlib.
    :raises ReductionError: for a table whose rows and columns have not the same names.

    Example::

        >>> import pandas as pd
        >>> names = ["BMRS_N", "SNR"]
        >>> ax = plot_rank_correlations(pd.DataFrame([[1.0, 0.9], [0.9, 1.0]], names, names))
        >>> [text.get_text() for text in ax.texts]
        ['1.00', '0.90', '0.90', '1.00']
    """
    names = [str(name) for name in table.columns]
    if names != [str(name) for name in table.index]:
        raise ReductionError("the rows and the columns of rank correlations have to have the same names")
    ax = one_axes(ax, 1.6 + 0.62 * len(names), 1.1 + 0.52 * len(names))
    values = table.to_numpy(dtype=float)
    # Dark to light in grey as well, so that the sign shows; the numbers say the rest.
    image = ax.imshow(values, cmap="cividis", vmin=-1, vmax=1, aspect="auto")
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    for line, column in np.ndindex(*values.shape):
        value = values[line, column]
        ink = "black" if value > _LIGHT else "white"
        ax.text(column, line, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
    figure_of(ax).colorbar(image, ax=ax, label="Spearman's rank correlation")
    return ax
