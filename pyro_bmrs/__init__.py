# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Bayesian model reduction for Pyro: change priors after the fit, without refitting."""

from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.integration import LogEvidence, compare, log_evidence
from pyro_bmrs.integration.comparisons import GroupEffects, GroupStudy, group_effects, group_study
from pyro_bmrs.reduction.check import Check
from pyro_bmrs.reduction.families.by_element import SensitivityByElement, sensitivity_by_element
from pyro_bmrs.reduction.families.empirical_bayes import OptimizedPrior, optimize_reduced_prior
from pyro_bmrs.reduction.families.power_scaling import PowerScaling, power_scaling
from pyro_bmrs.reduction.families.prior_sensitivity import prior_sensitivity
from pyro_bmrs.reduction.families.sensitivity import PriorSensitivity
from pyro_bmrs.reduction.reduce_model import reduce_model
from pyro_bmrs.reduction.reduction import Reduction
from pyro_bmrs.refitting.iterated import IteratedReduction, reduce_iteratively
from pyro_bmrs.refitting.refit import Refit, refit
from pyro_bmrs.search import ModelSpace, search_models

__version__ = "0.2.0"

__all__ = [
    "Check",
    "GroupEffects",
    "GroupStudy",
    "IteratedReduction",
    "LogEvidence",
    "ModelSpace",
    "OptimizedPrior",
    "PowerScaling",
    "PriorSensitivity",
    "Reduction",
    "ReductionError",
    "ReductionWarning",
    "Refit",
    "SensitivityByElement",
    "__version__",
    "compare",
    "group_effects",
    "group_study",
    "log_evidence",
    "optimize_reduced_prior",
    "power_scaling",
    "prior_sensitivity",
    "reduce_iteratively",
    "reduce_model",
    "refit",
    "search_models",
    "sensitivity_by_element",
]
