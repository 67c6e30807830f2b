# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.plotting import plot_compression, plot_rank_correlations, plot_trade_off, plot_units
from pyro_bmrs.pruning import AutoTruncatedLogNormal, attach_noise, compact, compaction_report
from tests.plotting.results import compression, correlations, methods, report


def test_no_line_goes_through_networks_as_noise_left_them() -> None:
    left, right = plot_compression(compression()).axes
    trained, noisy = (container.lines[0] for container in left.containers)
    assert trained.get_xdata().tolist() == [900, 90, 20] and trained.get_linestyle() == "-"
    assert noisy.get_xdata().tolist() == [300] and noisy.get_linestyle() == "None"
    assert noisy.get_markerfacecolor() == "white"
    assert right.lines[1].get_ydata() == pytest.approx([1.0, 0.8, 0.16, 0.1])


def test_of_the_outline_of_a_layer_the_share_that_is_left_is_filled() -> None:
    ax = plot_units(report())
    heights = [
        patch.get_height() for patch in ax.patches if patch.get_label() != "masked" and hasattr(patch, "get_height")
    ]
    outlines = heights[0], heights[2], heights[5]
    assert heights[1] / outlines[0] == pytest.approx(8 / 20)
    assert heights[3] / outlines[1] == pytest.approx(12 / 50)
    assert heights[4] / outlines[1] == pytest.approx(5 / 50)
    assert heights[6] / outlines[2] == pytest.approx(40 / 500)
    assert outlines[0] < outlines[1] < outlines[2] == pytest.approx(1.0)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before", "left", "masked"]


def test_the_report_of_a_compact_network_is_drawn() -> None:
    net = attach_noise(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)))
    guide = AutoTruncatedLogNormal(net)
    with torch.no_grad():  # in the place of fitting
        guide.noise_locs.fill_(-0.1)
    guide.noise["0"].kept[2:] = False
    ax = plot_units(compaction_report(compact(net, guide, torch.randn(2, 3))))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0\n2 of 6", "2\n4 of 4"]


def test_a_network_without_sites_has_no_picture() -> None:
    empty = report()
    empty.sites = empty.sites.iloc[:0]
    with pytest.raises(ReductionError, match="no layers"):
        plot_units(empty)


def test_the_large_mark_of_a_method_is_the_mean_of_its_seeds() -> None:
    ax = plot_trade_off(methods())
    means = {
        line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if len(line.get_xdata()) == 1
    }
    assert means["ours"] == pytest.approx((0.12, 0.975)) and means["peer"] == pytest.approx((0.2, 0.9625))
    assert len({line.get_marker() for line in ax.lines}) == 3


def test_curves_go_by_size() -> None:
    table = methods().sample(frac=1.0, random_state=0)
    _, given = plt.subplots()
    ax = plot_trade_off(table, given, joined=True)
    assert ax is given and all(list(line.get_xdata()) == sorted(line.get_xdata()) for line in ax.lines)
    assert len(ax.lines) == 3


def test_a_table_without_the_columns_is_refused() -> None:
    with pytest.raises(ReductionError, match=r"\['macs'\].*'share'"):
        plot_trade_off(methods(), size="macs")


def test_each_correlation_is_written_in_an_ink_that_shows() -> None:
    ax = plot_rank_correlations(correlations())
    image = ax.images[0]
    for text, value in zip(ax.texts, correlations().to_numpy().ravel(), strict=True):
        assert text.get_text() == f"{value:.2f}"
        red, green, blue, _ = image.cmap(image.norm(value))
        light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        assert text.get_color() == ("black" if light > 0.55 else "white")


def test_a_table_that_is_no_square_is_refused() -> None:
    with pytest.raises(ReductionError, match="same names"):
        plot_rank_correlations(pd.DataFrame([[1.0, 0.5]], ["a"], ["a", "b"]))
