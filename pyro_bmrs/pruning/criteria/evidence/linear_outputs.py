# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What units do to the log likelihood if the outputs of the network are linear in their noise.

The likelihood of the outputs is taken as it is: that a class that is certain stays so is seen, which is what the second
order of the log likelihood itself misses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_bmrs.pruning.criteria.evidence.unit_profile import NUM_PLACES, Places
from pyro_bmrs.pruning.noise.hooks import shares_noise
from pyro_bmrs.pruning.noise.steps.precision import full_precision
from pyro_bmrs.pruning.training.batches import prediction, run_on_batch
from pyro_bmrs.pruning.training.models import Likelihood

# Of an example: each takes a run backwards.
_MOST_OUTPUTS = 32
# Of outputs of changed networks that are held at once.
_MOST_ELEMENTS = 4_000_000


def log_likelihood_of_each(likelihood: Likelihood, output: Tensor, y: Tensor) -> Tensor:
    """
    The log likelihood of each example, of shape ``(examples,)``, as training has the sum of it.

    :param likelihood: says how likely targets are given outputs.
    :param output: what the network predicts.
    :param y: the targets.
    """
    with full_precision(output.device):
        aligned, observed = likelihood.aligned(output, y)
        assert observed is not None, "targets"
        return likelihood.log_likelihoods(aligned, observed)


class LinearOutputs:
    """
    The outputs of a batch, and their derivatives in the noise of all units.

    :param likelihood: says how likely targets are given outputs.
    :param output: what the network predicts with all noise at its mean, examples along the first dimension.
    :param y: the targets.
    :param jacobians: by site, of shape ``(examples, units, numbers in an output)``.
    :param at: by site, where to evaluate.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        output: Tensor,
        y: Tensor,
        jacobians: Mapping[str, Tensor],
        at: Mapping[str, Places],
    ) -> None:
        self._likelihood, self._output, self._y = likelihood, output, y
        self._jacobians, self._at = jacobians, at

    @torch.no_grad()
    def __call__(self, name: str, base: Tensor) -> Tensor:
        """
        The log likelihood of each example at the places of each unit of a site less that at the mean.

        :param name: the site.
        :param base: the log likelihoods at the mean.
        :return: of shape ``(units, 3, examples)``.
        """
        at, jacobian, output = self._at[name], self._jacobians[name], self._output
        steps = (at.noise - at.mean.unsqueeze(-1)).to(output)
        size = max(1, _MOST_ELEMENTS // (NUM_PLACES * output.numel()))
        parts = []
        for slopes, some in zip(jacobian.split(size, 1), steps.split(size)):
            change = slopes.unsqueeze(2) * some[None, :, :, None]
            moved = output.unsqueeze(1) + change.flatten(1, 2).unflatten(-1, output.shape[1:])
            targets = self._y.repeat_interleave(moved.shape[1], 0)
            found = log_likelihood_of_each(self._likelihood, moved.flatten(0, 1), targets)
            parts.append(found.reshape(len(output), -1, NUM_PLACES) - base[:, None, None])
        return torch.cat(parts, 1).movedim(0, -1)


def linear_outputs(
    net: nn.Module, likelihood: Likelihood, x: Any, y: Tensor, at: Mapping[str, Places]
) -> LinearOutputs | None:
    """
    Runs a batch, forwards once, and backwards once for each number in an output.

    :param net: a network with noise, in evaluation mode.
    :param likelihood: says how likely targets are given its outputs.
    :param x: inputs.
    :param y: targets.
    :param at: by site, where to evaluate.
    :return: None for a network of more than 32 outputs, and for one with noise on weights that all examples share.
    """
    if shares_noise(net):
        return None
    with torch.enable_grad():
        noise = {name: places.mean.expand(len(y), -1).clone().requires_grad_() for name, places in at.items()}
        with poutine.condition(data=noise):
            output = prediction(run_on_batch(net, x))
        numbers = output.flatten(1)
        if len(output) != len(y) or numbers.shape[1] > _MOST_OUTPUTS:
            return None
        by_number = [
            torch.autograd.grad(number.sum(), list(noise.values()), retain_graph=True, allow_unused=True)
            for number in numbers.unbind(1)
        ]
    jacobians = {
        name: torch.stack([torch.zeros_like(values) if part is None else part for part in parts], -1).detach()
        for (name, values), parts in zip(noise.items(), zip(*by_number))
    }
    return LinearOutputs(likelihood, output.detach(), y, jacobians, at)
