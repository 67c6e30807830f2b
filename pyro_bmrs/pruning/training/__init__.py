# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks with noise as Pyro models, and how they are trained."""

from pyro_bmrs.pruning.training.classification import Classification
from pyro_bmrs.pruning.training.elbo import NoiseELBO
from pyro_bmrs.pruning.training.kl_weight import WarmUp
from pyro_bmrs.pruning.training.models import Likelihood, parameter_groups
from pyro_bmrs.pruning.training.regression import Regression

__all__ = [
    "Classification",
    "Likelihood",
    "NoiseELBO",
    "Regression",
    "WarmUp",
    "parameter_groups",
]
