# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
import torch

from pyro_bmrs.plotting import plot_model_space, plot_sensitivity
from pyro_bmrs.plotting.canvas import STYLES
from tests.plotting.results import sensitivity, space


def test_probabilities_of_models_and_of_elements_are_bars() -> None:
    _, axes = plt.subplots(1, 2)
    figure = plot_model_space(space(), tuple(axes), num_models=2)
    models, elements = figure.axes
    assert [bar.get_height() for bar in models.patches] == pytest.approx([0.5, 0.3])
    by_place = sorted(elements.patches, key=lambda bar: bar.get_y())
    assert [bar.get_width() for bar in by_place] == pytest.approx([0.9, 0.2, 0.6])
    assert [bool(bar.get_hatch()) for bar in by_place] == [False, True, False]
    assert len(plt.get_fignums()) == 1


def test_what_the_model_says_has_a_line_of_its_own() -> None:
    found = sensitivity()
    evidence, posterior = plot_sensitivity(found)
    said, checked = evidence.lines[:2]
    assert said.get_ydata() == pytest.approx(found.log_bayes_factor.tolist())
    assert checked.get_ydata() == pytest.approx(found.checked_log_bayes_factor.tolist())
    assert checked.get_linestyle() == ":"
    assert evidence.get_xscale() == "log"
    assert len({line.get_linestyle() for line in posterior.lines}) == 2 or len(posterior.lines) == 2


def test_of_many_elements_those_are_drawn_that_can_be_told_apart() -> None:
    found = sensitivity()
    found.mean = found.sd = torch.ones(9, 20)
    found.labels = [str(place) for place in range(20)]
    assert len(plot_sensitivity(found)[1].lines) == len(STYLES)


def test_between_priors_by_name_there_is_no_line() -> None:
    found = sensitivity()
    found.places = list("abcdefghi")
    evidence, posterior = plot_sensitivity(found)
    lines = [*evidence.lines[:2], *(container.lines[0] for container in posterior.containers)]
    assert all(line.get_linestyle() == "None" and line.get_marker() not in ("", "None") for line in lines)
    assert [label.get_text() for label in evidence.get_xticklabels()] == found.places
