# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks with noise that say what numbers to expect."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bmrs.errors import check_number
from pyro_bmrs.pruning.training.kl_weight import KLWeight
from pyro_bmrs.pruning.training.models import Likelihood


class Regression(Likelihood):
    """
    A network whose outputs are the means of normal observations, as a Pyro model.

    :param net: the network, with noise; its outputs are of the shape of the targets.
    :param num_examples: how many examples there are in the training data.
    :param scale: the standard deviation of the observations; by default it is learned.
    :param kl_weight: see :class:`Likelihood`.
    :raises ReductionError: also for a scale that is not positive and finite; when called, for outputs and targets of
        different shapes, such as ``(n, 1)`` and ``(n,)``, each of which would be compared with all of the others.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, NoiseELBO, Regression, attach_noise
        >>> x, y = torch.randn(200, 3), torch.randn(200, 1)
        >>> model = Regression(attach_noise(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))), 200)
        >>> NoiseELBO()(model, AutoTruncatedLogNormal(model))(x, y).backward()
    """

    def __init__(
        self, net: nn.Module, num_examples: int, *, scale: float | None = None, kl_weight: KLWeight = 1.0
    ) -> None:
        super().__init__(net, num_examples, kl_weight=kl_weight)
        if scale is not None:
            check_number(scale, "the scale of the observations", above=0)
        log_scale = torch.zeros(()) if scale is None else torch.tensor(float(scale)).log()
        self.log_scale = nn.Parameter(log_scale, requires_grad=scale is None)

    def observation(self, output: Tensor) -> Any:
        """A normal distribution, independent over outputs."""
        return dist.Normal(output, self.log_scale.exp()).to_event(output.dim() - 1)
