# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A smaller, plain network in the place of a pruned one."""

from pyro_bmrs.pruning.compaction.compact import compact, compact_gated
from pyro_bmrs.pruning.compaction.coupling.ties import coupled_units
from pyro_bmrs.pruning.compaction.modules.attention import Attention
from pyro_bmrs.pruning.compaction.reporting.cost import cost
from pyro_bmrs.pruning.compaction.reporting.report import CompactionReport, compaction_report
from pyro_bmrs.pruning.compaction.saved import load_compact, save_compact

__all__ = [
    "Attention",
    "CompactionReport",
    "compact",
    "compact_gated",
    "compaction_report",
    "cost",
    "coupled_units",
    "load_compact",
    "save_compact",
]
