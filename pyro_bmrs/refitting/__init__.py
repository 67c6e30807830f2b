# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduced models fitted anew: to check a reduction, and to iterate it."""

from pyro_bmrs.refitting.iterated import IteratedReduction, reduce_iteratively
from pyro_bmrs.refitting.refit import Refit, refit
from pyro_bmrs.refitting.rounds import Round

__all__ = [
    "IteratedReduction",
    "Refit",
    "Round",
    "reduce_iteratively",
    "refit",
]
