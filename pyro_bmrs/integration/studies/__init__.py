# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Groups of studies of the same kind: which model most of them follow, and what their parameters have in common."""

from pyro_bmrs.integration.studies.frequencies import GroupStudy, group_study
from pyro_bmrs.integration.studies.group_effects import GroupEffects, group_effects

__all__ = ["GroupEffects", "GroupStudy", "group_effects", "group_study"]
