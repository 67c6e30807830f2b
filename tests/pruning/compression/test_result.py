# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import Compression, OccamPrices, PathStep
from pyro_bmrs.pruning.compression.course.held_out import HeldOut


def step(width, values, right=None, temperature=1.0):
    net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 1))
    kept = torch.arange(10) < width
    held_out = HeldOut(torch.tensor(values).double(), right)
    prices = OccamPrices({"0": 7.0 * kept}, {})
    return PathStep(temperature, net, True, {"0": kept}, held_out, 5 * width + 1, 4 * width, prices, None)


@pytest.fixture
def compression():
    steps = [step(10, [-1.0, -2.0, -3.0], temperature=0.0), step(6, [-1.0, -2.5, -3.1]), step(2, [-4.0, -4.0, -4.0])]
    return Compression(steps, 1, "by hand")


def test_the_path(compression):
    path = compression.path
    assert path["log_likelihood"].tolist() == pytest.approx([-2.0, -2.2, -4.0])
    # By hand: deviations from the mean of 1, 0, 1 and 1.2, 0.3, 0.9.
    assert path["error"].tolist() == pytest.approx([3**-0.5, 0.39**0.5, 0.0])
    assert path["0"].tolist() == [10, 6, 2] and path["parameters"].tolist() == [51, 31, 11]
    assert path["chosen"].tolist() == [False, True, False] and "accuracy" not in path
    assert compression.units["0"].tolist() == [10, 6, 2]


def test_what_is_shown(compression):
    assert repr(compression) == (
        "Compression: 31 of 51 parameters left (39.2% fewer), units 6 of 10; held-out log likelihood -2.2 nats (step 1 "
        "of 2, by hand)"
    )
    assert compression.path.to_string() in compression.summary()
    labels = Compression([step(3, [-1.0, -1.0], torch.tensor([1.0, 0.0]).double())], 0, "whole")
    assert "accuracy 50.00%" in repr(labels) and labels.path["accuracy"].tolist() == [0.5]


def test_the_page_and_the_notebook_show_the_path(compression, tmp_path):
    whole = Compression(compression.steps, 0, "whole")
    page = whole.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert "51 of 51" in page and page.count("<tr>") == 3 + 1 + 3
    assert "<table" in whole._repr_html_() and "units 10 of 10" in whole._repr_html_()


def test_the_network_at_a_step_is_a_copy(compression):
    assert compression.network[0].out_features == 6 and compression.at(-1)[0].out_features == 2
    compression.at(1)[0].weight.data.zero_()
    assert compression.network[0].weight.any()
    for number in (3, -4):
        with pytest.raises(ReductionError, match="0 to 2"):
            compression.at(number)


def test_what_was_chosen(compression):
    assert compression.prices.sites == {"0": 7.0}
    assert compression.kept["0"].sum() == 6 and compression.decisions is None
    assert Compression(compression.steps, 0, "whole").report is None


def test_the_plot_shows_the_path(compression):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure = compression.plot()
    left, right = figure.axes
    assert left.lines[0].get_xdata().tolist() == [51, 31, 11]
    assert left.lines[0].get_ydata().tolist() == pytest.approx([-2.0, -2.2, -4.0])
    assert right.lines[0].get_ydata().tolist() == pytest.approx([1.0, 0.6, 0.2])
    pyplot.close(figure)
