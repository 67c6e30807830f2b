# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What decides which units go."""

from pyro_bmrs.pruning.criteria.bmrs_n import BMRS_N
from pyro_bmrs.pruning.criteria.bmrs_u import BMRS_U
from pyro_bmrs.pruning.criteria.costs import in_proportion_to_cost, unit_costs
from pyro_bmrs.pruning.criteria.criterion import Criterion, score_units
from pyro_bmrs.pruning.criteria.evidence import EvidenceCriterion, UnitEvidence
from pyro_bmrs.pruning.criteria.posterior_mean import PosteriorMean
from pyro_bmrs.pruning.criteria.saliency import Saliency
from pyro_bmrs.pruning.criteria.snr import SNR
from pyro_bmrs.pruning.criteria.weights import WeightNorm

__all__ = [
    "BMRS_N",
    "BMRS_U",
    "Criterion",
    "EvidenceCriterion",
    "PosteriorMean",
    "SNR",
    "Saliency",
    "UnitEvidence",
    "WeightNorm",
    "in_proportion_to_cost",
    "score_units",
    "unit_costs",
]
