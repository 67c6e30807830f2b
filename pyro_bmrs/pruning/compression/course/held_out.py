# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How a network does on examples that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from pyro.distributions import Categorical, Independent
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.examples import evaluation
from pyro_bmrs.pruning.training.models import Likelihood


class HeldOut(NamedTuple):
    """
    How a network does on held-out examples.

    :param log_likelihoods: of each example in nats, on the CPU.
    :param right: for each example whether its label is the most probable one (of several, the share of them), on the
        CPU; None where labels are not what is observed.
    """

    log_likelihoods: Tensor
    right: Tensor | None

    @property
    def accuracy(self) -> float:
        """The share of labels that are the most probable ones; NaN where labels are not what is observed."""
        return math.nan if self.right is None else float(self.right.mean())


def held_out(model: Likelihood, batches: Iterable[tuple[Any, Tensor]]) -> HeldOut:
    """
    The log likelihoods of held-out examples, without gradients, the network in evaluation mode.

    :param model: a network without noise, and its likelihood.
    :param batches: pairs of inputs and targets.
    :raises ReductionError: for a likelihood that is not one number for each example.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import Classification
        >>> model = Classification(nn.Identity(), 2)
        >>> held_out(model, [(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 0]))]).accuracy
        1.0
    """
    device = next((parameter.device for parameter in model.parameters()), None)
    log_likelihoods, right = [], []
    with evaluation(model), torch.no_grad():
        for batch in batches:
            x, y = batch if device is None else tree_map_only(Tensor, lambda value: value.to(device), tuple(batch))
            observation = model.observation(model.net(x))
            log_likelihood = observation.log_prob(y)
            if log_likelihood.shape != y.shape[:1]:
                raise ReductionError(
                    f"the likelihood gives log probabilities of shape {tuple(log_likelihood.shape)} to targets of "
                    f"shape {tuple(y.shape)}; one for each example is needed: make the other dimensions an event"
                )
            log_likelihoods.append(log_likelihood.double().cpu())
            labels = observation
            while isinstance(labels, Independent):
                labels = labels.base_dist
            if isinstance(labels, Categorical):
                right.append((labels.logits.argmax(-1) == y).double().reshape(len(y), -1).mean(1).cpu())
    return HeldOut(torch.cat(log_likelihoods), torch.cat(right) if right else None)
