# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Structured pruning: noise on the units of a network, fitted with SVI, says which of them the data do not need."""

from typing import TYPE_CHECKING, Any

from pyro_bmrs.pruning.attachment import NoiseSite, attach_noise, detach_noise, noise_sites
from pyro_bmrs.pruning.attention import Attention
from pyro_bmrs.pruning.compaction import compact
from pyro_bmrs.pruning.costs import in_proportion_to_cost, unit_costs
from pyro_bmrs.pruning.coupling import coupled_units
from pyro_bmrs.pruning.criteria import BMRS_N, BMRS_U, SNR, Criterion, PosteriorMean
from pyro_bmrs.pruning.curves import accuracy_vs_compression, rank_correlations
from pyro_bmrs.pruning.elbo import NoiseELBO
from pyro_bmrs.pruning.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.likelihood import Classification, Likelihood, Regression, WarmUp, parameter_groups
from pyro_bmrs.pruning.noise import MultiplicativeNoise
from pyro_bmrs.pruning.report import CompactionReport, compaction_report
from pyro_bmrs.pruning.saved import load_compact, save_compact
from pyro_bmrs.pruning.selection import PruningResult, prune
from pyro_bmrs.pruning.weight_criteria import Saliency, WeightNorm

if TYPE_CHECKING:
    from pyro_bmrs.pruning.callback import PruningCallback

__all__ = [
    "Attention",
    "AutoTruncatedLogNormal",
    "BMRS_N",
    "BMRS_U",
    "Classification",
    "CompactionReport",
    "Criterion",
    "Likelihood",
    "MultiplicativeNoise",
    "NoiseELBO",
    "NoiseSite",
    "PosteriorMean",
    "PruningCallback",
    "PruningResult",
    "Regression",
    "SNR",
    "Saliency",
    "WarmUp",
    "WeightNorm",
    "accuracy_vs_compression",
    "attach_noise",
    "compact",
    "compaction_report",
    "coupled_units",
    "detach_noise",
    "in_proportion_to_cost",
    "load_compact",
    "noise_sites",
    "parameter_groups",
    "prune",
    "rank_correlations",
    "save_compact",
    "unit_costs",
]


def __getattr__(name: str) -> Any:
    # Lightning is there for those who ask for it.
    if name == "PruningCallback":
        from pyro_bmrs.pruning.callback import PruningCallback

        return PruningCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
