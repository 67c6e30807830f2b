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

from pyro_bmrs.pruning.examples import evaluation
from pyro_bmrs.pruning.training.batches import on_device, pair_of, prediction, run_on_batch
from pyro_bmrs.pruning.training.classification import Classification
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


def held_out(model: Likelihood, batches: Iterable[Any]) -> HeldOut:
    """
    The log likelihoods of held-out examples, without gradients, the network in evaluation mode.

    :param model: a network without noise, and its likelihood.
    :param batches: pairs of inputs and targets, or mappings that hold both.
    :raises ReductionError: for outputs and targets that do not fit.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import Classification
        >>> model = Classification(nn.Identity(), 2)
        >>> held_out(model, [(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 0]))]).accuracy
        1.0
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    log_likelihoods, right = [], []
    with evaluation(model), torch.no_grad():
        for batch in batches:
            x, y = on_device(pair_of(batch), device)
            output, targets = model.aligned(prediction(run_on_batch(model.net, x)), y)
            assert targets is not None, "of targets"
            log_likelihoods.append(model.log_likelihoods(output, targets).double().cpu())
            labels = model.observation(output)
            while isinstance(labels, Independent):
                labels = labels.base_dist
            if isinstance(labels, Categorical):
                ignored = model.ignore_index if isinstance(model, Classification) else -1
                is_known = targets.ne(ignored)
                is_right = (labels.logits.argmax(-1) == targets) & is_known
                shares = _by_example(is_right) / _by_example(is_known).clamp(min=1)
                right.append(shares.cpu())
    return HeldOut(torch.cat(log_likelihoods), torch.cat(right) if right else None)


def _by_example(counted: Tensor) -> Tensor:
    return counted.double().reshape(len(counted), -1).sum(1)
