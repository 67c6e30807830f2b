# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Figures of results, and pages with them to keep or to send.

They need matplotlib, which ``pip install pyro_bmrs[plot]`` brings.
"""

from pyro_bmrs.plotting.canvas import FULL_COLOR, REDUCED_COLOR
from pyro_bmrs.plotting.models import plot_model_space, plot_sensitivity
from pyro_bmrs.plotting.networks import plot_compression, plot_rank_correlations, plot_trade_off, plot_units
from pyro_bmrs.plotting.reductions import plot_check, plot_posterior, plot_reduction

__all__ = [
    "FULL_COLOR",
    "REDUCED_COLOR",
    "plot_check",
    "plot_compression",
    "plot_model_space",
    "plot_posterior",
    "plot_rank_correlations",
    "plot_reduction",
    "plot_sensitivity",
    "plot_trade_off",
    "plot_units",
]
