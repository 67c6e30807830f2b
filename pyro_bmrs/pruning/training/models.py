# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks with noise as Pyro models, ready to be trained as any PyTorch module is."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.elbo import ELBOModule
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.noise.multiplicative_noise import MultiplicativeNoise
from pyro_bmrs.pruning.training.kl_weight import KLWeight, Scales, check_kl_weight, weight_of_site


def _is_heard() -> bool:
    """Whether SVI, or another handler outside, collects parameters: telling them costs more than a small layer."""
    collecting = (handler for handler in _PYRO_STACK if isinstance(handler, TraceMessenger))
    return any(not isinstance(handler, GuideMessenger) for handler in collecting)


class Likelihood(nn.Module):
    r"""
    A network and its likelihood as a Pyro model; see :class:`Classification` and :class:`Regression`.

    The loss of an ELBO is a mean per example: with N examples in all and B of them in a batch, the log likelihood is
    scaled by 1 / B and the divergences by 1 / N, which is the ELBO of all the data over N.

    :param net: the network.
    :param num_examples: how many examples there are in the training data.
    :param kl_weight: what the divergence of the noise is multiplied by: 1 is the ELBO; a number :math:`\beta` fits the
        posterior under the likelihood to the power :math:`1/\beta`, as if N / :math:`\beta` examples had been seen;
        ``"layer_mean"`` is the mean over sites and units, :math:`\beta = N / (L d_l)` for the l-th of L sites, with
        :math:`d_l` units (D. Wright, C. Igel and R. Selvan (2024), https://arxiv.org/abs/2406.01345); a mapping has a
        number for each site, as :func:`in_proportion_to_cost` gives; a callable is given the number of the training
        step. :class:`WarmUp` begins any of these at 0.
    :raises ReductionError: for fewer than one example, a weight that is none of the above, or a mapping whose sites are
        not the network's.
    """

    def __init__(self, net: nn.Module, num_examples: int, *, kl_weight: KLWeight = 1.0) -> None:
        super().__init__()
        if num_examples < 1:
            raise ReductionError(f"num_examples is the size of the training data, not {num_examples}")
        noise = [module for module in net.modules() if isinstance(module, MultiplicativeNoise)]
        self._sizes = {module.site_name: module.num_units for module in noise}
        self.net, self.num_examples, self.kl_weight = net, num_examples, kl_weight
        check_kl_weight(kl_weight, self._sizes)
        # A number, since reading a buffer would wait for its device in every step.
        self._num_steps = 0

    def noise_weight(self, site: str) -> float:
        """
        The present weight of the divergence of a noise site: the temperature of the posterior that is fitted.

        :param site: the name of the site.
        """
        return weight_of_site(self.kl_weight, site, self._num_steps, self._sizes, self.num_examples)

    def example_weight(self, site: str) -> float:
        """
        The present weight of the divergence of a noise site in the loss, which is a mean per example.

        :param site: the name of the site.
        """
        return self.noise_weight(site) / self.num_examples

    def forward(self, x: Any, y: Tensor | None = None) -> Tensor:
        """
        Runs the network, and observes ``y`` where it is given; else draws it.

        :param x: what the network is called with.
        :param y: what was observed, the examples along the first dimension.
        :return: the network's output.
        """
        if _is_heard():
            pyro.module("net", self.net)
        with Scales(1 / self.num_examples, self.noise_weight):
            output: Tensor = self.net(x)
        # A guide that runs the model would take what is not observed for latent.
        if y is not None or not any(isinstance(handler, GuideMessenger) for handler in _PYRO_STACK):
            with poutine.scale(scale=1 / len(output)), pyro.plate("data", len(output), dim=-1):
                pyro.sample("y", self.observation(output), obs=y)
        if self.training and y is not None:
            self.count_step()
        return output

    def count_step(self) -> None:
        """One more training step is done."""
        self._num_steps += 1

    def get_extra_state(self) -> Tensor:
        """What the state dict holds besides parameters and buffers: how many steps were made, for warm-ups."""
        return torch.tensor(self._num_steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Goes on where the state dict was taken."""
        self._num_steps = int(state)

    def observation(self, output: Tensor) -> Any:
        """The distribution of what is observed, given the network's output; of one batch dimension, the examples."""
        raise NotImplementedError

    def negative_log_likelihood(self, output: Tensor, y: Tensor) -> Tensor:
        """Of what was observed given the network's output, in nats; the mean over examples."""
        log_likelihoods: Tensor = self.observation(output).log_prob(y)
        return -log_likelihoods.mean()


class Classification(Likelihood):
    """
    A network whose outputs are the logits of classes, as a Pyro model.

    With a guide and an ELBO it is trained as any PyTorch module is.

    :param net: the network, with noise; its outputs have shape ``(batch, classes)``.
    :param num_examples: how many examples there are in the training data.
    :param kl_weight: see :class:`Likelihood`.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, NoiseELBO
        >>> from pyro_bmrs.pruning import attach_noise, parameter_groups
        >>> x, y = torch.randn(200, 3), torch.randint(2, (200,))
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)))
        >>> model = Classification(net, num_examples=200)
        >>> elbo = NoiseELBO()(model, AutoTruncatedLogNormal(model))
        >>> optimizer = torch.optim.Adam(parameter_groups(elbo, lr=1e-3))
        >>> for _ in range(3):
        ...     loss = elbo(x, y)
        ...     optimizer.zero_grad(); loss.backward(); optimizer.step()
    """

    def observation(self, output: Tensor) -> Any:
        """A categorical distribution."""
        return dist.Categorical(logits=output)

    def negative_log_likelihood(self, output: Tensor, y: Tensor) -> Tensor:
        """The same as by the distribution, in one operation, unless a derived class has another."""
        if type(self).observation is not Classification.observation:
            return super().negative_log_likelihood(output, y)
        return nn.functional.cross_entropy(output, y)


class Regression(Likelihood):
    """
    A network whose outputs are the means of normal observations, as a Pyro model.

    :param net: the network, with noise.
    :param num_examples: how many examples there are in the training data.
    :param scale: the standard deviation of the observations; by default it is learned.
    :param kl_weight: see :class:`Likelihood`.
    :raises ReductionError: also for a scale that is not positive.
    """

    def __init__(
        self, net: nn.Module, num_examples: int, *, scale: float | None = None, kl_weight: KLWeight = 1.0
    ) -> None:
        super().__init__(net, num_examples, kl_weight=kl_weight)
        if scale is not None and not scale > 0:
            raise ReductionError(f"the scale of the observations is positive, not {scale}")
        log_scale = torch.zeros(()) if scale is None else torch.tensor(scale).log()
        self.log_scale = nn.Parameter(log_scale, requires_grad=scale is None)

    def observation(self, output: Tensor) -> Any:
        """A normal distribution, independent over outputs."""
        return dist.Normal(output, self.log_scale.exp()).to_event(output.dim() - 1)


def parameter_groups(elbo: ELBOModule, *, lr: float, noise_lr: float | None = None) -> list[dict[str, Any]]:
    """
    The parameters of a model and its guide in two groups for an optimiser: the noise's have their own learning rate.

    :param elbo: what an ELBO returns for a model and an :class:`AutoTruncatedLogNormal`.
    :param lr: learning rate of the weights, and of all else.
    :param noise_lr: that of the noise; ten times the other by default.
    :return: the groups, the weights first.
    :raises ReductionError: for a guide without noise.
    """
    guide = elbo.guide
    if not isinstance(guide, AutoTruncatedLogNormal) or not guide.noise:
        raise ReductionError(
            "the guide has no noise; give an ELBO of a network with noise and an AutoTruncatedLogNormal"
        )
    noise = guide.noise_parameters
    others = [parameter for parameter in elbo.parameters() if parameter is not noise]
    return [{"params": others, "lr": lr}, {"params": [noise], "lr": 10 * lr if noise_lr is None else noise_lr}]
