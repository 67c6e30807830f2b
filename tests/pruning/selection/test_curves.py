# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Handwritten digits: networks lose most of their units and next to nothing of their accuracy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import (
    BMRS_N,
    BMRS_U,
    SNR,
    AutoTruncatedLogNormal,
    Classification,
    PosteriorMean,
    Saliency,
    WeightNorm,
    accuracy_vs_compression,
    attach_noise,
    parameter_groups,
    prune,
    rank_correlations,
)
from tests.pruning.selection.guided import kept, mlp

NUM_EPOCHS, BATCH, LR, NOISE_LR, KL_WEIGHT = 50, 128, 1e-2, 0.1, 2.0


def dense():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def convolutional():
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


@pytest.fixture(scope="module")
def digits():
    images, targets = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, targets, test_size=0.25, random_state=0, stratify=targets)
    x_train, x_test = (torch.tensor(part, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in parts[:2])
    return (x_train, torch.tensor(parts[2])), (x_test, torch.tensor(parts[3]))


def train(loss, optimizer, x, y):
    for _ in range(NUM_EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            value = loss(x[batch], y[batch])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()


def accuracy(predict, x, y):
    with torch.no_grad():
        return float((predict(x).argmax(-1) == y).float().mean())


def train_plain(build, seed, data):
    torch.manual_seed(seed)
    net = build()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    train(lambda x, y: F.cross_entropy(net(x), y), optimizer, *data)
    return net


def train_noisy(build, seed, data):
    torch.manual_seed(seed)
    net = attach_noise(build())
    model = Classification(net, len(data[0]), kl_weight=KL_WEIGHT)
    guide = AutoTruncatedLogNormal(model)
    elbo = TraceMeanField_ELBO()(model, guide)
    train(elbo, torch.optim.Adam(parameter_groups(elbo, lr=LR, noise_lr=NOISE_LR)), *data)
    return net, guide


# A convolutional network takes four times as long to train.
@pytest.fixture(scope="module", params=[(dense, (0, 1, 2)), (convolutional, (0,))], ids=["dense", "convolutional"])
def networks(request, digits):
    build, seeds = request.param
    return [(train_plain(build, seed, digits[0]), *train_noisy(build, seed, digits[0])) for seed in seeds]


@pytest.mark.no_cover
def test_most_units_go_and_little_accuracy(networks, digits):
    """Whatever the seed, at least 70% of the units go, for at most 1.5 points of test accuracy."""
    shares, losses = [], []
    for plain, net, guide in networks:
        result = prune(net, guide, BMRS_N())
        shares.append(result.num_removed / (result.num_removed + result.num_kept))
        after = accuracy(poutine.condition(net, data=guide.mean_noise()), *digits[1])
        losses.append(accuracy(plain, *digits[1]) - after)
        for noise in guide.noise.values():
            noise.kept.fill_(True)
    assert min(shares) >= 0.7
    assert sum(losses) / len(losses) <= 0.015


def test_every_criterion_orders_the_units(networks, digits):
    _, net, guide = networks[0]
    batches = [tuple(part[:200] for part in digits[0])]
    criteria = [BMRS_N(), BMRS_U(8), BMRS_U(4), SNR(), PosteriorMean(), WeightNorm()]
    criteria += [Saliency(batches, kind="taylor"), Saliency(batches, kind="fisher")]
    for criterion in criteria:
        curve = accuracy_vs_compression(
            net, guide, criterion, lambda predict: accuracy(predict, *digits[1]), num_points=5
        )
        assert curve["value"][0] > 0.9 > curve["value"].iloc[-1]
    correlations = rank_correlations(net, guide, criteria)
    of_noise = ["BMRS_N", "BMRS_U-8", "BMRS_U-4", "SNR", "PosteriorMean"]
    assert (correlations.loc[of_noise, of_noise] > 0.9).all(axis=None)
    assert (correlations.loc["WeightNorm", of_noise] > 0.5).all()


def test_a_curve_removes_units_one_by_one_and_leaves_the_network_as_it_was():
    net, guide = mlp([-0.5, -0.1, -0.4, -0.2, -0.3, -0.05, -0.01])
    guide.noise["2"].kept[2] = False
    net.train()
    before, x = kept(guide), torch.randn(5, 3)
    outputs = []

    def evaluate(predict):
        outputs.append(predict(x))
        assert not net.training
        return len(outputs)

    curve = accuracy_vs_compression(net, guide, PosteriorMean(), evaluate)
    assert list(zip(curve["site"], curve["unit"])) == [("", -1), ("0", 0), ("0", 2), ("2", 0), ("0", 3)]
    assert curve["num_removed"].tolist() == [1, 2, 3, 4, 5]
    assert curve["value"].tolist() == [1, 2, 3, 4, 5]
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == 5
    assert kept(guide) == before and net.training
    short = accuracy_vs_compression(net, guide, PosteriorMean(), lambda predict: 0.0, num_points=3)
    assert short["num_removed"].tolist() == [1, 3, 5]
    with pytest.raises(ReductionError, match="number of points of a curve is a finite number of at least 2"):
        accuracy_vs_compression(net, guide, PosteriorMean(), evaluate, num_points=1)


def test_rank_correlations():
    net, guide = mlp([-0.5, -0.1, -0.4, -0.2, -0.3, -0.05, -0.01])
    with torch.no_grad():
        guide.noise_log_scales.fill_(-5.0)
        net[0].weight.copy_(guide.noise_posterior("0").mean.unsqueeze(-1).expand(4, 3))
        net[2].weight.copy_(-guide.noise_posterior("2").mean.unsqueeze(-1).expand(3, 4) * 3**0.5 / 2)
    table = rank_correlations(net, guide, [PosteriorMean(), WeightNorm()])
    assert table.loc["PosteriorMean", "WeightNorm"] == pytest.approx(1.0)
    assert list(table.columns) == list(table.index) == ["PosteriorMean", "WeightNorm"]
    with pytest.raises(ReductionError, match="two of the criteria are called 'PosteriorMean'"):
        rank_correlations(net, guide, [PosteriorMean(), PosteriorMean(0.1)])
