# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Figures of the results, each of one data set and network; means over seeds, with bands or bars of a standard deviation.

The colours are those of M. Okabe and K. Ito (2008), *Color universal design*, https://jfly.uni-koeln.de/color/; lines
and markers differ too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from pyro_bmrs.plotting import plot_rank_correlations

from .tables import Row, Unpruned, continuous_table, ordered

# Colour, dashes and marker of a criterion; lines that coincide are seen through each other's gaps.
STYLES = {
    "BMRS_N": ("#0072B2", "-", "o"),
    "BMRS_U-8": ("#D55E00", (0, (6, 2)), "s"),
    "BMRS_U-4": ("#009E73", (0, (4, 4)), "^"),
    "SNR": ("#CC79A7", (0, (2, 3)), "D"),
    "PosteriorMean": ("#56B4E9", (0, (5, 2, 1, 2)), "v"),
    "WeightNorm": ("#E69F00", (0, (8, 2)), "P"),
    "Saliency-taylor": ("#000000", (0, (1, 2)), "X"),
    "Saliency-fisher": ("#7F7F7F", (0, (1, 1)), "*"),
}
# How the markers of settings are filled, in their order: the first with white.
_FILLS: tuple[Literal["full", "left", "top"], ...] = ("full", "full", "left", "top")
_OTHER_STYLE = ("#000000", (0, (8, 2, 1, 2)), "h")

# So many seeds make a cloud of which a covariance says something.
_FEWEST_FOR_DENSITY = 3
_SHARES = np.linspace(0, 100, 201)


def accuracy_curves(rows: Sequence[Row]) -> Figure | None:
    """
    Accuracy against the share of the units that are removed, by criterion, and where those that decide stop.

    The paper's Figures 2 and 5. The panel to the right is of where each seed stops, with the density of its marks.

    :param rows: runs after training, of one data set, network and settings.
    :return: the figure; none where no run has curves.
    """
    curves = [row["curves"] for row in rows if row.get("curves")]
    if not curves:
        return None
    figure, ax, panel = _two_panels()
    handles = []
    for name in ordered(name for of_run in curves for name in of_run):
        color, line, marker = STYLES.get(name, _OTHER_STYLE)
        of_seeds = [of_run[name] for of_run in curves if name in of_run]
        shares = _SHARES[_SHARES <= 100 * min(max(curve["share_removed"]) for curve in of_seeds)]
        values = np.array(
            [np.interp(shares, _percent(curve["share_removed"]), _percent(curve["accuracy"])) for curve in of_seeds]
        )
        ax.plot(shares, values.mean(0), linestyle=line, color=color, linewidth=2.2 if line == "-" else 1.6)
        handle = Line2D([], [])
        handle.update_from(ax.lines[-1])
        handle.set_label(name)
        if len(values) > 1:
            spread = values.std(0, ddof=1)
            ax.fill_between(shares, values.mean(0) - spread, values.mean(0) + spread, color=color, alpha=0.15, lw=0)
        stops = [curve["stop"] for curve in of_seeds if curve.get("stop")]
        if stops:
            removed, accuracy = (_percent([stop[part] for stop in stops]) for part in ("units_removed", "accuracy"))
            _draw_stops(panel, removed, accuracy, color, marker)
            ax.plot(
                removed.mean(), accuracy.mean(), marker, color=color, markeredgecolor="white", markersize=9, zorder=5
            )
            handle.set_marker(marker)
        handles.append(handle)
    ax.set(xlabel="Units removed (%)", ylabel="Test accuracy (%)", xlim=(0, 100))
    panel.set(xlabel="Units removed (%)", title="Each seed")
    panel.margins(0.15)
    _finish(figure, ax, _title(rows), handles=handles, title="Marker: where it stops")
    return figure


def _two_panels() -> tuple[Figure, Axes, Axes]:
    figure, ax = _figure(8.6, 4.0, columns=2, width_ratios=(2.2, 1))
    return figure, ax, figure.axes[1]


def _draw_stops(ax: Axes, removed: Any, accuracy: Any, color: str, marker: str) -> None:
    """Where the seeds stop, and lines of the normal density of their mean and covariance, where there are enough."""
    ax.plot(removed, accuracy, marker, color=color, markeredgecolor="white", markersize=6, linestyle="none")
    if len(removed) < _FEWEST_FOR_DENSITY:
        return
    points = np.stack([removed, accuracy])
    values, vectors = np.linalg.eigh(np.cov(points))
    angles = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    for deviations in (1, 2):
        x, y = points.mean(1)[:, None] + deviations * vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * circle)
        ax.plot(x, y, color=color, linewidth=0.8, alpha=0.7)


def rank_correlation_map(rows: Sequence[Row]) -> Figure | None:
    """
    Spearman's rank correlations between the orders of criteria. The paper's Figure 3.

    :param rows: runs after training, of one data set, network and settings.
    :return: the figure; none where no run has correlations.
    """
    matrices = [pd.DataFrame(row["rank_correlations"]) for row in rows if row.get("rank_correlations")]
    if not matrices:
        return None
    names = ordered(matrices[0].columns)
    values = np.mean([matrix.loc[names, names].to_numpy(dtype=float) for matrix in matrices], axis=0)
    figure, ax = _figure(1.6 + 0.62 * len(names), 1.1 + 0.52 * len(names))
    plot_rank_correlations(pd.DataFrame(values, names, names), ax)
    ax.grid(False)
    ax.set_title(_title(rows))
    return figure


