# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Tables of the results: means and standard deviations over seeds, in percent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

Row = dict[str, Any]

# In which order tables and figures name things; what is not here comes after.
ORDER = (
    *("digits", "mnist", "fashion_mnist", "cifar10", "mlp-8x100", "mlp-2x150", "mlp-6x150", "mlp-6x50", "lenet5"),
    *("paper", "compress", "released", "released_images", "recommended"),
    *("BMRS_N", "BMRS_U-8", "BMRS_U-4", "SNR", "PosteriorMean", "WeightNorm", "Saliency-taylor", "Saliency-fisher"),
    *("paper's code", "1 nat", "exact, even odds"),
)
TIMES = ("step (ms)", "with noise", "pruned", "inference (ms)", "inference, pruned", "CPU minutes")
MEASURES = ("accuracy", "units removed", "parameters removed", "MACs removed")

# Runs without noise by which settings are measured that have none of their own, and whose are the images.
_UNPRUNED = {"compress": "paper", "recommended": "released", "released_images": "released"}

# What has to be alike in runs for their mean over seeds.
SETUP = ("epochs", "batch_size", "lr", "noise_lr", "kl_weight", "odds", "num_train")

# Between which units are counted by their change in log evidence, in nats.
_EVIDENCE = {"below −30": -math.inf, "−30 to −1": -30.0, "−1 to −0.1": -1.0, "−0.1 to 0": -0.1, "0 or more": 0.0}


def continuous_table(rows: Sequence[Row]) -> pd.DataFrame:
    """
    What pruning in training gave: a line for each data set, network, settings and criterion.

    :param rows: the results.
    :return: the setup, the epochs as those of training and of fine-tuning; how many seeds; means over them of the
        accuracy, and of what was removed, each with its standard deviation in a column ``... sd`` (missing for one
        seed); in percent. ``unpruned`` is the accuracy of the network trained without noise, where there is a run of
        it.
    """
    frame = pd.DataFrame([measured(row) for row in rows if row["experiment"] == "continuous"])
    if frame.empty:
        return frame
    unpruned = Unpruned(rows)
    table = over_seeds(frame, ["data", "network", "settings", "criterion", *SETUP], MEASURES)
    places = zip(table["data"], table["network"], table["settings"])
    return table.assign(unpruned=pd.Series([unpruned.get(place) for place in places], dtype=float))


def stop_table(rows: Sequence[Row]) -> pd.DataFrame:
    """
    Where the criteria that decide stop, after training without pruning: a line for each.

    :param rows: the results.
    :return: as :func:`continuous_table`, without fine-tuning; MACs are not counted.
    """
    return _stops(
        rows,
        "criterion",
        lambda row: [(name, curve["stop"]) for name, curve in (row.get("curves") or {}).items() if curve.get("stop")],
    )


def decision_table(rows: Sequence[Row]) -> pd.DataFrame:
    """
    What BMRS_N removes by each rule of decision, after training without pruning; how much of it is prior odds.

    :param rows: the results.
    :return: as :func:`stop_table`, by rule.
    """
    return _stops(rows, "rule", lambda row: [(stop["rule"], stop) for stop in row.get("odds_stops") or []])


def evidence_table(rows: Sequence[Row]) -> pd.DataFrame:
    """
    How many units have how much evidence for removal by itself, after training without pruning.

    :param rows: the results.
    :return: a line for each data set, network and settings: how many seeds; how many units of all of them have a change
        in log evidence, exact and of BMRS_N, between which nats.
    """
    where = ["data", "network", "settings"]
    lines = []
    for row in rows:
        if evidence := row.get("delta_evidence"):
            of_units = pd.Series(list(itertools.chain.from_iterable(evidence.values())), dtype=float)
            bins = pd.cut(of_units, [*_EVIDENCE.values(), math.inf], right=False, labels=list(_EVIDENCE))
            lines.append({name: row[name] for name in (*where, "seed")} | bins.value_counts().to_dict())
    if not lines:
        return pd.DataFrame()
    groups = pd.DataFrame(lines).groupby(where, sort=False)
    table = groups[list(_EVIDENCE)].sum().assign(seeds=groups["seed"].nunique()).reset_index()
    return table.sort_values(where, key=lambda names: names.map(rank), ignore_index=True)


