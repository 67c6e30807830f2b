# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Whatever runs programs takes turns with whatever else does, in as many threads as there are."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

from pyro_bmrs import reduce_model, search_models
from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, NoiseELBO, attach_noise, noise_sites


@pytest.fixture
def eager_to_switch():
    """Threads that are interrupted as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def model():
    return Classification(attach_noise(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))), 50)


def test_threads_that_train_and_predict_do_not_meet(eager_to_switch):
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    standing = model().eval()
    guide = AutoTruncatedLogNormal(standing)
    guide.noise_locs.data.fill_(-1.0)
    expected = standing(x)

    def train(elbo, trained):
        module = elbo()(trained, AutoTruncatedLogNormal(trained))
        return [float(module(x, y).detach()) for _ in range(25)], int(trained.get_extra_state())

    def predict(_):
        return all(torch.equal(standing(x), expected) for _ in range(100))

    models = [model(), model()]
    with ThreadPoolExecutor(4) as pool:
        training = [pool.submit(train, elbo, trained) for elbo, trained in zip((NoiseELBO, Trace_ELBO), models)]
        predictions = [pool.submit(predict, number) for number in range(2)]
    for losses, steps in (run.result() for run in training):
        assert steps == 25 and max(losses) < 10
    assert all(run.result() for run in predictions)
    assert not _PYRO_STACK


def test_threads_that_attach_noise_do_not_meet(eager_to_switch):
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: model(), range(12)))
    assert all(noise_sites(made.net)["0"].place == "1" for made in models)


@pytest.mark.filterwarnings("ignore::pyro_bmrs.ReductionWarning")  # the guides are not fitted
def test_threads_that_reduce_search_and_train_do_not_meet(eager_to_switch, exact_guide):
    guides = [exact_guide(kind)[0] for kind in (AutoNormal, AutoMultivariateNormal)]
    priors = {"first": dist.Normal(torch.zeros(2), 0.9).to_event(1)}

    def ask(guide):
        """Of draws, so that programs are run."""
        reduction = reduce_model(guide, priors, method="importance", num_samples=500, check=False)
        return float(reduction.delta_evidence.detach()), float(search_models(guide, priors).top(1).probability)

    def train(_):
        trained = model()
        elbo = NoiseELBO()(trained, AutoTruncatedLogNormal(trained))
        return [float(elbo(torch.randn(8, 4), torch.zeros(8, dtype=torch.long)).detach()) for _ in range(5)]

    alone = [ask(guide) for guide in guides]
    with ThreadPoolExecutor(4) as pool:
        training = pool.map(train, range(2))
        together = list(pool.map(ask, guides * 2))
    assert all(max(losses) < 50 for losses in training)
    for (estimate, probability), (expected, exact) in zip(together, alone * 2):
        assert probability == exact
        assert estimate == pytest.approx(expected, abs=0.2)
    assert not _PYRO_STACK
