# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Figures look as they did. Without letters, which are drawn differently from machine to machine.

A figure that is meant to look otherwise is copied from the folder that the failure names to ``baselines``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.testing.compare import compare_images
from matplotlib.testing.decorators import remove_ticks_and_titles
from PIL import Image

from pyro_bmrs.plotting import (
    plot_check,
    plot_compression,
    plot_model_space,
    plot_posterior,
    plot_rank_correlations,
    plot_reduction,
    plot_sensitivity,
    plot_trade_off,
    plot_units,
)
from tests.plotting import results

BASELINES = Path(__file__).parent / "baselines"
TOLERANCE = 6.0  # root mean square, of 255

DELTA = {"a": torch.tensor([1.5, -2.0, 0.3, -40.0])}
SAID = results.SimpleNamespace(elementwise=DELTA, elementwise_error={"a": torch.full((4,), 0.4)})

FIGURES: dict[str, tuple[int, Callable[..., Any]]] = {
    "reduction": (1, lambda ax: plot_reduction(results.reduction(SAID, **DELTA), ax)),
    "posterior": (1, lambda ax: plot_posterior(results.two_slopes(), ax)),
    "check": (2, lambda *axes: plot_check(results.check(), axes)),
    "model_space": (2, lambda *axes: plot_model_space(results.space(), axes)),
    "sensitivity": (2, lambda *axes: plot_sensitivity(results.sensitivity(), axes)),
    "compression": (2, lambda *axes: plot_compression(results.compression(), axes)),
    "units": (1, lambda ax: plot_units(results.report(), ax)),
    "trade_off": (1, lambda ax: plot_trade_off(results.methods(), ax)),
    "rank_correlations": (1, lambda ax: plot_rank_correlations(results.correlations(), ax)),
}


def drawn(name: str, folder: Path) -> Path:
    count, plot = FIGURES[name]
    with mpl.rc_context(mpl.rcParamsDefault):
        mpl.use("agg")
        figure = plt.figure(figsize=(2.2 * count, 2.0), dpi=120)
        # Where they are does not go by the size of letters.
        plot(*(figure.add_axes(((0.05 + place) / count, 0.05, 0.9 / count, 0.9)) for place in range(count)))
        remove_ticks_and_titles(figure)
        for ax in figure.axes:
            ax.set(xlabel="", ylabel="")
            for text in [*ax.texts, ax.get_legend()]:
                if text is not None:
                    text.remove()
        figure.savefig(folder / f"{name}.png")
    # Twice as large as it is compared: versions of matplotlib round to different pixels.
    with Image.open(folder / f"{name}.png") as large:
        large.convert("RGB").reduce(2).save(folder / f"{name}.png", optimize=True)
    return folder / f"{name}.png"


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_looks_as_it_did(name: str, tmp_path: Path) -> None:
    assert compare_images(str(BASELINES / f"{name}.png"), str(drawn(name, tmp_path)), tol=TOLERANCE) is None


def test_that_a_change_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is off by a fifth, and marks that are gone."""
    other = {"a": DELTA["a"] * torch.tensor([1.0, 1.5, 1.0, 1.0])}
    for changed in (results.reduction(SAID, **other), results.reduction(**DELTA)):
        monkeypatch.setitem(FIGURES, "reduction", (1, lambda ax, changed=changed: plot_reduction(changed, ax)))
        found = compare_images(str(BASELINES / "reduction.png"), str(drawn("reduction", tmp_path)), tol=TOLERANCE)
        assert found is not None and "RMS" in found


def test_pictures_are_small() -> None:
    assert {path.stem for path in BASELINES.glob("*.png")} == set(FIGURES)
    assert all(path.stat().st_size < 15_000 for path in BASELINES.glob("*.png"))
