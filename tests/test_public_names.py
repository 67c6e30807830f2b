# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is public stays where users found it, and is documented."""

import importlib
import inspect
from pathlib import Path

import pytest

import pyro_bmrs

# Where each name was first to be imported from.
PROMISED = {
    "pyro_bmrs": (
        "IteratedReduction ModelSpace OptimizedPrior Reduction ReductionError ReductionWarning Refit __version__ "
        "optimize_reduced_prior reduce_iteratively reduce_model refit search_models"
    ),
    "pyro_bmrs.distributions": "LogUniform TruncatedLogNormal TruncatedNormal",
    "pyro_bmrs.evidence": (
        "ImportanceEstimate Reduced ReweightedDistribution importance_estimate log_evidence_change reduce "
        "reduced_posterior register_reduction"
    ),
    "pyro_bmrs.plotting": "plot_compression plot_model_space plot_reduction plot_sensitivity",
    "pyro_bmrs.posteriors": "DrawsGuide JointNormalFactor PackedFactor ReducedGuide SiteFactor read_factors",
    "pyro_bmrs.pruning": (
        "Attention AttentionKind AutoTruncatedLogNormal BMRS_N BMRS_U Classification CompactionReport Compression "
        "Criterion EvidenceCriterion Occam OccamPrices OccamSchedule PathStep compress occam_prices temperatures "
        "Likelihood MultiplicativeNoise NoiseELBO NoiseSite PosteriorMean PruningCallback PruningResult Regression SNR "
        "Saliency WarmUp WeightNorm accuracy_vs_compression agree_on_kept attach_noise compact compact_gated "
        "compaction_report cost coupled_units detach_noise in_proportion_to_cost load_compact noise_sites "
        "parameter_groups prune rank_correlations register_attention register_layer save_compact score_units "
        "unit_costs UnitEvidence"
    ),
    "pyro_bmrs.reduction": "Reduction reduce_model",
    "pyro_bmrs.refitting": "Round",
    "pyro_bmrs.search": "BetaBinomial ModelSpace beta_binomial search_models",
}
ROOMS = [
    f"pyro_bmrs.{path.parent.relative_to(Path(pyro_bmrs.__file__).parent).as_posix()}".replace("/", ".").rstrip(".")
    for path in sorted(Path(pyro_bmrs.__file__).parent.rglob("__init__.py"))
]


@pytest.mark.parametrize("room", PROMISED)
def test_names_are_where_they_were(room):
    module = importlib.import_module(room)
    assert not [name for name in PROMISED[room].split() if not hasattr(module, name)]


@pytest.mark.parametrize("room", ROOMS)
def test_all_that_a_room_lists_is_there_and_says_what_it_is(room):
    module = importlib.import_module(room)
    listed = getattr(module, "__all__", [])
    assert len(set(listed)) == len(listed)
    objects = {name: getattr(module, name) for name in listed if name != "__version__"}
    undocumented = [name for name, value in objects.items() if not inspect.getdoc(value)]
    assert not undocumented


@pytest.mark.parametrize("room", [room for room in PROMISED if room not in ("pyro_bmrs.plotting",)])
def test_the_promised_names_are_listed(room):
    """As public, in the ``__init__`` of their room."""
    assert not set(PROMISED[room].split()) - set(importlib.import_module(room).__all__)
