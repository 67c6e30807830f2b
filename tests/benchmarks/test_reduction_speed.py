# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How long the front door takes beside the tensor work behind it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_bmrs import reduce_model

NUM_SITES, NUM_ELEMENTS = 100, 1000
LONGEST = 0.1  # seconds


def model():
    for i in range(NUM_SITES):
        pyro.sample(f"site_{i}", dist.Normal(0.0, 1.0).expand([NUM_ELEMENTS]).to_event(1))


def test_a_hundred_sites_of_a_thousand_elements(benchmark):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoNormal(model)
    guide()
    reduced_priors = {f"site_{i}": dist.Normal(0.0, 0.1) for i in range(NUM_SITES)}
    reduction = benchmark.pedantic(reduce_model, args=(guide, reduced_priors), rounds=20, warmup_rounds=2)
    assert torch.isfinite(reduction.delta_evidence)
    assert benchmark.stats.stats.median < LONGEST
