# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is a sum over groups is found, as far as the draws tell, and nothing is made of what says nothing."""

from __future__ import annotations

import math

import torch
from pyro.infer.autoguide import AutoMultivariateNormal

from pyro_bmrs.search.probabilities.model_prior import independent
from pyro_bmrs.search.refinement.correction import NUM_MODELS, Sample, missed_by_group, sample_models
from pyro_bmrs.search.refinement.evidence_by_density import DensityEvidence
from pyro_bmrs.search.strategies.normal_search import search_normal
from tests.search.regression import every_model
from tests.search.spaces import normal_space

REDUCED = torch.tensor(every_model(4))
BY_GROUP = torch.tensor([0.3, -0.2, 0.0, 0.15]).double()


def sample(error: float) -> Sample:
    missed = 0.7 + REDUCED.double() @ BY_GROUP
    return Sample(REDUCED, torch.full((16,), 1 / 16).double(), missed, torch.full_like(missed, error), missed)


def test_a_sum_over_groups_is_found():
    torch.testing.assert_close(missed_by_group(sample(0.01)), BY_GROUP, atol=1e-3, rtol=0)


def test_what_the_draws_do_not_tell_is_left():
    assert float(missed_by_group(sample(100.0)).abs().max()) < 1e-3
    unknown = sample(0.01)
    unknown.missed[:8] = math.nan
    unknown.standard_error[8:] = math.inf
    assert missed_by_group(unknown).tolist() == [0.0] * 4
    # Of one model alone nothing can be said of its groups.
    one = Sample(*(part[:1] for part in sample(0.01)))
    assert float(missed_by_group(one).abs().max()) < 1e-6


def test_of_an_exact_posterior_nothing_is_missed(exact_guide):
    guide, *_ = exact_guide(AutoMultivariateNormal)
    with torch.no_grad():
        space = normal_space(guide, "point")
        evidence = DensityEvidence(space, guide.get_posterior().log_prob)
        models, _ = search_normal(space, independent(torch.zeros(4)), "exhaustive", 16, progress=False)
        drawn = sample_models(evidence, models, seed=0)
    assert float(drawn.missed.abs().max()) < 1e-8 and float(drawn.weights.sum()) == 1.0
    assert len(drawn.reduced.unique(dim=0)) == len(drawn.reduced) <= NUM_MODELS
    assert float(missed_by_group(drawn).abs().max()) < 1e-6
