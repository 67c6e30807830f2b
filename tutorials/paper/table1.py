# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The paper's Table 1, six networks and seven criteria, beside what the results have of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from .released import COUNT, released_count
from .tables import Row, measured, over_seeds


class Published(NamedTuple):
    """Percents of the paper's, over ten seeds; no deviation where it gives none."""

    removed: float
    removed_sd: float | None
    accuracy: float
    accuracy_sd: float | None


# By data set and network: of each criterion the parameters removed and the test accuracy. D. Wright, C. Igel and
# R. Selvan (2024), *BMRS: Bayesian model reduction for structured pruning*, Table 1, https://arxiv.org/abs/2406.01345.
# Where the paper names so many hidden layers of an MLP, its code has one more.
PUBLISHED = {
    ("mnist", "mlp-8x100"): {
        "none": Published(0, None, 97.43, 0.14),
        "WeightNorm": Published(43.11, 2.06, 10.39, 0.32),
        "PosteriorMean": Published(52.08, 1.71, 96.88, 0.15),
        "SNR": Published(58.57, 2.01, 96.92, 0.08),
        "BMRS_N": Published(48.86, 1.32, 96.95, 0.19),
        "BMRS_U-8": Published(48.73, 1.90, 96.93, 0.16),
        "BMRS_U-4": Published(54.47, 1.74, 96.99, 0.13),
    },
    ("fashion_mnist", "mlp-2x150"): {
        "none": Published(0, None, 88.17, 0.20),
        "WeightNorm": Published(87.86, 2.27, 18.23, 10.22),
        "PosteriorMean": Published(91.76, 0.81, 85.59, 0.26),
        "SNR": Published(99.83, 0.00, 10.00, None),
        "BMRS_N": Published(93.20, 0.66, 84.99, 0.35),
        "BMRS_U-8": Published(93.02, 0.81, 85.01, 0.32),
        "BMRS_U-4": Published(91.57, 0.71, 85.79, 0.34),
    },
    ("cifar10", "mlp-6x150"): {
        "none": Published(0, None, 44.94, 0.40),
        "WeightNorm": Published(42.89, 2.64, 10.00, None),
        "PosteriorMean": Published(77.99, 1.54, 43.39, 0.46),
        "SNR": Published(75.93, 1.26, 43.97, 0.46),
        "BMRS_N": Published(76.36, 1.08, 43.59, 0.29),
        "BMRS_U-8": Published(77.17, 0.98, 43.45, 0.42),
        "BMRS_U-4": Published(76.63, 0.94, 44.06, 0.40),
    },
    ("mnist", "lenet5"): {
        "none": Published(0, None, 99.07, 0.09),
        "WeightNorm": Published(83.42, 1.92, 11.35, None),
        "PosteriorMean": Published(88.29, 1.00, 51.30, 41.12),
        "SNR": Published(92.66, 5.77, 62.70, 41.93),
        "BMRS_N": Published(86.90, 1.15, 95.59, 0.94),
        "BMRS_U-8": Published(86.11, 1.37, 95.27, 1.02),
        "BMRS_U-4": Published(87.58, 1.01, 96.66, 0.59),
    },
    ("fashion_mnist", "lenet5"): {
        "none": Published(0, None, 89.16, 0.27),
        "WeightNorm": Published(83.62, 1.69, 10.00, None),
        "PosteriorMean": Published(89.71, 0.56, 50.93, 33.45),
        "SNR": Published(98.47, 3.45, 17.01, 21.03),
        "BMRS_N": Published(88.02, 1.00, 77.90, 2.44),
        "BMRS_U-8": Published(87.61, 0.72, 77.23, 3.49),
        "BMRS_U-4": Published(88.72, 0.73, 81.10, 1.50),
    },
    ("cifar10", "lenet5"): {
        "none": Published(0, None, 67.62, 0.77),
        "WeightNorm": Published(52.29, 2.18, 10.00, None),
        "PosteriorMean": Published(66.19, 1.36, 65.83, 0.90),
        "SNR": Published(70.29, 2.02, 67.68, 0.52),
        "BMRS_N": Published(62.87, 1.64, 66.14, 0.70),
        "BMRS_U-8": Published(62.54, 1.49, 66.28, 1.07),
        "BMRS_U-4": Published(68.07, 1.95, 67.66, 0.59),
    },
}
BMRS = ("BMRS_N", "BMRS_U-8", "BMRS_U-4")
DEFAULT = "compress"

_MEASURES = (COUNT, "accuracy")
# How many of the paper's standard deviations a mean may be away.
_DEVIATIONS = 2


