# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Structured pruning: noise on the units of a network, fitted with SVI, says which of them the data do not need."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pyro_bmrs.pruning.compaction import (
    Attention,
    CompactionReport,
    compact,
    compact_gated,
    compaction_report,
    cost,
    coupled_units,
    load_compact,
    save_compact,
)
from pyro_bmrs.pruning.compression import (
    Compression,
    Occam,
    OccamPrices,
    PathStep,
    compress,
    occam_prices,
    temperatures,
)
from pyro_bmrs.pruning.criteria import (
    BMRS_N,
    BMRS_U,
    SNR,
    Criterion,
    EvidenceCriterion,
    PosteriorMean,
    Saliency,
    UnitEvidence,
    WeightNorm,
    in_proportion_to_cost,
    score_units,
    unit_costs,
)
from pyro_bmrs.pruning.layers import LayerKind, register_layer
from pyro_bmrs.pruning.noise import (
    AttentionKind,
    AutoTruncatedLogNormal,
    MultiplicativeNoise,
    NoiseSite,
    attach_noise,
    detach_noise,
    noise_sites,
    register_attention,
)
from pyro_bmrs.pruning.selection import PruningResult, accuracy_vs_compression, prune, rank_correlations
from pyro_bmrs.pruning.training import (
    Classification,
    Likelihood,
    NoiseELBO,
    Regression,
    WarmUp,
    parameter_groups,
)

if TYPE_CHECKING:
    from pyro_bmrs.pruning.compression.schedule import OccamSchedule
    from pyro_bmrs.pruning.selection.callback import PruningCallback, agree_on_kept

__all__ = [
    "Attention",
    "AttentionKind",
    "AutoTruncatedLogNormal",
    "BMRS_N",
    "BMRS_U",
    "Classification",
    "CompactionReport",
    "Compression",
    "Criterion",
    "EvidenceCriterion",
    "LayerKind",
    "Likelihood",
    "MultiplicativeNoise",
    "NoiseELBO",
    "NoiseSite",
    "Occam",
    "OccamPrices",
    "PathStep",
    "PosteriorMean",
    "PruningResult",
    "Regression",
    "SNR",
    "Saliency",
    "UnitEvidence",
    "WarmUp",
    "WeightNorm",
    "accuracy_vs_compression",
    "attach_noise",
    "compact",
    "compact_gated",
    "compaction_report",
    "compress",
    "cost",
    "coupled_units",
    "detach_noise",
    "in_proportion_to_cost",
    "load_compact",
    "noise_sites",
    "occam_prices",
    "parameter_groups",
    "prune",
    "rank_correlations",
    "register_attention",
    "register_layer",
    "save_compact",
    "score_units",
    "temperatures",
    "unit_costs",
]


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # of one that is hidden
        return False


# What needs Lightning is loaded when it is asked for, and is among all names only where Lightning is installed.
_WITH_LIGHTNING = {
    "PruningCallback": "selection.callback",
    "agree_on_kept": "selection.callback",
    "OccamSchedule": "compression.schedule",
}
if _is_installed("lightning"):
    __all__ += ["OccamSchedule", "PruningCallback", "agree_on_kept"]


def __getattr__(name: str) -> Any:
    if name in _WITH_LIGHTNING:
        return getattr(import_module(f"pyro_bmrs.pruning.{_WITH_LIGHTNING[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
