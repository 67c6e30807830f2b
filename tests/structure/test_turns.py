# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

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
