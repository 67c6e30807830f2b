# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a unit costs, and numbers in proportion to it: prior odds for removal, weights of the divergence."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import nn

from pyro_bmrs.errors import ReductionError, check_number
from pyro_bmrs.pruning.criteria.weights import incoming_weights
from pyro_bmrs.pruning.examples import run
from pyro_bmrs.pruning.layers import channel_dim
from pyro_bmrs.pruning.noise.attachment import noise_sites
from pyro_bmrs.pruning.noise.recognition.recurrences import is_recurrent, num_steps


def unit_costs(net: nn.Module, example_inputs: Any = None) -> dict[str, float]:
    """
    What one unit of each noise site costs: its incoming weights, or the multiplications that they take part in.

    :param net: a network with noise.
    :param example_inputs: what the network is called with: a tensor, a sequence of positional arguments, or a mapping
        of keyword arguments; multiply-accumulate operations for one example are counted then, parameters otherwise. The
        network runs in evaluation mode, and stays as it is.
    :return: for each site the number of parameters, or of operations.
    :raises ReductionError: for a network without noise, or example inputs that do not fit it, or on which it does not
        call a layer that has noise.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import attach_noise, unit_costs
        >>> net = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 24 * 24, 10))
        >>> unit_costs(attach_noise(net)), unit_costs(net, torch.ones(1, 1, 28, 28))
        ({'0': 25.0}, {'0': 14400.0})
    """
    sites = noise_sites(net)
    if not sites:
        raise ReductionError("the network has no noise; attach_noise(net) puts it there")
    weights = {name: float(incoming_weights(net, site).shape[1]) for name, site in sites.items()}
    if example_inputs is None:
        return weights
    positions: dict[nn.Module, float] = {}

    def count(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if is_recurrent(layer):
            places: float = num_steps(layer, value)
        else:
            places = value[0].numel() / value.shape[channel_dim(layer, value)]
        # Once more for each call.
        positions[layer] = positions.get(layer, 0.0) + places

    layers = {name: net.get_submodule(site.module) for name, site in sites.items()}
    ones = {name: torch.ones_like(site.noise.unit_prior.low) for name, site in sites.items()}
    with poutine.condition(data=ones):
        run(net, example_inputs, dict.fromkeys(layers.values(), count))
    missing = sorted(name for name, layer in layers.items() if layer not in positions)
    if missing:
        raise ReductionError(
            f"on example_inputs the network does not call the layers of {missing}: pass inputs on which it does"
        )
    return {name: weight * positions[layers[name]] for name, weight in weights.items()}


def in_proportion_to_cost(
    net: nn.Module, example_inputs: Any = None, *, mean: float = 1.0, power: float = 1.0
) -> dict[str, float]:
    """
    Numbers for the noise sites in proportion to what a unit costs, or to a power of it.

    For ``prior_log_odds`` of a criterion, where what costs more has to earn more to stay; and for ``kl_weight`` of a
    model, where noise is fitted to fewer examples, as it were, the more its unit costs.

    :param net: a network with noise.
    :param example_inputs: see :func:`unit_costs`; with them, cost is counted in multiplications.
    :param mean: the mean over all units.
    :param power: of the costs: 1 for proportion, 0 for the same number everywhere, 0.5 for half-way on a log scale.
    :return: a number for each site.
    :raises ReductionError: for a mean or a power that is no finite number; else as :func:`unit_costs`.

    Example::

        >>> from torch import nn
        >>> from pyro_bmrs.pruning import attach_noise, in_proportion_to_cost
        >>> net = nn.Sequential(nn.Linear(30, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
        >>> {name: round(odds, 2) for name, odds in in_proportion_to_cost(attach_noise(net)).items()}
        {'0': 1.71, '2': 0.29}
    """
    check_number(mean, "the mean over all units")
    check_number(power, "the power of the costs")
    costs = {name: cost**power for name, cost in unit_costs(net, example_inputs).items()}
    sites = noise_sites(net)
    total = sum(costs[name] * site.noise.num_units for name, site in sites.items())
    num_units = sum(site.noise.num_units for site in sites.values())
    return {name: mean * cost * num_units / total for name, cost in costs.items()}
