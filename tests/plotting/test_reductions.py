# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import pyro.distributions as dist
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from pyro_bmrs import ReductionError
from pyro_bmrs.plotting import FULL_COLOR, REDUCED_COLOR, plot_check, plot_posterior, plot_reduction
from tests.plotting.results import check, end, posteriors, reduction, two_slopes


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


def test_what_the_model_says_is_marked_with_two_standard_errors() -> None:
    said = SimpleNamespace(
        elementwise={"a": torch.tensor([1.0, -2.0])}, elementwise_error={"a": torch.tensor([0.1, 0.2])}
    )
    ax = plot_reduction(reduction(said, a=torch.tensor([1.5, -2.5])))
    (marks,) = [line for line in ax.lines if line.get_marker() == "D"]
    assert marks.get_xdata() == pytest.approx([1.0, -2.0])
    (bars,) = [lines for lines in ax.collections if isinstance(lines, LineCollection)]
    assert [s[1, 0] - s[0, 0] for s in bars.get_segments()] == pytest.approx([0.4, 0.8])
    assert "of the model" in [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize(("smallest", "scale"), [(-20.0, "linear"), (-2e4, "symlog")])
def test_what_is_far_out_does_not_hide_what_is_near(smallest: float, scale: str) -> None:
    ax = plot_reduction(reduction(a=torch.tensor([smallest, 0.5, 2.0])))
    assert ax.get_xscale() == scale
    left, right = ax.get_xlim()
    assert left < smallest and right > 2.0
    at, of_two = (ax.transAxes.inverted().transform(ax.transData.transform((x, 0.0)))[0] for x in (0.0, 2.0))
    assert of_two - at > 0.03  # of the width of the axes
    assert all(left <= tick <= right for tick in ax.get_xticks()) or scale == "linear"


def test_an_infinite_change_goes_to_the_edge_and_says_so() -> None:
    ax = plot_reduction(reduction(a=torch.tensor([-torch.inf, 2.0])))
    left, _ = ax.get_xlim()
    assert left > -3
    assert [length for length, _ in bars_by_place(ax)] == pytest.approx([left, 2.0])
    assert [text.get_text() for text in ax.texts] == ["−∞"]


def test_intervals_are_quantiles_of_either_posterior() -> None:
    state = torch.get_rng_state()
    ax = plot_posterior(two_slopes(), labels={"slopes": ["age", "sex"]})
    assert torch.equal(torch.get_rng_state(), state)
    full, reduced = (line for line in ax.lines if line.get_marker() in ("o", "s"))
    assert full.get_xdata() == pytest.approx([0.5, -2.0], abs=0.1)
    assert reduced.get_xdata() == pytest.approx([0.0, -1.5], abs=0.1)
    wide, narrow = (lines.get_segments() for lines in ax.collections[:2])
    assert [s[1, 0] - s[0, 0] for s in wide] == pytest.approx([2 * 1.96, 1.96], rel=0.1)
    assert [s[1, 0] - s[0, 0] for s in narrow] == pytest.approx([2 * 0.674, 0.674], rel=0.1)
    assert tick_labels(ax) == ["age", "sex"]


def test_elements_that_cannot_be_parted_have_a_mark_for_each_number() -> None:
    share = {"shares": dist.Dirichlet(torch.ones(3))}
    assert tick_labels(plot_posterior(posteriors(share, share, shares=()))) == ["shares, 0", "shares, 1", "shares, 2"]


def test_a_posterior_that_is_not_known_by_itself_is_an_error() -> None:
    with pytest.raises(ReductionError, match=r"\['slopes'\].*to_arviz"):
        plot_posterior(posteriors({}, {}, slopes=(2,)))


def test_a_check_has_both_ends_and_what_was_read_off() -> None:
    evidence, tails = plot_check(check())
    points = [line for line in evidence.lines if line.get_marker() in ("o", "s", "D")]
    assert [float(point.get_xdata()[0]) for point in points] == pytest.approx([-9.0, -10.5, -10.2])
    words = [text.get_text() for text in evidence.texts]
    assert words == ["ΔF = -1.50 ± 0.071", "ΔF = -1.20"]
    assert [line.get_marker() for line in tails.lines if line.get_marker() in ("o", "X")] == ["o", "o", "X"]


def test_weights_without_a_tail_are_said_in_words_and_draws_have_no_weights() -> None:
    _, tails = plot_check(check(full=end(-9.0, k=-torch.inf), guide_pareto_k=None))
    assert [text.get_text() for text in tails.texts] == ["weights without a tail"]
    assert tick_labels(tails) == ["full model", "reduced model"]
