# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The candidate's formula: the same at every point of an exact posterior, and right on the average of any other."""

from __future__ import annotations

import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

from pyro_bmrs.search.refinement.evidence_by_density import DensityEvidence
from tests import conjugate
from tests.search.regression import every_model
from tests.search.spaces import normal_space, reduced_to

pytestmark = pytest.mark.usefixtures("double")

MODELS = torch.tensor(every_model(4))


def log_density(x, y):
    """Of the conjugate regression, by PyTorch's distributions alone."""
    loc, scale = conjugate.prior(4)

    def of(points):
        prior = torch.distributions.Normal(loc, scale).log_prob(points).sum(-1)
        return prior + torch.distributions.Normal(points @ x.T, conjugate.NOISE).log_prob(y).sum(-1)

    return of


@pytest.mark.parametrize("kind", ["normal", "narrow", "point"])
def test_of_an_exact_posterior_each_point_gives_the_evidence(exact_guide, kind):
    guide, x, y = exact_guide(AutoMultivariateNormal)
    evidence = DensityEvidence(normal_space(guide, kind), log_density(x, y))
    exact = torch.stack([conjugate.log_evidence(x, y, *reduced_to(kind, state)) for state in MODELS])
    torch.testing.assert_close(evidence.at_mean(MODELS), exact, rtol=1e-6, atol=1e-6)
    drawn = evidence.by_draws(MODELS, 10, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.value, exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(drawn.share, torch.ones(16))
    assert float(drawn.standard_error.max()) < 1e-6 and evidence.num_evaluations == 16 * 11


def test_draws_of_another_normal_give_the_evidence_with_an_error(exact_guide):
    guide, x, y = exact_guide(AutoMultivariateNormal)
    with torch.no_grad():
        guide.scale = 1.3 * guide.scale
        guide.loc += 0.03
    evidence = DensityEvidence(normal_space(guide, "point"), log_density(x, y))
    exact = torch.stack([conjugate.log_evidence(x, y, *reduced_to("point", state)) for state in MODELS])
    drawn = evidence.by_draws(MODELS[:-1], 4000, torch.Generator().manual_seed(0))
    assert ((drawn.value - exact[:-1]).abs() < 5 * drawn.standard_error).all()
    assert 0.1 < float(drawn.share.min()) and float(drawn.share.max()) < 0.99
    assert 0.001 < float(drawn.standard_error.max()) < 0.05
