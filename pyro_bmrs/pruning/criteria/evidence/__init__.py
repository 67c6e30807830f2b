# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What becomes of the log evidence without a unit: read off the posterior of its noise, or evaluated on the data."""

from pyro_bmrs.pruning.criteria.evidence.evidence_criterion import EvidenceCriterion
from pyro_bmrs.pruning.criteria.evidence.unit_evidence import UnitEvidence

__all__ = ["EvidenceCriterion", "UnitEvidence"]
