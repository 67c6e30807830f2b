# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The report: tables and figures of all results in a folder, and what is missing of them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from pyro_bmrs.errors import ReductionError

from .figures import (
    accuracy_by_bits,
    accuracy_by_bits_in_training,
    accuracy_by_size,
    accuracy_curves,
    rank_correlation_map,
)
from .released import COUNT, released_table
from .results import FILE, read_rows
from .sweep import read_jobs
from .table1 import agreement, domination_table, paper_table
from .tables import (
    MEASURES,
    TIMES,
    Row,
    continuous_table,
    correlation_table,
    decision_table,
    evidence_table,
    markdown,
    rank,
    stop_table,
    time_table,
)

Draw = Callable[[Sequence[Row]], Figure | None]

_CONFIGS = Path(__file__).parent / "configs"


def report(results: Path, output: Path) -> None:
    """
    Writes ``report.md`` with all tables and figures, each table as CSV and each figure as PNG besides.

    What is missing is in the report, and printed: runs of the sweeps that were begun, and values of runs.

    :param results: the folder of results.
    :param output: the folder to write to; made where there is none.
    :raises ReductionError: where there are no results.
    """
    rows = read_rows(results)
    if not rows:
        raise ReductionError(f"there are no results in {results / FILE}; python -m tutorials.paper run makes a row")
    output.mkdir(parents=True, exist_ok=True)
    missing = missing_parts(rows)
    sections = ["# Results\n", *_table_sections(rows, output), *_figure_sections(rows, output), "## Missing\n"]
    text = "\n".join([*sections, *(f"- {part}" for part in missing or ["nothing"]), ""])
    (output / "report.md").write_text(text, encoding="utf-8")
    print(f"{len(rows)} runs: {output / 'report.md'}")
    for part in missing:
        print(f"missing: {part}")


def missing_parts(rows: Sequence[Row]) -> list[str]:
    """
    What results lack: runs of the sweeps in ``configs`` of which there is at least one run, and values of runs.

    :param rows: the results.
    :return: a sentence for each thing that is missing.
    """
    keys = {row["key"] for row in rows}
    parts = []
    for path in sorted(_CONFIGS.glob("sweep-*.yaml")):
        jobs = read_jobs(path)
        lacking = [job for job in jobs if job.key not in keys]
        if 0 < len(lacking) < len(jobs):
            kinds = Counter((job.data, job.network, job.config.stem, job.experiment, job.criterion) for job in lacking)
            parts += [
                f"{path.name}: {count} run{'s' * (count > 1)} of {', '.join(str(name) for name in kind)}"
                for kind, count in kinds.items()
            ]
    for row in rows:
        names = ["accuracy", "parameters_left", "macs_left"]
        if row.get("criterion"):
            names.append("units_left")
        if row["experiment"] == "post_training" and row.get("criterion"):
            names += ["accuracy_unpruned", "curves", "rank_correlations", "p1", "odds_stops", "delta_evidence"]
        if lacks := [name for name in names if row.get(name) in (None, {}, [])]:
            parts.append(f"{row['key']}: {', '.join(lacks)}")
    return parts


