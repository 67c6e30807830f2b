# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Figures of results, and pages with them to keep or to send.

They need matplotlib, which ``pip install pyro_bmrs[plot]`` brings.
"""

from pyro_bmrs.plotting.figures import (
    FULL_COLOR,
    REDUCED_COLOR,
    plot_compression,
    plot_model_space,
    plot_reduction,
    plot_sensitivity,
)

__all__ = [
    "FULL_COLOR",
    "REDUCED_COLOR",
    "plot_compression",
    "plot_model_space",
    "plot_reduction",
    "plot_sensitivity",
]
