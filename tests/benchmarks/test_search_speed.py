# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How long a search takes and how much memory: what the documentation promises, on one thread."""

from __future__ import annotations

import subprocess
import sys

import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_bmrs import search_models
from tests.benchmarks.correlated import correlated_guide, weights_model

REDUCED = {"point": dist.Delta(torch.tensor(0.0, dtype=torch.double)), "narrow": dist.Normal(0.0, 1e-3)}


@pytest.mark.parametrize("prior", REDUCED)
def test_65536_models_of_16_elements_take_at_most_5_microseconds_each(benchmark, prior):
    guide = correlated_guide(16, rows=100)
    space = benchmark(search_models, guide, {"weights": REDUCED[prior]}, strategy="exhaustive")
    assert space.num_models == 2**16
    assert benchmark.stats.stats.median < 5e-6 * 2**16


def test_a_million_models_of_20_elements(benchmark):
    guide = correlated_guide(20, rows=100)
    space = benchmark.pedantic(
        search_models, (guide, {"weights": REDUCED["narrow"]}), {"strategy": "exhaustive"}, rounds=3
    )
    assert space.num_models == 2**20
    assert benchmark.stats.stats.median < 5e-6 * 2**20


MILLION = """
import resource, torch
from pyro_bmrs import search_models
from pyro.distributions import Normal
from tests.benchmarks.correlated import correlated_guide
guide = correlated_guide(20, rows=100)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
space = search_models(guide, {"weights": Normal(0.0, 1e-3)}, strategy="exhaustive")
space.summary(), space.table(), space.best
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_a_million_models_stay_within_two_gibibytes(record_property):
    run = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, check=True)
    before, after = (int(kibibytes) for kibibytes in run.stdout.split()[-2:])
    print(f"{after / 2**20:.2f} GiB at the most, {(after - before) / 2**20:.2f} GiB of it for the search")
    assert after < 2 * 2**20


def test_greedy_search_over_2000_elements_takes_less_than_a_minute(benchmark):
    guide = correlated_guide(2000, rows=3000)
    space = benchmark.pedantic(search_models, (guide, {"weights": REDUCED["narrow"]}), rounds=1)
    assert space.strategy == "greedy"
    assert benchmark.stats.stats.max < 60
    assert 200 < int(space.reduced["weights"].sum()) < 1800


def test_a_million_independent_elements_need_no_search(benchmark):
    guide = AutoNormal(weights_model)
    guide(10**6)
    space = benchmark.pedantic(search_models, (guide, {"weights": dist.Normal(0.0, 0.1)}), rounds=2)
    assert space.num_models == 2 ** (10**6)
    assert benchmark.stats.stats.median < 20


def test_4000_draws_of_12_elements_take_less_than_10_seconds(benchmark):
    draws = {"weights": torch.randn(4000, 12) @ torch.randn(12, 12) * 0.1}
    options = {"model": weights_model, "args": (12,)}
    import arviz  # noqa: F401 - it takes seconds by itself

    space = benchmark.pedantic(search_models, (draws, {"weights": REDUCED["point"]}), options, rounds=1)
    assert space.num_models == 2**12
    assert benchmark.stats.stats.max < 10


def test_eight_million_models_of_23_elements(benchmark):
    guide = correlated_guide(23, rows=100)
    space = benchmark.pedantic(search_models, (guide, {"weights": REDUCED["narrow"]}), rounds=1)
    assert (space.strategy, space.num_models) == ("exhaustive", 2**23)
    assert benchmark.stats.stats.max < 5e-6 * 2**23


def test_models_of_60_elements_are_drawn_in_less_than_a_minute(benchmark):
    guide = correlated_guide(60, rows=100)
    space = benchmark.pedantic(search_models, (guide, {"weights": REDUCED["narrow"]}), rounds=1)
    assert space.strategy == "sample"
    assert float(space.inclusion_error["weights"].max()) < 0.05
    assert benchmark.stats.stats.max < 60