def _table_sections(rows: Sequence[Row], output: Path) -> Iterator[str]:
    """Writes the tables that there are, and shows them."""
    after = ["seeds", "unpruned", *MEASURES[:3]]
    published = paper_table(rows)
    if published["seeds"].any():
        theirs = [f"paper's {name}" for name in (COUNT, "accuracy")]
        yield from _table_section(
            "The paper's Table 1",
            "Parameters removed as the released code counts them, and accuracy, beside the paper's; whether both means "
            "are within two of its standard deviations. In percent; 0 seeds are runs that have yet to be done. "
            + agreement(published),
            published,
            ["criterion", "seeds", COUNT, "accuracy", *theirs, "agrees"],
            output / "table1.csv",
        )
    default = domination_table(published)
    yield from _table_section(
        "The project's default beside the paper's settings",
        "Whether the default loses no accuracy within a standard error of the test set, removes no fewer parameters, "
        "and does better in one of both. In percent.",
        default,
        list(default.columns[2:]),
        output / "default.csv",
    )
    yield from _table_section(
        "Pruning in training",
        "Pruned in training, then trained on. In percent; mean ± standard deviation over seeds.",
        continuous_table(rows),
        ["settings", "criterion", "epochs", "seeds", "unpruned", *MEASURES],
        output / "summary.csv",
    )
    yield from _table_section(
        "Time",
        "What noise, and pruning, multiply the time of a step of training on 32 examples by, and pruning that of 128 "
        "examples classified; minutes of processor time of a run. The paper's Tables 3 and 4, on a GPU: noise "
        "multiplies a step by 8.3 (MLP) and 4.9 (LeNet-5).",
        time_table(rows),
        ["settings", "criterion", "seeds", *TIMES],
        output / "times.csv",
    )
    yield from _table_section(
        "Beside the code released with the paper",
        "The settings of its command line on MNIST; one seed each of the released code, which counts the parameters "
        "removed in a way of its own. In percent.",
        released_table(rows),
        ["criterion", "by", "epochs", *after, COUNT],
        output / "released.csv",
    )
    yield from _table_section(
        "Pruning after training",
        "Where criteria stop by themselves after training without pruning; no training after it. In percent.",
        stop_table(rows),
        ["settings", "criterion", *after],
        output / "stops.csv",
    )
    yield from _table_section(
        "How much the prior odds decide",
        "What BMRS_N removes after training by its rules of decision: prior log odds for removal of ½ log 2π (the "
        "paper's code), 1 nat and 0. In percent.",
        decision_table(rows),
        ["settings", "rule", *after],
        output / "decisions.csv",
    )
    yield from _table_section(
        "Rank correlations of criteria",
        "Spearman's, of the orders in which criteria remove units after training. The paper's Figures 3, 6 and 7.",
        correlation_table(rows),
        ["settings", "criterion", "with", "seeds", "correlation"],
        output / "correlations.csv",
    )
    evidence = evidence_table(rows)
    yield from _table_section(
        "Evidence of units",
        "How many units of all seeds, after training without pruning, have how much evidence for removal: the exact "
        "change in log evidence of BMRS_N, in nats.",
        evidence,
        list(evidence.columns[2:]),
        output / "evidence.csv",
    )


def _table_section(title: str, note: str, table: pd.DataFrame, columns: list[str], path: Path) -> Iterator[str]:
    if table.empty:
        return
    table.to_csv(path, index=False, float_format="%.4f")
    yield f"## {title}\n\n{note}\n"
    for (data, network), part in table.groupby(["data", "network"], sort=False):
        yield f"**{data}, {network}**\n\n{markdown(part, columns)}\n"


def _figure_sections(rows: Sequence[Row], output: Path) -> Iterator[str]:
    """Draws the figures that there are, and shows them."""
    after = [row for row in rows if row["experiment"] == "post_training"]
    yield from _figure_section(
        "Accuracy against parameters removed",
        "Pruned in training, then trained on; bars are standard deviations over seeds.",
        accuracy_by_size,
        _by(rows, "data", "network"),
        output,
        "continuous",
    )
    in_training = [row for row in rows if row["experiment"] == "continuous"]
    yield from _figure_section(
        "Accuracy and compression by the number of bits, in training",
        "Trained with BMRS_U at each number of bits; bands are standard deviations over seeds. The paper's Figure 4.",
        accuracy_by_bits_in_training,
        _by(in_training, "data", "network", "settings"),
        output,
        "trained_bits",
    )
    kinds: list[tuple[str, str, Draw, str]] = [
        (
            "Accuracy against compression",
            "Units removed one by one after training, in the order of each criterion; bands are standard deviations "
            "over seeds. The paper's Figures 2 and 5.",
            accuracy_curves,
            "curves",
        ),
        (
            "Rank correlation of criteria",
            "Of the orders in which criteria remove units; means over seeds. The paper's Figures 3, 6 and 7.",
            rank_correlation_map,
            "correlations",
        ),
        (
            "Accuracy and compression by the number of bits, after training",
            "Where BMRS_U stops after training; bands are standard deviations over seeds.",
            accuracy_by_bits,
            "bits",
        ),
    ]
    for title, note, draw, name in kinds:
        yield from _figure_section(title, note, draw, _by(after, "data", "network", "settings"), output, name)


def _figure_section(
    title: str, note: str, draw: Draw, groups: dict[tuple[str, ...], list[Row]], output: Path, name: str
) -> Iterator[str]:
    figures = {place: figure for place, of_place in groups.items() if (figure := draw(of_place)) is not None}
    if figures:
        yield f"## {title}\n\n{note}\n"
    for place, figure in figures.items():
        path = output / f"{'-'.join([name, *place])}.png"
        save(figure, path)
        yield f"![{title}: {', '.join(place)}]({path.name})\n"


def _by(rows: Sequence[Row], *names: str) -> dict[tuple[str, ...], list[Row]]:
    """The rows by some of their entries, in the order of tables."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return dict(sorted(groups.items(), key=lambda group: [rank(name) for name in group[0]]))


def save(figure: Figure, path: Path) -> None:
    """
    Writes a figure as PNG of 256 colours, a third of the bytes.

    :param figure: the figure.
    :param path: where to.
    """
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png")
    Image.open(pixels).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
