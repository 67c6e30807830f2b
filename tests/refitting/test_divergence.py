# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How far a guide has moved."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import reduce_model, refit

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.filterwarnings("ignore:the fitted guide had not converged", "ignore:the refit had not converged")
def test_divergences_of_a_guide_written_by_hand_are_those_of_its_conditionals():
    """With a drawn first and b given a, they add up to the divergence of the two joint normals."""

    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a + b, 0.5).expand([2]).to_event(1), obs=y)

    def guide(y):
        a = pyro.sample("a", dist.Normal(pyro.param("a_loc", torch.tensor(0.45)), 0.7))
        pyro.sample("b", dist.Normal(0.95 - pyro.param("slope", torch.tensor(0.85)) * a, 0.33))

    y = torch.tensor([1.0, 1.2])
    guide(y)
    pyro.param("slope").data.fill_(0.6)
    reduction = reduce_model(guide, {"a": dist.Normal(0.0, 0.3)}, model=model, args=(y,), check=False)

    def joint(guide):
        nodes = pyro.poutine.trace(guide).get_trace(y).nodes
        a, slope = nodes["a"]["fn"], [value for name, value in named(guide) if name.endswith("slope")][0]
        factor = torch.stack(
            [torch.stack([a.stddev, 0 * a.stddev]), torch.stack([-slope * a.stddev, 0.33 + 0 * slope])]
        )
        return dist.MultivariateNormal(torch.stack([a.mean, 0.95 - slope * a.mean]), scale_tril=factor)

    def named(guide):
        trace = pyro.poutine.trace(guide, param_only=True).get_trace(y)
        return [(name, site["value"]) for name, site in trace.nodes.items()]

    before = joint(reduction.new_guide())
    check = refit(model, guide, reduction, max_steps=40, window=20, num_particles=10)
    whole = torch.distributions.kl_divergence(joint(check.guide), before).item()
    assert check.divergence.keys() == {"a", "b"} and check.divergence["b"] > 0
    error = sum(value**2 for value in check.divergence_error.values()) ** 0.5
    assert sum(check.divergence.values()) == pytest.approx(whole, abs=4 * error)
