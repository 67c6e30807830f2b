# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from torch import Tensor

from pyro_bmrs import ReductionError
from pyro_bmrs.plotting import FULL_COLOR, REDUCED_COLOR, plot_reduction
from pyro_bmrs.tables import element_labels


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def reduction(**elementwise: Tensor) -> SimpleNamespace:
    labels = {name: element_labels(name, values.shape) for name, values in elementwise.items()}
    return SimpleNamespace(elementwise=elementwise, element_labels=labels)


def bars_by_place(ax: Axes) -> list[tuple[float, tuple[float, ...]]]:
    """Length and colour of each bar, from the top of the figure."""
    bars = sorted(ax.patches, key=lambda bar: bar.get_y() + bar.get_height() / 2)
    return [(bar.get_width(), to_rgba(bar.get_facecolor())) for bar in bars]


def tick_labels(ax: Axes) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def test_a_bar_is_as_long_as_the_change_in_evidence_and_its_colour_tells_the_sign() -> None:
    delta = torch.tensor([[1.5, -2.0, 0.25], [-4.0, 3.0, -0.5]])
    ax = plot_reduction(reduction(weights=delta, scale=torch.tensor(-1.0)))
    bars = bars_by_place(ax)
    lengths = [*delta.flatten().tolist(), -1.0]
    assert [length for length, _ in bars] == pytest.approx(lengths)
    assert [color for _, color in bars] == [to_rgba(REDUCED_COLOR if x > 0 else FULL_COLOR) for x in lengths]
    assert tick_labels(ax) == [f"weights[{i}, {j}]" for i in range(2) for j in range(3)] + ["scale"]
    assert "nats" in ax.get_xlabel()
    assert ax.yaxis_inverted()


def test_bars_carry_the_names_they_are_given() -> None:
    ax = plot_reduction(reduction(a=torch.ones(2), b=torch.ones(2)), labels={"b": ["age", "sex"]})
    assert tick_labels(ax) == ["a[0]", "a[1]", "age", "sex"]


def test_it_draws_on_the_axes_it_is_given_and_opens_no_figure_then() -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert plot_reduction(reduction(a=torch.ones(2)), right) is right
    assert len(right.patches) == 2
    assert not left.patches
    assert len(plt.get_fignums()) == 1


def test_a_tensor_that_requires_grad_is_drawn() -> None:
    ax = plot_reduction(reduction(a=torch.ones(2, requires_grad=True) * 2))
    assert [length for length, _ in bars_by_place(ax)] == [2.0, 2.0]


def test_of_many_elements_some_are_named_and_all_are_drawn() -> None:
    ax = plot_reduction(reduction(a=torch.linspace(-1.0, 1.0, 1001)))
    assert len(ax.patches) == 1001
    assert 30 <= len(ax.get_yticks()) <= 60
    assert tick_labels(ax)[:2] == ["a[0]", "a[17]"]


@pytest.mark.parametrize(
    "labels, message",
    [({"a": ["age"]}, r"1 names for the 2 elements of site 'a'"), ({"b": ["age", "sex"]}, r"'b'.*\['a'\]")],
)
def test_labels_that_fit_no_site_are_refused(labels: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ReductionError, match=message):
        plot_reduction(reduction(a=torch.ones(2)), labels=labels)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install pyro_bmrs\[plot\]"):
        plot_reduction(reduction(a=torch.ones(2)))


def test_of_many_elements_the_longest_of_each_colour_among_neighbours_is_drawn() -> None:
    delta = torch.linspace(-1.0, 1.0, 60_000)[torch.randperm(60_000)]
    delta[12_345], delta[54_321] = 7.0, -9.0
    ax = plot_reduction(
        SimpleNamespace(elementwise={"w": delta}, element_labels={"w": [str(i) for i in range(60_000)]})
    )
    assert ax.get_ylabel() == "each bar is the longest of 30"
    longest = delta.reshape(-1, 30)
    for lines, expected in zip(ax.collections, (longest.amax(1), longest.amin(1))):
        ends = [segment[1] for segment in lines.get_segments()]
        assert [end[0] for end in ends] == pytest.approx(expected.tolist())
        assert all(delta[int(place)] == pytest.approx(value) for value, place in ends)