class Unpruned:
    """
    The mean accuracy of runs without noise, and so without pruning, in percent.

    :param rows: the results.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        without: dict[tuple[str, str, str], list[float]] = {}
        for row in rows:
            if row.get("criterion") is None and row.get("accuracy") is not None:
                without.setdefault((row["data"], row["network"], row["settings"]), []).append(row["accuracy"])
        self.means = {place: 100 * sum(values) / len(values) for place, values in without.items()}

    def get(self, place: tuple[str, str, str]) -> float | None:
        """
        That of a data set, a network and settings; of settings without such a run, that by which they are measured.

        :param place: their names.
        """
        data, network, settings = place
        return self.means.get(place, self.means.get((data, network, _UNPRUNED.get(settings, settings))))


def time_table(rows: Sequence[Row]) -> pd.DataFrame:
    """
    What noise, and pruning, make of the time that a network takes, on the machine of each run.

    :param rows: the results.
    :return: a line for each data set, network, settings and criterion: how many seeds; the milliseconds of a step of
        training without noise, on 32 examples, and what noise, and pruning by compaction, multiply them by; the
        milliseconds in which 128 examples are classified, and what pruning multiplies those by; minutes of processor
        time of a run.
    """
    by = ["data", "network", "settings", "criterion"]
    lines = []
    for row in rows:
        steps = row.get("step_milliseconds")
        if row["experiment"] != "continuous" or not steps or row.get("criterion") is None:
            continue
        lines.append(
            {name: row[name] for name in (*by, "seed")}
            | {
                "step (ms)": steps["plain"],
                "with noise": steps["noisy"] / steps["plain"],
                "pruned": steps["compact"] / steps["plain"],
                "inference (ms)": row["milliseconds"],
                "inference, pruned": row["milliseconds_left"] / row["milliseconds"],
                "CPU minutes": row["cpu_seconds"] / 60,
            }
        )
    return over_seeds(pd.DataFrame(lines), by, TIMES) if lines else pd.DataFrame()


def correlation_table(rows: Sequence[Row]) -> pd.DataFrame:
    """
    Spearman's rank correlations of BMRS_N and of BMRS_U with the signal-to-noise ratio and the other criteria.

    :param rows: the results.
    :return: a line for each pair, network and settings; means over seeds, with standard deviations.
    """
    lines = [
        {name: row[name] for name in ("data", "network", "settings", "seed")}
        | {"criterion": criterion, "with": other, "correlation": matrix[criterion][other]}
        for row in rows
        if (matrix := row.get("rank_correlations"))
        for criterion in matrix
        if criterion.startswith("BMRS")
        for other in matrix
        if rank(other) > rank(criterion)
    ]
    by = ["data", "network", "settings", "criterion", "with"]
    return over_seeds(pd.DataFrame(lines), by, ["correlation"]) if lines else pd.DataFrame()


def markdown(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """
    A table in Markdown, of text to the left and numbers to the right.

    :param table: the table; a column ``x sd`` is shown as ± behind ``x``.
    :param columns: what to show.

    Example::

        >>> print(markdown(pd.DataFrame({"a": ["x"], "b": [1.25], "b sd": [0.5]}), ["a", "b"]))
        | a | b |
        | :-- | --: |
        | x | 1.2 ± 0.5 |
    """
    cells = [[_cell(line, name) for name in columns] for line in table.to_dict("records")]
    numeric = [pd.api.types.is_numeric_dtype(table[name]) for name in columns]
    lines = [list(columns), ["--:" if right else ":--" for right in numeric], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ordered(names: Iterable[str]) -> list[str]:
    """
    Each name once, in the order of tables and figures.

    :param names: of data sets, networks, settings or criteria.
    """
    return sorted(dict.fromkeys(names), key=rank)


def rank(name: str) -> tuple[int, str]:
    """
    What to sort by, for the order of tables and figures.

    :param name: of a data set, network, settings, criterion or rule.
    """
    return (ORDER.index(name), "") if name in ORDER else (len(ORDER), name)


def _cell(line: dict[Any, Any], name: str) -> str:
    value, deviation = line[name], line.get(f"{name} sd")
    if pd.isna(value):
        return "–"
    if not isinstance(value, float):
        return str(value)
    digits = 2 if name in (*TIMES, "correlation") and abs(value) < 10 else 1
    shown = f"{value:.{digits}f}"
    return shown if deviation is None or pd.isna(deviation) else f"{shown} ± {deviation:.{digits}f}"


def measured(row: Row) -> dict[str, Any]:
    """
    What the table of runs has of one, in percent.

    :param row: of the results.
    """
    removed = {
        f"{label} removed": _removed(row.get(name), row.get(f"{name}_left"))
        for label, name in (("units", "units"), ("parameters", "parameters"), ("MACs", "macs"))
    }
    known = {name: row[name] for name in ("data", "network", "settings", "seed")}
    known["criterion"] = row.get("criterion") or "none"
    setup = {name: _hashable(row.get(name)) for name in SETUP}
    setup["epochs"] = " + ".join(str(row[name]) for name in ("epochs", "fine_tune_epochs") if row.get(name))
    return {**known, **setup, "accuracy": _percent(row, "accuracy"), **removed}


def _removed(before: float | None, left: float | None) -> float | None:
    return None if before is None or left is None else 100 * (1 - left / before)


def _percent(values: dict[str, Any], name: str) -> float | None:
    value = values.get(name)
    return None if value is None else 100 * value


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else str(value)


def _stops(rows: Sequence[Row], name: str, stops: Any) -> pd.DataFrame:
    """A line for each named stop of the runs after training."""
    measures = {"accuracy": "accuracy", "units removed": "units_removed", "parameters removed": "parameters_removed"}
    lines = [
        {
            **{column: row[column] for column in ("data", "network", "settings", "seed")},
            name: label,
            **{measure: _percent(stop, column) for measure, column in measures.items()},
            "unpruned": _percent(row, "accuracy_unpruned"),
        }
        for row in rows
        if row["experiment"] == "post_training"
        for label, stop in stops(row)
    ]
    if not lines:
        return pd.DataFrame()
    return over_seeds(pd.DataFrame(lines), ["data", "network", "settings", name], ["unpruned", *measures])


def over_seeds(frame: pd.DataFrame, by: list[str], measures: Sequence[str]) -> pd.DataFrame:
    """
    Means and standard deviations over the seeds of what is alike otherwise, in order.

    :param frame: a line for each run, with its ``seed``.
    :param by: columns of what is to be alike.
    :param measures: columns of numbers; the deviation of ``x`` goes to a column ``x sd``.
    """
    values = {name: pd.to_numeric(frame[name]) for name in measures}
    groups = frame.assign(**values).groupby(by, sort=False, dropna=False)
    parts: dict[str, pd.Series[Any]] = {"seeds": groups["seed"].nunique()}
    for name in measures:
        parts |= {name: groups[name].mean(), f"{name} sd": groups[name].std()}
    table = pd.DataFrame(parts).reset_index()
    names = [name for name in by if name not in SETUP]
    order = sorted(range(len(table)), key=lambda line: [rank(table[name].iloc[line]) for name in names])
    return table.iloc[order].reset_index(drop=True)
