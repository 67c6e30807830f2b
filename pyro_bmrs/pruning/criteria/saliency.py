# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A criterion that reads the gradient of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.criteria.criterion import Criterion, Scores
from pyro_bmrs.pruning.examples import call, evaluation, one_by_one
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.noise.hooks import shares_noise
from pyro_bmrs.pruning.noise.steps.precision import at_least_single
from pyro_bmrs.pruning.training.batches import prediction


@dataclass(frozen=True)
class Saliency(Criterion):
    r"""
    How much the loss would change without a unit, estimated from its gradient in the noise at the posterior mean.

    With g the gradient of an example's loss in the noise and m its mean, ``"taylor"`` is the first order of the loss's
    change, :math:`|m \sum g| / N` (P. Molchanov et al. (2017), https://arxiv.org/abs/1611.06440), and ``"fisher"`` the
    second, with the Fisher information for the curvature, :math:`m^2 \sum g^2 / 2N` (L. Theis et al. (2018),
    https://arxiv.org/abs/1801.05787).

    :param batches: pairs of inputs and targets, examples along the first dimension; a list or a data loader. Inputs are
        a tensor, a sequence of positional arguments, or a mapping of keyword arguments.
    :param kind: ``"taylor"`` or ``"fisher"``.
    :param loss: the mean loss of a batch, given the network's output (or the logits in it) and the targets; by default
        the cross entropy.
    :raises ReductionError: for another kind, or batches without examples.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, Saliency, attach_noise, prune
        >>> _ = torch.manual_seed(0)
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> with torch.no_grad():  # in place of fitting
        ...     guide.noise_locs[:3] = -20.0
        >>> batches = [(torch.randn(8, 3), torch.randint(2, (8,)))]
        >>> prune(net, guide, Saliency(batches), fraction=0.5).num_kept
        2
    """

    batches: Iterable[tuple[Any, Tensor]]
    kind: str = "taylor"
    # By a factory: a function that is a class attribute would be a method.
    loss: Callable[[Tensor, Tensor], Tensor] = field(default_factory=lambda: F.cross_entropy)

    def __post_init__(self) -> None:
        if self.kind not in ("taylor", "fisher"):
            raise ReductionError(f"the kinds of saliency are 'taylor' and 'fisher', not {self.kind!r}")

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"Saliency-{self.kind}"

    def scores(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
        """The estimated change in the mean loss; 0 for units that are gone."""
        means = guide.mean_noise()
        # Noise on weights is shared by the examples of a batch.
        is_shared = shares_noise(net)
        total, count = {name: torch.zeros_like(mean) for name, mean in means.items()}, 0
        with evaluation(net):
            for x, y in self.batches:
                examples = zip(one_by_one(x), y.split(1)) if is_shared else [(x, y)]
                gradients = [self._gradients(net, means, *example) for example in examples]
                for name, summed in total.items():
                    by_example = torch.cat([gradient[name] for gradient in gradients])
                    summed += (by_example if self.kind == "taylor" else by_example.square()).sum(0)
                count += len(y)
        if not count:
            raise ReductionError("Saliency was given no example")
        if self.kind == "taylor":
            return {name: (means[name] * summed / count).abs() for name, summed in total.items()}
        return {name: 0.5 * means[name].square() * summed / count for name, summed in total.items()}

    def _gradients(self, net: nn.Module, means: Scores, x: Any, y: Tensor) -> Scores:
        """Of each example's loss in the noise: shape ``(examples, units)``."""
        # Noise of its own for each example, but where the noise is on weights, which examples share: there is one.
        shape = (len(y),) if len(y) > 1 else ()
        noise = {name: mean.expand(shape + mean.shape).clone().requires_grad_() for name, mean in means.items()}
        with poutine.condition(data=noise):
            loss = self.loss(at_least_single(prediction(call(net, x))), y) * len(y)
        gradients = torch.autograd.grad(loss, list(noise.values()), allow_unused=True)
        return {
            name: torch.zeros_like(mean).expand(len(y), -1) if gradient is None else gradient.reshape(len(y), -1)
            for (name, mean), gradient in zip(means.items(), gradients)
        }
