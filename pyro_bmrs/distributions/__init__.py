# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Distributions on intervals, accurate in both tails, and the numerics under them."""

import pyro_bmrs.distributions.kl  # noqa: F401 - registers the divergences
from pyro_bmrs.distributions.log_uniform import LogUniform
from pyro_bmrs.distributions.truncated_log_normal import TruncatedLogNormal
from pyro_bmrs.distributions.truncated_normal import TruncatedNormal

__all__ = ["LogUniform", "TruncatedLogNormal", "TruncatedNormal"]
