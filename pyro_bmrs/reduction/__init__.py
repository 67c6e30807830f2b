# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The front door: the change in log evidence and the posterior under reduced priors."""

from pyro_bmrs.reduction.families.empirical_bayes import OptimizedPrior, optimize_reduced_prior
from pyro_bmrs.reduction.families.power_scaling import PowerScaling, power_scaling
from pyro_bmrs.reduction.families.prior_sensitivity import prior_sensitivity
from pyro_bmrs.reduction.families.sensitivity import PriorSensitivity
from pyro_bmrs.reduction.reduce_model import reduce_model
from pyro_bmrs.reduction.reduction import Reduction

__all__ = [
    "OptimizedPrior",
    "PowerScaling",
    "PriorSensitivity",
    "Reduction",
    "optimize_reduced_prior",
    "power_scaling",
    "prior_sensitivity",
    "reduce_model",
]