def paper_table(rows: Sequence[Row]) -> pd.DataFrame:
    """
    The paper's Table 1 beside the results: a line for each network and criterion, and for the project's default.

    :param rows: the results.
    :return: how many seeds there are, 0 where there is no run yet; the parameters removed as the released code counts
        them, and the accuracy, with standard deviations over seeds; the same of the paper; whether both means are
        within two of its standard deviations (missing where there is no run, or it gives no deviation). In percent.
    """
    settings = dict.fromkeys(next(iter(PUBLISHED.values())), "paper") | {DEFAULT: DEFAULT}
    found = [
        {**measured(row), COUNT: released_count(row["network"], row["sites"], row["data"])}
        for row in rows
        if row["experiment"] == "continuous"
        and (row["data"], row["network"]) in PUBLISHED
        and settings.get(row.get("criterion") or "none") == row["settings"]
    ]
    by = ["data", "network", "criterion"]
    ours = {}
    if found:
        table = over_seeds(pd.DataFrame(found), by, _MEASURES)
        ours = {tuple(line[name] for name in by): line for line in table.to_dict("records")}
    lines = []
    for (data, network), published in PUBLISHED.items():
        for criterion in (*published, DEFAULT):
            line: dict[Any, Any] = {"data": data, "network": network, "criterion": criterion, "seeds": 0}
            line |= ours.get((data, network, criterion), {})
            lines.append(line | _beside(line, published.get(criterion)))
    theirs = [column for name in _MEASURES for column in (f"paper's {name}", f"paper's {name} sd")]
    measures = [column for name in _MEASURES for column in (name, f"{name} sd")]
    return pd.DataFrame(lines).reindex(columns=[*by, "seeds", *measures, *theirs, "agrees"])


def _beside(line: dict[str, Any], published: Published | None) -> dict[str, Any]:
    if published is None:
        return {}
    removed, removed_sd, accuracy, accuracy_sd = published
    theirs = {COUNT: (removed, removed_sd), "accuracy": (accuracy, accuracy_sd)}
    columns: dict[str, Any] = {}
    for name, (mean, deviation) in theirs.items():
        columns |= {f"paper's {name}": mean, f"paper's {name} sd": deviation}
    known = [
        abs(line[name] - mean) <= _DEVIATIONS * deviation
        for name, (mean, deviation) in theirs.items()
        if name in line and deviation is not None
    ]
    if len(known) == len(theirs):
        columns["agrees"] = all(known)
    return columns


def agreement(table: pd.DataFrame) -> str:
    """
    In how many lines of BMRS the means are within two of the paper's standard deviations, in both columns.

    :param table: see :func:`paper_table`.

    Example::

        >>> agreement(paper_table([]))
        'BMRS within two standard deviations of the paper in both columns: 0 of 18 lines; 18 have no run yet.'
    """
    lines = table[table["criterion"].isin(BMRS)]
    agreeing, lacking = int((lines["agrees"] == True).sum()), int((lines["seeds"] == 0).sum())  # noqa: E712
    return (
        f"BMRS within two standard deviations of the paper in both columns: {agreeing} of {len(lines)} lines; "
        f"{lacking or 'none'} {'has' if lacking == 1 else 'have'} no run yet."
    )


def domination_table(table: pd.DataFrame, num_test: int = 10_000) -> pd.DataFrame:
    """
    The project's default beside BMRS_N with the paper's settings, where there are runs of both.

    :param table: see :func:`paper_table`.
    :param num_test: how many test images there are.
    :return: a line for each network: what both remove and their accuracies, and whether the default dominates: no less
        of one within the error of a test set, and more of the other.
    """
    lines = []
    for (data, network), part in table.groupby(["data", "network"], sort=False):
        cell = part.set_index("criterion")
        default, papers = (dict(cell.loc[name]) for name in (DEFAULT, "BMRS_N"))
        if not (default["seeds"] and papers["seeds"]):
            continue
        shares = [line["accuracy"] / 100 for line in (default, papers)]
        error = 100 * math.hypot(*(math.sqrt(share * (1 - share) / num_test) for share in shares))
        gains = {name: default[name] - papers[name] for name in _MEASURES}
        no_worse = gains["accuracy"] >= -error and gains[COUNT] >= 0
        better = gains["accuracy"] > error or gains[COUNT] > 0
        columns = {
            f"{name}, {by}": line[name] for by, line in ((DEFAULT, default), ("BMRS_N", papers)) for name in _MEASURES
        }
        lines.append({"data": data, "network": network, **columns, "dominates": bool(no_worse and better)})
    return pd.DataFrame(lines)
