# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Results as a page of HTML that stands by itself: to keep, to send, to open on a phone.

Nothing is fetched: styles are in the page, and figures are in it as SVG. There is no script.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_bmrs.plotting.canvas import pyplot

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches; at some 16 pixels a letter, the width of a phone's screen.
_WIDTH = 4.6
_MOST_ROWS = 200
_LONG = 24  # letters
_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b;
       background: #fff; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
p.note { color: #555; margin: 0.5rem 0; }
img { display: block; width: 100%; max-width: 36rem; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
tbody th { text-align: left; font-weight: 600; position: sticky; left: 0; background: #fff; }
.words { text-align: left; }
.long { text-align: left; white-space: normal; min-width: 14rem; }
table.facts th, table.facts td { text-align: left; white-space: normal; vertical-align: top; }
"""


@dataclass(frozen=True)
class Part:
    """
    A part of a page.

    :param heading: above it.
    :param content: a table, a figure, or facts by their names.
    :param note: how it is read.
    """

    heading: str
    content: pd.DataFrame | Figure | Mapping[str, Any]
    note: str = ""


def stacked(*heights: float) -> tuple[Figure, list[Axes]]:
    """
    A figure of axes one below the other, as narrow as a phone's screen; it is not pyplot's to keep.

    :param heights: of each, in inches.
    :raises ImportError: without matplotlib.

    Example::

        >>> from pyro_bmrs.plotting.html_report import stacked
        >>> figure, axes = stacked(2.0, 3.0)
        >>> len(axes), figure.get_size_inches().tolist()
        (2, [4.6, 5.0])
    """
    figure = pyplot().Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    return figure, list(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])


def report(title: str, headline: str, *parts: Part, path: str | os.PathLike[str] | None = None) -> str:
    """
    A page that stands by itself.

    :param title: what is reported.
    :param headline: the answer, in a sentence.
    :param parts: what it rests on.
    :param path: the file that the page is written to; none by default.
    :return: the page.

    Example::

        >>> from pyro_bmrs.plotting.html_report import Part, report
        >>> page = report("Which <b>?", "The second.", Part("Numbers", {"ΔF (nats)": 2.6997}))
        >>> page.startswith("<!DOCTYPE html>"), "<h1>Which &lt;b&gt;?</h1>" in page, ">2.70</td>" in page
        (True, True, True)
    """
    body = "\n".join(line for part in parts for line in _lines(part))
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(headline)}</p>\n{body}\n</body>\n</html>\n"
    )
    if path is not None:
        Path(path).write_text(page, encoding="utf-8")
    return page


def _lines(part: Part) -> Iterator[str]:
    import pandas as pd

    yield f"<h2>{escape(part.heading)}</h2>"
    if part.note:
        yield f'<p class="note">{escape(part.note)}</p>'
    if isinstance(part.content, Mapping):
        rows = (f"<tr><th>{escape(name)}</th>{_cell(value, 'words')}</tr>" for name, value in part.content.items())
        yield f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'
    elif isinstance(part.content, pd.DataFrame):
        yield from _table(part.heading, part.content)
    else:
        yield f'<img alt="{escape(part.heading)}" src="data:image/svg+xml;base64,{_svg(part.content)}">'


def _svg(figure: Figure) -> str:
    """In base 64: as a picture it shares no names with other pictures of the page."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return base64.b64encode(drawn.getvalue()).decode("ascii")


def _table(heading: str, frame: pd.DataFrame) -> Iterator[str]:
    if len(frame) > _MOST_ROWS:
        yield f'<p class="note">The first {_MOST_ROWS} of {len(frame):,} rows.</p>'
    names = [frame.index.name or "", *frame.columns]
    # Numbers of a row keep their types: a row of pandas has one.
    columns = [frame[name].tolist()[:_MOST_ROWS] for name in frame.columns]
    kinds = ["words", *map(_kind, columns)]
    head = "".join(f'<th class="{kind}">{escape(str(name))}</th>' for kind, name in zip(kinds, names))
    body = "".join(
        f"<tr><th>{escape(_words(label))}</th>{''.join(map(_cell, row, kinds[1:]))}</tr>\n"
        for label, *row in zip(frame.index.tolist(), *columns)
    )
    yield f'<div class="wide" role="region" tabindex="0" aria-label="{escape(heading)}">'
    yield f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"


def _kind(column: Sequence[Any]) -> str:
    """How a column is set: words that are long may go over several lines."""
    lengths = [len(value) for value in column if isinstance(value, str)]
    return "number" if not lengths else "long" if max(lengths) > _LONG else "words"


def _cell(value: Any, kind: str) -> str:
    return f'<td class="{kind}">{escape(_words(value))}</td>'


def _words(value: Any) -> str:
    """A value as it is read: nats and shares to two digits, unless these are zeros."""
    if isinstance(value, tuple):
        return " ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if not isinstance(value, Real):
        return str(value)
    number = float(value)
    if math.isnan(number):
        return "–"
    return f"{number:,.2f}" if number == 0 or 0.1 <= abs(number) < 1e6 else f"{number:#.2g}"