def accuracy_by_bits(rows: Sequence[Row]) -> Figure | None:
    """
    Accuracy and compression where BMRS_U stops after training, against its number of bits.

    :param rows: runs after training, of one data set, network and settings.
    :return: the figure; none where no run was evaluated by bits.
    """
    points = [{**point, "seed": row["seed"]} for row in rows for point in row.get("p1") or []]
    return _by_bits(points, rows)


def accuracy_by_bits_in_training(rows: Sequence[Row]) -> Figure | None:
    """
    Accuracy and compression of networks trained with BMRS_U, against its number of bits. The paper's Figure 4.

    :param rows: runs pruned in training, of one data set, network and settings.
    :return: the figure; none where there are not two numbers of bits.
    """
    points = [
        {
            "p1": float(row["criterion"].removeprefix("BMRS_U-")),
            "seed": row["seed"],
            "accuracy": row["accuracy"],
            "units_removed": 1 - row["units_left"] / row["units"],
            "parameters_removed": 1 - row["parameters_left"] / row["parameters"],
        }
        for row in rows
        if row["experiment"] == "continuous" and (row.get("criterion") or "").startswith("BMRS_U-")
    ]
    return _by_bits(points, rows) if len({point["p1"] for point in points}) > 1 else None


def _by_bits(points: list[dict[str, Any]], rows: Sequence[Row]) -> Figure | None:
    if not points:
        return None
    groups = pd.DataFrame(points).groupby("p1")
    parts = {
        "Test accuracy": ("accuracy", "#0072B2", "o"),
        "Units removed": ("units_removed", "#D55E00", "s"),
        "Parameters removed": ("parameters_removed", "#009E73", "^"),
    }
    figure, ax = _figure(6.6, 3.6)
    for label, (column, color, marker) in parts.items():
        mean, spread = 100 * groups[column].mean(), 100 * groups[column].std().fillna(0)
        ax.plot(mean.index, mean, marker + "-", color=color, markersize=4, linewidth=1.4, label=label)
        ax.fill_between(mean.index, mean - spread, mean + spread, color=color, alpha=0.15, lw=0)
    _draw_unpruned(ax, rows)
    ax.set(
        xlabel="BMRS_U: number of bits $p_1$ (the noise is confined to below $2^{-p_1}$)",
        ylabel="Accuracy, share removed (%)",
    )
    ax.set_ylim(0, 100)
    ax.xaxis.set_major_locator(MultipleLocator(2))
    _finish(figure, ax, _title(rows))
    return figure


def accuracy_by_size(rows: Sequence[Row]) -> Figure | None:
    """
    Accuracy against the parameters removed by pruning in training, by settings and criterion.

    :param rows: runs of one data set and network.
    :return: the figure; none where no run was pruned in training.
    """
    table = continuous_table([row for row in rows if row.get("criterion") is not None])
    if table.empty:
        return None
    figure, ax = _figure(7.2, 4.0)
    settings = ordered(table["settings"])
    for line in table.to_dict("records"):
        color, _, marker = STYLES.get(line["criterion"], _OTHER_STYLE)
        hollow = settings.index(line["settings"]) == 0
        ax.errorbar(
            line["parameters removed"],
            line["accuracy"],
            xerr=_bar(line["parameters removed sd"]),
            yerr=_bar(line["accuracy sd"]),
            fmt=marker,
            color=color,
            markerfacecolor="white" if hollow else color,
            markerfacecoloralt="white",
            fillstyle=_FILLS[settings.index(line["settings"]) % len(_FILLS)],
            markersize=8,
            capsize=3,
            linewidth=1.2,
            label=f"{line['criterion']}, {line['settings']}, {_seeds(line['seeds'])}",
        )
    _draw_unpruned(ax, rows)
    ax.set(xlabel="Parameters removed (%)", ylabel="Test accuracy (%)")
    ax.margins(0.12)
    _finish(figure, ax, _place(rows))
    return figure


def _figure(width: float, height: float, columns: int = 1, **grid: Any) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, gridspec_kw=grid)[0]
    for ax in axes:
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def _finish(figure: Figure, ax: Axes, heading: str, **legend: Any) -> None:
    """A title, and a legend beside the axes, where it hides nothing."""
    ax.set_title(heading)
    figure.legend(loc="outside right upper", fontsize=8, title_fontsize=8, handlelength=3, frameon=False, **legend)


def _title(rows: Sequence[Row]) -> str:
    return f"{_place(rows)} ({_seeds(len({row['seed'] for row in rows}))})"


def _place(rows: Sequence[Row]) -> str:
    return f"{rows[0]['data']}, {rows[0]['network']}"


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number > 1)}"


def _draw_unpruned(ax: Axes, rows: Sequence[Row]) -> None:
    means = Unpruned(rows).means
    for (_, _, settings), accuracy in means.items():
        label = "Without noise" if len(means) == 1 else f"Without noise, {settings}"
        ax.axhline(accuracy, color="#444444", linestyle=(0, (4, 3)), linewidth=1, zorder=1, label=label)


def _percent(values: Iterable[Any]) -> np.ndarray[Any, Any]:
    return 100 * np.asarray(list(values), dtype=float)


def _bar(deviation: float) -> float | None:
    return None if pd.isna(deviation) else deviation
