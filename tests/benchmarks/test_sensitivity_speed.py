# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How long a hundred priors take: what the documentation promises, of one thread's time."""

from __future__ import annotations

import time

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import prior_sensitivity
from pyro_bmrs.arviz_adapter import to_arviz
from tests.benchmarks.correlated import correlated_guide

# Of the processor, which others may want as well.
pytestmark = pytest.mark.benchmark(timer=time.process_time)

SCALES = torch.logspace(-1, 1, 100)
FAMILIES = {"normal": None, "cauchy": lambda scale: dist.Cauchy(0.0, scale)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hundred_priors_of_a_guide_take_less_than_a_second(benchmark, family):
    guide = correlated_guide(4, rows=100)
    options = {"element": 0} if family == "cauchy" else {}
    found = benchmark(prior_sensitivity, guide, "weights", FAMILIES[family], SCALES, check=False, **options)
    assert len(found.places) == 100
    assert benchmark.stats.stats.median < 1.0


def test_a_hundred_priors_of_4000_draws_take_less_than_a_second(benchmark):
    draws = 0.5 + 0.3 * np.random.default_rng(0).standard_normal((4, 1000, 2))
    data = to_arviz({"posterior": {"b": draws}})
    scales = torch.linspace(0.5, 2.0, 100)
    found = benchmark(prior_sensitivity, data, "b", grid=scales, prior={"b": dist.Normal(0.0, 1.0)}, check=False)
    assert found.method == "importance"
    assert benchmark.stats.stats.median < 1.0
