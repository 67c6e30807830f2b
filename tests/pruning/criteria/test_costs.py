# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import attach_noise, in_proportion_to_cost, unit_costs


def test_a_network_without_noise_has_no_units_to_cost():
    with pytest.raises(ReductionError, match="no noise"):
        unit_costs(nn.Linear(2, 2))


def test_costs_count_weights_and_multiplications():
    net = attach_noise(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 5), nn.ReLU(), nn.Linear(5, 2))
    )
    assert unit_costs(net) == {"0": 18, "3": 48}
    assert unit_costs(net, torch.randn(4, 2, 6, 6)) == {"0": 18 * 16, "3": 48}
    odds = in_proportion_to_cost(net, torch.randn(1, 2, 6, 6), mean=2.0)
    assert odds["0"] / odds["3"] == pytest.approx(6)
    assert (3 * odds["0"] + 5 * odds["3"]) / 8 == pytest.approx(2.0)
    roots = in_proportion_to_cost(net, torch.randn(1, 2, 6, 6), mean=2.0, power=0.5)
    assert roots["0"] / roots["3"] == pytest.approx(6**0.5)
    assert (3 * roots["0"] + 5 * roots["3"]) / 8 == pytest.approx(2.0)


def test_a_network_in_training_is_left_as_it_is():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    attach_noise(net, per_example=True).train()
    state, random = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    for num_examples in (20, 1):  # of one alone, batch norm in training has no statistics
        assert unit_costs(net, torch.randn(num_examples, 4, generator=torch.Generator()) + 100) == {"0": 4}
    assert net.training and all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name


class Named(nn.Module):
    """What is called with keyword arguments, and calls its second layer where it is told to."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, *, x, skip=None):
        hidden = self.first(x).relu()
        return hidden if skip else self.last(self.second(hidden).relu())


def test_inputs_may_be_a_mapping():
    net = attach_noise(Named())
    assert unit_costs(net, {"x": torch.randn(2, 7, 3)}) == {"first": 3 * 7, "second": 4 * 7}


def test_inputs_that_say_nothing_about_a_layer_are_refused():
    net = attach_noise(Named())
    with pytest.raises(ReductionError, match=r"does not call the layers of \['second'\]"):
        unit_costs(net, {"x": torch.randn(2, 3), "skip": True})
    with pytest.raises(ReductionError, match=r"does not run on example_inputs \(\(2, 3\)\)"):
        unit_costs(net, torch.randn(2, 3))


@pytest.mark.parametrize("options", [{"mean": float("nan")}, {"power": float("inf")}])
def test_means_and_powers_are_finite(options):
    with pytest.raises(ReductionError, match="finite number"):
        in_proportion_to_cost(attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), **options)


def test_a_layer_that_is_called_twice_costs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.act, self.last = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)

        def forward(self, a, b):
            return self.last(self.act(self.shared(a)) + self.act(self.shared(b)))

    net = attach_noise(Twice())
    assert (unit_costs(net), unit_costs(net, (torch.ones(2, 3), torch.ones(2, 3)))) == (
        {"shared": 3.0},
        {"shared": 6.0},
    )
