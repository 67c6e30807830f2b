# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models compared by their evidence, and groups of studies: which model they follow, what their parameters share."""

from pyro_bmrs.integration.comparisons.frequencies import GroupStudy, group_study
from pyro_bmrs.integration.comparisons.group_effects import GroupEffects, group_effects

__all__ = ["GroupEffects", "GroupStudy", "group_effects", "group_study"]
