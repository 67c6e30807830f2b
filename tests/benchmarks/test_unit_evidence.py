# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The evidence of the units of an MLP on MNIST, beside what removing each of them does to the log likelihood of the data.

It needs the images: the environment variable PYRO_BMRS_DATA names a folder with ``mnist`` in it, which ``datasets``
reads. What it takes is told in times of one epoch of the training, in time of the processor.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_bmrs.pruning import BMRS_N, AutoTruncatedLogNormal, Classification, NoiseELBO, attach_noise, parameter_groups

datasets = pytest.importorskip("datasets", reason="images are read by datasets (extra paper)")

NUM_EXAMPLES, EPOCHS, BATCH = 20_000, 12, 128


def digits():
    root = os.environ.get("PYRO_BMRS_DATA")
    if root is None or not (Path(root) / "mnist").exists():
        pytest.skip("PYRO_BMRS_DATA names no folder with mnist in it")
    rows = datasets.load_dataset(str(Path(root) / "mnist"), split=f"train[:{NUM_EXAMPLES}]")
    x = torch.from_numpy(np.stack([np.asarray(image) for image in rows["image"]])).flatten(1) / 255
    return (x - x.mean()) / x.std(), torch.tensor(rows["label"])


@pytest.fixture(scope="module")
def trained():
    """Six layers of 50 units, with the KL weight 1; and how long an epoch took."""
    x, y = digits()
    pyro.set_rng_seed(0)
    widths = [784] + 6 * [50]
    hidden = [module for sizes in zip(widths, widths[1:]) for module in (nn.Linear(*sizes), nn.Tanh())]
    net = attach_noise(nn.Sequential(*hidden, nn.Linear(50, 10)))
    model = Classification(net, len(x))
    guide = AutoTruncatedLogNormal(model)
    elbo = NoiseELBO()(model, guide)
    optimizer = torch.optim.Adam(parameter_groups(elbo, lr=1e-3))
    start = time.process_time()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            elbo(x[batch], y[batch]).backward()
            optimizer.step()
    return net, guide, x, y, (time.process_time() - start) / EPOCHS


@torch.no_grad()
def cost_of_removal(net, guide, x, y):
    """What the log likelihood loses when a unit is multiplied by 0 and the rest is as it predicts, unit by unit."""
    net.eval()
    means = guide.mean_noise()

    def log_likelihood(noise):
        return -nn.functional.cross_entropy(poutine.condition(net, data=noise)(x), y, reduction="sum").item()

    whole, costs = log_likelihood(means), []
    for name, mean in means.items():
        for unit in range(len(mean)):
            without = mean.clone()
            without[unit] = 0
            costs.append(whole - log_likelihood({**means, name: without}))
    return torch.tensor(costs)


def share_near(change, cost):
    """Of the units whose evidence is within a factor of two, or 5 nats, of what removing them costs."""
    return ((change + cost).abs().le(5) | ((-change > cost / 2) & (-change < cost * 2))).float().mean().item()


def told(name, change, cost, least):
    low, middle, high = change.min(), change.median(), change.max()
    near, impossible = share_near(change, cost), int((change < least).sum())
    print(
        f"{name}: {low:.0f} to {high:.1f}, {middle:.1f} in the median; {near:.1%} near the cost, {impossible} of "
        f"{len(change)} below -N log 10"
    )
    return near


def test_evidence_beside_the_cost_of_removal(trained, record_property):
    net, guide, x, y, epoch = trained
    cost = cost_of_removal(net, guide, x, y)
    least = -len(x) * np.log(10)
    batches = list(zip(x.split(250), y.split(250)))
    print(
        f"\nremoving a unit costs the data {cost.min():.0f} to {cost.max():.0f} nats, {cost.median():.0f} in the median"
    )
    told("closed", torch.cat(list(BMRS_N().scores(net, guide).values())), cost, least)
    for num_exact in (1000, None):
        start = time.process_time()
        found = BMRS_N().evaluate(net, guide, batches, num_exact=num_exact)
        epochs = (time.process_time() - start) / epoch
        evaluated, errors = (torch.cat(list(values.values())) for values in (found.change, found.error))
        near = told(f"evaluated, {num_exact or 'all'} exactly", evaluated, cost, least)
        print(
            f"... in {epochs:.1f} epochs; error {errors.median():.2f} in the median, {errors.quantile(0.9):.1f} of 10 %"
        )
        record_property(f"near, {num_exact or 'all'} exactly", near)
        assert near >= 0.9
        assert evaluated.min() >= least
    torch.testing.assert_close(-torch.cat(list(found.removal.values())), cost, rtol=1e-4, atol=0.05)
