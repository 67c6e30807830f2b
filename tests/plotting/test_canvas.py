# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from pyro_bmrs import ReductionError
from pyro_bmrs.plotting.canvas import FULL_COLOR, REDUCED_COLOR, STYLES, draw_bars, figure_of, names_of, pyplot


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install pyro_bmrs\[plot\]"):
        pyplot()


@pytest.mark.parametrize(
    "labels, message",
    [({"a": ["age"]}, r"1 names for the 2 elements of site 'a'"), ({"b": ["age", "sex"]}, r"'b'.*\['a'\]")],
)
def test_labels_that_fit_no_site_are_refused(labels: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ReductionError, match=message):
        names_of(["a"], {"a": ["a[0]", "a[1]"]}, labels)


def test_of_many_elements_the_longest_of_each_colour_among_neighbours_is_drawn() -> None:
    delta = torch.linspace(-1.0, 1.0, 60_000)[torch.randperm(60_000)]
    delta[12_345], delta[54_321] = 7.0, -9.0
    _, ax = plt.subplots()
    draw_bars(ax, [str(place) for place in range(60_000)], delta.tolist(), (delta > 0).tolist(), ("up", "down"))
    assert ax.get_ylabel() == "each bar is the longest of 30"
    longest = delta.reshape(-1, 30)
    bars = [lines for lines in ax.collections if isinstance(lines, LineCollection)]
    for lines, expected in zip(bars, (longest.amax(1), longest.amin(1)), strict=True):
        ends = [segment[1] for segment in lines.get_segments()]
        assert [end[0] for end in ends] == pytest.approx(expected.tolist())
        assert all(delta[int(place)] == pytest.approx(value) for value, place in ends)


def grey(color: str) -> float:
    """How light a colour is without its hue, of 1 (CIE's relative luminance, Rec. 709)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_two_colours_of_all_figures_are_told_apart_in_grey() -> None:
    light, dark = sorted((grey(FULL_COLOR), grey(REDUCED_COLOR)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 2
    assert grey("#777777") == pytest.approx(grey("0.4667"), rel=1e-2)


def test_no_two_styles_share_a_colour_dashes_or_a_marker() -> None:
    for kind in zip(*STYLES):
        assert len(set(kind)) == len(STYLES)


def test_the_figure_of_a_part_is_the_whole() -> None:
    whole = plt.figure()
    part = whole.subfigures(1, 2)[0]
    assert figure_of(part.subplots()) is whole
