# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_bmrs import ReductionError, ReductionWarning
from pyro_bmrs.pruning import Regression, attach_noise, compress

ADAM = partial(torch.optim.Adam, lr=1e-2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 10))


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16).float(), torch.tensor(labels)


@pytest.fixture(scope="module")
def compressed(digits):
    x, y = digits
    net = network()
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    loader = DataLoader(TensorDataset(x[:1200], y[:1200]), batch_size=50, shuffle=True)
    result = compress(net, loader, epochs=20, optimizer=ADAM, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    return net, before, result


def accuracy(net, x, y):
    with torch.no_grad():
        return float((net(x).argmax(-1) == y).float().mean())


def test_it_is_smaller_and_does_as_well(compressed, digits):
    *_, result = compressed
    x, y = (part[1200:] for part in digits)
    assert accuracy(result.at(0), x, y) > 0.9
    assert accuracy(result.network, x, y) > accuracy(result.at(0), x, y) - 0.01
    size, whole = (sum(p.numel() for p in net.parameters()) for net in (result.network, result.at(0)))
    assert size < 0.6 * whole
    assert result.path["parameters"].tolist()[result.chosen] == size and whole == result.path["parameters"][0]


def test_it_is_an_ordinary_network(compressed):
    *_, result = compressed
    assert [type(module) for module in result.network.modules()] == [type(module) for module in network().modules()]
    assert not result.network.training
    widths = [result.network[0].out_features, result.network[2].out_features]
    assert widths == [int(kept.sum()) for kept in result.kept.values()]


def test_all_is_left_as_it_was(compressed):
    net, before, _ = compressed
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and not any(module._forward_hooks for module in net.modules())


def test_the_path_is_a_table(compressed):
    *_, result = compressed
    path = result.path
    assert path["parameters"].is_monotonic_decreasing and path["temperature"].is_monotonic_increasing
    assert path["chosen"].sum() == 1 and path["trained"][0] and path["trained"][result.chosen]
    assert (path[["0", "2"]].diff().dropna() <= 0).all().all()
    # Of those that were trained, the smallest within an error of the whole's labels, and of the most likely.
    trained, labels = path[path["trained"]], result.steps[0].held_out.right
    near = trained[trained["accuracy"] >= path["accuracy"][0] - float(labels.std() / math.sqrt(len(labels)))]
    best = near["log_likelihood"].idxmax()
    near = near[near["log_likelihood"] >= near["log_likelihood"][best] - near["error"][best]]
    assert near["parameters"].idxmin() == result.chosen
    assert set(result.decisions.scores) == set(result.prices.units) == {"0", "2"}
    assert ("again" in result.rule) == (result.chosen == len(path) - 1)


@pytest.mark.usefixtures("idle_devices")
def test_real_numbers_and_a_budget(digits):
    """The sum of an image's pixels, of which a linear function is enough."""
    x, _ = digits
    net = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 1))
    data = (x[:600], x[:600].sum(1, keepdim=True) / 10 - 3)
    result = compress(net, data, epochs=4, optimizer=ADAM, budget={"parameters": 0.3}, progress=False)
    share = result.path["parameters"].iloc[-1] / result.path["parameters"][0]
    assert 0.25 < share <= 0.3 and result.chosen == len(result.steps) - 1
    assert "accuracy" not in result.path and "budget" in repr(result)


def test_a_trained_network_and_a_loss_of_accuracy(digits):
    x, y = digits
    net = network().eval()
    optimizer = ADAM(net.parameters())
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:600]), y[:600]).backward()
        optimizer.step()
    data = (x[:600], y[:600]), (x[600:900], y[600:900])
    result = compress(net, *data, epochs=6, is_trained=True, accuracy_loss=0.3, progress=False, optimizer=ADAM)
    torch.testing.assert_close(result.at(0)(x[:5]), net(x[:5]))
    whole, chosen = result.path["accuracy"][0], result.path["accuracy"][result.chosen]
    assert result.chosen and chosen >= whole - 0.3


def test_a_trained_network_may_have_seen_what_is_held_out(digits):
    with pytest.warns(ReductionWarning, match="validation_data"):
        compress(network(), digits, epochs=1, is_trained=True, accuracy_loss=0.5, progress=False)


def test_a_whole_network_that_is_short_of_training_is_no_measure(digits):
    """What comes after it has seen more, and is surely better: what is taken keeps up with that."""
    (x, y), options = digits, {"epochs": 2, "optimizer": ADAM, "progress": False}
    result = compress(network(), (x[:800], y[:800]), (x[800:], y[800:]), **options)
    path = result.path[result.path["trained"]]
    assert path["accuracy"].max() > path["accuracy"][0] + 0.1
    assert path["accuracy"][result.chosen] > path["accuracy"][0] + 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 2.5}, "epochs"),
        ({"budget": {"parameters": 1.2}}, "limit"),
        ({"budget": {"parameters": math.nan}}, "limit"),
        ({"accuracy_loss": -0.1}, "accuracy_loss"),
        ({"accuracy_loss": math.nan}, "accuracy_loss"),
        ({"accuracy_loss": 0.1, "budget": {"macs": 0.5}}, "not both"),
        ({"accuracy_loss": 0.1, "likelihood": Regression}, "labels"),
        ({"prior_log_odds": math.inf}, "prior_log_odds"),
        ({"prior_log_odds": {"0": math.nan}}, "prior_log_odds"),
        ({"prior_log_odds": {"1": 2.0}}, "noise sites"),
    ],
)
def test_mistakes_show_before_training(options, message):
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(50, 4)

    def never(parameters):
        raise AssertionError("trained")

    y = x[:, :2] if "likelihood" in options else (x[:, 0] > 0).long()
    with pytest.raises(ReductionError, match=message):
        compress(net, (x, y), progress=False, optimizer=never, **options)


def test_widths_before_norms_are_units(digits):
    """All hidden units of a network of layer norms, and no others, are the widths of its streams."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(64, 30), nn.LayerNorm(30), nn.GELU()), *(nn.Linear(30, 20), nn.LayerNorm(20)))
    net = nn.Sequential(*net, nn.GELU(), nn.Linear(20, 10))
    result = compress(net, digits, epochs=4, optimizer=ADAM, budget={"parameters": 0.5}, progress=False)
    assert list(result.kept) == ["0.width", "3.width"]
    small = result.network
    assert (small[1].normalized_shape, small[4].normalized_shape) == (
        (small[0].out_features,),
        (small[3].out_features,),
    )
    assert accuracy(small, *digits) > 0.9


def test_networks_without_units():
    x = torch.randn(50, 4)
    with pytest.raises(ReductionError, match="nothing to attach"):
        compress(nn.Linear(4, 2), (x, (x[:, 0] > 0).long()), epochs=1, progress=False)
    noisy = attach_noise(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    with pytest.raises(ReductionError, match="noise attached already"):
        compress(noisy, (x, (x[:, 0] > 0).long()), epochs=1, progress=False)
