# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How far inclusion probabilities are from integrals: nothing for what is exact, and the error for what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

from pyro_bmrs.search.probabilities.model_prior import independent
from pyro_bmrs.search.refinement.agreement import Agreement, agreement
from pyro_bmrs.search.refinement.correction import sample_models
from pyro_bmrs.search.refinement.evidence_by_density import DensityEvidence
from pyro_bmrs.search.refinement.refine import refined_models
from pyro_bmrs.search.strategies.normal_search import search_normal
from tests.search.spaces import normal_space

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def space(exact_guide):
    """A posterior whose elements are as likely in as out."""
    with torch.no_grad():
        own = normal_space(exact_guide(AutoMultivariateNormal)[0], "point")
    scale = own.covariance.diagonal().sqrt()
    return replace(own, loc=own.target + torch.tensor([1.2, -1.5, 1.8, 2.0]) * scale)


def models_of(space):
    return search_normal(space, independent(torch.zeros(4)), "exhaustive", 16, progress=False)[0]


def found(space, density):
    torch.manual_seed(0)
    return refined_models(DensityEvidence(space, density.log_prob), models_of(space))


def normal(space, rows):
    return torch.distributions.MultivariateNormal(space.loc, rows @ rows.mT)


def test_where_the_normal_is_the_posterior_there_is_no_distance(space):
    models, agrees = found(space, normal(space, space.rows))
    torch.testing.assert_close(models.inclusion_probability, models_of(space).inclusion_probability)
    assert agrees.distance < 1e-9 and agrees.share == pytest.approx(1.0)
    assert agrees.is_close and agrees.is_beyond_doubt


def test_the_distance_is_that_to_the_probabilities_by_integrals(space):
    """A density that is wider than the normal along one coordinate: the mean is right, and the height there is not."""
    rows = space.rows * torch.tensor([1.0, 1.0, 1.8, 1.0]).unsqueeze(-1)
    evidence = DensityEvidence(space, normal(space, rows).log_prob)
    exact = models_of(replace(space, rows=rows)).inclusion_probability
    plain = replace(models_of(space), delta_evidence=evidence.at_mean(models_of(space).states))
    torch.manual_seed(0)
    agrees = agreement(sample_models(evidence, plain, seed=1), torch.zeros(4))
    distance = float((plain.inclusion_probability - exact).abs().max())
    assert distance > 0.05 and 0.5 < agrees.distance / distance < 2 and not agrees.is_close
    # Most of it is a sum over groups, and mended.
    models, left = found(space, normal(space, rows))
    after = float((models.inclusion_probability - exact).abs().max())
    assert after < 0.5 * distance and left.distance < agrees.distance


def test_a_model_that_is_thought_too_improbable_to_be_drawn_is_seen(space):
    """Of a normal that is far too narrow along one coordinate, the best model has nearly all the probability."""
    narrow = space.rows * torch.tensor([1.0, 1.0, 1.0, 0.2]).unsqueeze(-1)
    narrow = replace(space, rows=narrow)
    evidence = DensityEvidence(narrow, normal(space, space.rows).log_prob)
    plain = replace(models_of(narrow), delta_evidence=evidence.at_mean(models_of(narrow).states))
    torch.manual_seed(0)
    assert not agreement(sample_models(evidence, plain, seed=1), torch.zeros(4)).is_close


def test_words():
    far, near, blind = Agreement(0.2, 0.9), Agreement(0.01, 0.9), Agreement(0.01, 0.01)
    assert not far.is_close and near.is_close and not blind.is_close and not Agreement(0.03, 0.2).is_close
    assert Agreement(0.03, 0.9).is_close and not Agreement(0.03, 0.9).is_beyond_doubt
    assert far.words() == "integrals of some models move inclusion probabilities by up to 0.2"
    unsure = Agreement(0.02, 0.1)
    assert not unsure.is_close and not unsure.is_off and far.is_off and blind.is_off
    assert unsure.words() == "no more than 10% of the draws of reduced posteriors count for their integrals"
    assert "too few draws of the reduced posteriors count" in blind.words()
