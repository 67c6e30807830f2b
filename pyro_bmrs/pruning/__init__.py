# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Structured pruning: noise on the units of a network, fitted with SVI, says which of them the data do not need."""

from pyro_bmrs.pruning.attachment import NoiseSite, attach_noise, detach_noise, noise_sites
from pyro_bmrs.pruning.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.likelihood import Classification, Likelihood, Regression, WarmUp, parameter_groups
from pyro_bmrs.pruning.noise import MultiplicativeNoise

__all__ = [
    "AutoTruncatedLogNormal",
    "Classification",
    "Likelihood",
    "MultiplicativeNoise",
    "NoiseSite",
    "Regression",
    "WarmUp",
    "attach_noise",
    "detach_noise",
    "noise_sites",
    "parameter_groups",
]
