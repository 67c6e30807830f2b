# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Which sites a run has, and what they were computed from."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import ReductionError, reduce_model
from pyro_bmrs.posteriors.reading import read_guide
from tests.programs import NARROW, one_site


def test_a_function_guide_not_fitted():
    def guide():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(ReductionError, match=r"not been fitted: its parameters \['loc'\]"):
        reduce_model(guide, NARROW, model=one_site)
    assert "loc" not in pyro.get_param_store()


READS = {
    "if": lambda k: 0.1 if k else 3.0,
    "compared": lambda k: 0.1 if k == 1 else 3.0,
    "item": lambda k: [3.0, 0.1][int(k.item())],
    "index": lambda k: [3.0, 0.1][k.long()],
    "numpy": lambda k: 3.0 - 2.9 * float(k.numpy()),
    "tolist": lambda k: 3.0 - 2.9 * k.tolist(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_branch_on_a_value_is_a_dependence(read):
    def model():
        pyro.sample("before", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("mu", dist.Normal(0.0, read(k)))

    def guide():
        pyro.sample("before", dist.Normal(0.0, 0.5))
        pyro.sample("k", dist.Bernoulli(0.7))
        pyro.sample("mu", dist.Normal(0.1, 0.05))

    fitted = read_guide(guide, model)
    assert fitted.upstream(["before", "k", "mu"]) == {"before": set(), "k": set(), "mu": {"k"}}
    pyro.set_rng_seed(0)
    # Of the guide's draws of mu, those under the slab have r/p of 30 times those under the spike, or nearly.
    reduction = reduce_model(guide, {"mu": dist.Normal(0.0, 0.1)}, model=model, num_samples=1000, method="importance")
    mu = torch.linspace(-0.5, 0.7, 10_001)
    density = dist.Normal(0.1, 0.05).log_prob(mu).exp() * (mu[1] - mu[0])
    slab = dist.Normal(0.0, 0.1).log_prob(mu) - dist.Normal(0.0, 3.0).log_prob(mu)
    exact = (0.7 + 0.3 * (density * slab.exp()).sum()).log()
    assert abs(reduction.delta_evidence - exact) < 4 * reduction.standard_error


@pytest.mark.parametrize("lacking", ["both", "guide"])
def test_a_site_of_one_branch_is_refused(lacking):
    def model():
        k = pyro.sample("k", dist.Bernoulli(0.5))
        if lacking == "guide" or k:
            pyro.sample("mu", dist.Normal(0.0, 1.0))

    def guide():
        if pyro.sample("k", dist.Bernoulli(0.5)):
            pyro.sample("mu", dist.Normal(0.7, 0.4))

    for seed in range(4):
        pyro.set_rng_seed(seed)
        with pytest.raises(ReductionError, match="in some runs and lacks it in others|no latent site 'mu'"):
            reduce_model(guide, {"mu": dist.Normal(0.0, 0.3)}, model=model)
