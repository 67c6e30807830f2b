# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The evidence of a whole model, integrated numerically: what a closed form is checked against."""

from pyro_bmrs.integration.comparisons.comparison import compare
from pyro_bmrs.integration.ends import LogEvidence
from pyro_bmrs.integration.log_evidence import log_evidence

__all__ = ["LogEvidence", "compare", "log_evidence"]
