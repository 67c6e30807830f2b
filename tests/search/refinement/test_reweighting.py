# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models drawn under one evidence and weighted by another, against all models under the other."""

from __future__ import annotations

import pytest
import torch

from pyro_bmrs.search.probabilities.model_prior import independent
from pyro_bmrs.search.probabilities.models import ListedModels
from pyro_bmrs.search.refinement.reweighting import reweighted

COUNT = 6
GENERATOR = torch.Generator().manual_seed(0)
FIRST = 1.5 * torch.randn(2**COUNT, generator=GENERATOR, dtype=torch.double)
SECOND = FIRST + 0.7 * torch.randn(2**COUNT, generator=GENERATOR, dtype=torch.double)


def listed(evidence):
    log_odds = torch.linspace(-0.5, 0.5, COUNT, dtype=torch.double)
    none, ones = torch.zeros(COUNT, dtype=torch.bool), torch.ones(COUNT, dtype=torch.double)
    return ListedModels(evidence, independent(log_odds), none, torch.arange(COUNT), ones, ones)


def index_of(states):
    return states.long() @ 2 ** torch.arange(COUNT)


@pytest.fixture
def drawn():
    torch.manual_seed(0)
    return listed(FIRST).drawn(250, 16)


def test_models_drawn_have_the_probabilities_of_all(drawn):
    all_models = listed(FIRST)
    torch.testing.assert_close(drawn.probability, all_models.probability[index_of(drawn.states)])
    assert (drawn.probability.diff() <= 0).all() and drawn.share.sum().item() == pytest.approx(1.0)
    assert (drawn.share - drawn.probability).abs().max() < 0.02
    torch.testing.assert_close(drawn.inclusion_probability, all_models.inclusion_probability)
    assert float(drawn.inclusion_error.max()) == 0.0
    assert torch.equal(drawn.states[drawn.visits.which[3, 5]], drawn.states[int(drawn.visits.which[3, 5])])


def test_under_another_evidence_they_have_its_probabilities(drawn):
    expected = listed(SECOND)
    moved = reweighted(drawn, SECOND[index_of(drawn.states)], torch.ones(COUNT).double())
    error = moved.inclusion_error
    assert 0.001 < float(error.max()) < 0.02
    before = (drawn.inclusion_probability - expected.inclusion_probability).abs()
    after = (moved.inclusion_probability - expected.inclusion_probability).abs()
    assert float(before.max()) > 0.05 and (after < 4 * error + 0.002).all()
    torch.testing.assert_close(moved.probability, expected.probability[index_of(moved.states)], rtol=0.1, atol=0)
    assert (moved.probability.diff() <= 0).all()
    # Its own share of time is that of the other evidence as well.
    assert (moved.share - moved.probability).abs().max() < 0.02


def test_under_the_same_evidence_nothing_moves(drawn):
    same = reweighted(drawn, drawn.delta_evidence, drawn.alone)
    torch.testing.assert_close(same.inclusion_probability, drawn.inclusion_probability)
    torch.testing.assert_close(same.probability, drawn.probability)
    torch.testing.assert_close(same.share, drawn.share)
