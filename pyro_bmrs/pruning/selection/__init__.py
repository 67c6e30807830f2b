# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Which units go, decided for all sites at once; after training and during it."""

from pyro_bmrs.pruning.selection.curves import accuracy_vs_compression, rank_correlations
from pyro_bmrs.pruning.selection.prune import PruningResult, prune

__all__ = [
    "PruningResult",
    "accuracy_vs_compression",
    "prune",
    "rank_correlations",
]
