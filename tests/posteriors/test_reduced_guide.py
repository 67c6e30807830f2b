# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The reduced posterior as a guide: its ELBO is the reduced evidence, and it can be reduced and fitted further."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from pyro_bmrs import reduce_model
from tests import conjugate

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize(
    "name, make",
    [
        ("rest", lambda: dist.Normal(0.0, 0.1)),
        ("rest", lambda: dist.Delta(torch.tensor(0.0))),
        ("first", lambda: dist.Normal(torch.ones(2), 0.5)),
    ],
)
def test_the_reduced_guide_attains_the_reduced_evidence(exact_guide, loss, name, make):
    # The ELBO of an exact posterior is the log evidence, at every draw.
    guide, x, y = exact_guide()
    reduction = reduce_model(guide, {name: make()})
    elbo = -Trace_ELBO().loss(conjugate.model, guide, x, y)
    reduced_elbo = -loss().loss(reduction.model, reduction.guide, x, y)
    assert reduced_elbo - elbo == pytest.approx(reduction.delta_evidence.item(), abs=1e-7)


def test_reducing_in_two_steps_is_reducing_at_once(exact_guide):
    guide, x, y = exact_guide()
    at_once = reduce_model(guide, {"first": dist.Normal(0.0, 0.2), "rest": dist.Normal(0.0, 0.1)})
    first = reduce_model(guide, {"first": dist.Normal(0.0, 0.4), "rest": dist.Normal(0.0, 0.5)})
    second = reduce_model(first.guide, {"first": dist.Normal(0.0, 0.2), "rest": dist.Normal(0.0, 0.1)})
    total = first.delta_evidence + second.delta_evidence
    torch.testing.assert_close(total, at_once.delta_evidence)
    torch.testing.assert_close(second.posterior["rest"].mean, at_once.posterior["rest"].mean)


def test_a_branched_guide_trains_its_branches_and_their_probabilities():
    def model():
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("z", dist.Normal(0.0, 0.1) if k else dist.Normal(0.0, 3.0))

    def guide():
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("z", dist.Normal(0.0, 0.1) if k else dist.Normal(0.3, 0.5))

    reduction = reduce_model(guide, {"z": dist.Normal(0.0, 0.1)}, model=model)
    branched = reduction.guide
    svi = SVI(reduction.model, branched, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = {name: value.detach().clone() for name, value in branched.named_parameters()}
    for _ in range(8):
        svi.step()
    moved = {name for name, value in branched.named_parameters() if not torch.equal(value, before[name])}
    assert "logits" in moved and any("statements" in name for name in moved)
