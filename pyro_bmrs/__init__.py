# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Bayesian model reduction for Pyro: change priors after the fit, without refitting."""

from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.reduction.empirical_bayes import OptimizedPrior, optimize_reduced_prior
from pyro_bmrs.reduction.reduction import Reduction, reduce_model
from pyro_bmrs.refitting.iterated import IteratedReduction, reduce_iteratively
from pyro_bmrs.refitting.refit import Refit, refit
from pyro_bmrs.search import ModelSpace, search_models

__version__ = "0.1.0"

__all__ = [
    "IteratedReduction",
    "ModelSpace",
    "OptimizedPrior",
    "Reduction",
    "ReductionError",
    "ReductionWarning",
    "Refit",
    "__version__",
    "optimize_reduced_prior",
    "reduce_iteratively",
    "reduce_model",
    "refit",
    "search_models",
]
