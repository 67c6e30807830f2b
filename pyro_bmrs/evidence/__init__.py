# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The change in log evidence when one prior takes the place of another, and the posterior that goes with it."""

from pyro_bmrs.evidence import rules  # noqa: F401 - registers them
from pyro_bmrs.evidence.accuracy import Accuracy, Estimated
from pyro_bmrs.evidence.dispatch import log_evidence_change, reduce, reduced_posterior
from pyro_bmrs.evidence.importance import ImportanceEstimate, importance_estimate
from pyro_bmrs.evidence.quadrature import ReweightedDistribution
from pyro_bmrs.evidence.registry import Reduced, register_reduction

__all__ = [
    "Accuracy",
    "Estimated",
    "ImportanceEstimate",
    "Reduced",
    "ReweightedDistribution",
    "importance_estimate",
    "log_evidence_change",
    "reduce",
    "reduced_posterior",
    "register_reduction",
]
