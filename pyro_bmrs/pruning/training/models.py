# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks with noise as Pyro models, ready to be trained as any PyTorch module is."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.elbo import ELBOModule
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError, check_number
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.noise.multiplicative_noise import MultiplicativeNoise
from pyro_bmrs.pruning.noise.steps.precision import at_least_single, full_precision
from pyro_bmrs.pruning.training.batches import prediction, run_on_batch, targets_of
from pyro_bmrs.pruning.training.kl_weight import KLWeight, Scales, check_kl_weight, weight_of_site
from pyro_bmrs.structure.vectorised import TURN


def _is_heard() -> bool:
    """Whether SVI, or another handler outside, collects parameters: telling them costs more than a small layer."""
    collecting = (handler for handler in _PYRO_STACK if isinstance(handler, TraceMessenger))
    return any(not isinstance(handler, GuideMessenger) for handler in collecting)


class Likelihood(nn.Module):
    r"""
    A network and its likelihood as a Pyro model; see :class:`Classification` and :class:`Regression`.

    The loss of an ELBO is a mean per example: with N examples in all and B of them in a batch, the log likelihood is
    scaled by 1 / B and the divergences by 1 / N, which is the ELBO of all the data over N.

    A derived class says by ``observation`` what is observed, given the network's output; the log likelihood of an
    example is the sum over all that is observed of it. It is computed in single precision at least, whatever the
    network's is.

    The network is called with a batch's inputs: a tensor, a sequence of positional arguments, or a mapping of keyword
    arguments, which may hold the targets as ``"labels"``. It returns a tensor, or has it as ``logits``, as the outputs
    of transformers do, or as the first of a tuple.

    :param net: the network.
    :param num_examples: how many examples there are in the training data.
    :param kl_weight: what the divergence of the noise is multiplied by: 1 is the ELBO; a number :math:`\beta` fits the
        posterior under the likelihood to the power :math:`1/\beta`, as if N / :math:`\beta` examples had been seen;
        ``"layer_mean"`` is the mean over sites and units, :math:`\beta = N / (L d_l)` for the l-th of L sites, with
        :math:`d_l` units (D. Wright, C. Igel and R. Selvan (2024), https://arxiv.org/abs/2406.01345); a mapping has a
        number for each site, as :func:`in_proportion_to_cost` gives; a callable is given the number of the training
        step. :class:`WarmUp` begins any of these at 0.
    :raises ReductionError: for fewer than one example, a number of them or a weight that is not finite, a weight that
        is none of the above, or a mapping whose sites are not the network's; when called, for targets that do not have
        the shape of what is observed.

    Example::

        >>> import pyro.distributions as dist, torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, Likelihood, NoiseELBO, attach_noise
        >>> class Counts(Likelihood):
        ...     def observation(self, output):
        ...         return dist.Poisson(output.exp())
        >>> model = Counts(attach_noise(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))), 200)
        >>> NoiseELBO()(model, AutoTruncatedLogNormal(model))(torch.randn(9, 3), torch.ones(9, 2)).dim()
        0
    """

    def __init__(self, net: nn.Module, num_examples: int, *, kl_weight: KLWeight = 1.0) -> None:
        super().__init__()
        check_number(num_examples, "num_examples, the size of the training data,", low=1)
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
        :param y: what was observed, the examples along the first dimension; by default what ``x``, if it is a mapping,
            has as ``"labels"``.
        :return: what the network predicts: its output, or the logits in it.
        """
        with TURN:
            # With nobody to hear, no more is asked for than what the network predicts.
            if not _PYRO_STACK:
                return prediction(run_on_batch(self.net, x))
            return self._heard(x, targets_of(x, y))

    def _heard(self, x: Any, y: Tensor | None) -> Tensor:
        """Runs the network for handlers."""
        if _is_heard():
            pyro.module("net", self.net)
        with Scales(1 / self.num_examples, self.noise_weight):
            output = prediction(run_on_batch(self.net, x))
        # A guide that runs the model would take what is not observed for latent.
        if y is not None or not any(isinstance(handler, GuideMessenger) for handler in _PYRO_STACK):
            with full_precision(output.device):
                aligned, observed = self.aligned(output, y)
                observation = self._observation_of(aligned, observed)
            with poutine.scale(scale=1 / len(output)), pyro.plate("data", len(output), dim=-1):
                pyro.sample("y", observation, obs=observed)
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
        """
        The distribution of what is observed, given the network's output; its first dimension counts the examples.

        :param output: what the network predicts, as :meth:`aligned` returns it.
        """
        raise NotImplementedError

    def aligned(self, output: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """
        The network's output and the targets, side by side, as :meth:`observation` is given them.

        :param output: what the network predicts.
        :param y: the targets.
        :return: both, the output in single precision at least.
        :raises ReductionError: for a batch without examples.
        """
        if not len(output):
            raise ReductionError("there is no example in the batch, of which the loss would be the mean")
        return at_least_single(output), y

    def _observation_of(self, output: Tensor, y: Tensor | None) -> Any:
        """The distribution of all that is observed of each example, of the shape of the targets."""
        observation = self.observation(output)
        if observation.batch_shape[:1] != output.shape[:1]:
            raise ReductionError(
                f"the first dimension of an observation counts the examples, {len(output)} here, and this "
                f"{type(observation).__name__} has the batch shape {tuple(observation.batch_shape)}"
            )
        shape = observation.batch_shape + observation.event_shape
        if y is not None and y.shape != shape:
            raise ReductionError(
                f"the network's output is of the shape {tuple(shape)} and the targets of {tuple(y.shape)}, which would "
                "be compared each with all: bring them to one shape, as by y.unsqueeze(-1) or output.squeeze(-1)"
            )
        return observation.to_event(len(observation.batch_shape) - 1)

    def log_likelihood(self, output: Tensor, y: Tensor) -> Tensor:
        """
        Of all examples of a batch together, in nats.

        :param output: what the network predicts, as :meth:`aligned` returns it.
        :param y: the targets, as :meth:`aligned` returns them.
        """
        return self.log_likelihoods(output, y).sum()

    def log_likelihoods(self, output: Tensor, y: Tensor) -> Tensor:
        """
        Of each example, in nats; shape ``(examples,)``.

        :param output: what the network predicts, as :meth:`aligned` returns it.
        :param y: the targets, as :meth:`aligned` returns them.
        """
        log_likelihoods: Tensor = self._observation_of(output, y).log_prob(y)
        return log_likelihoods

    def negative_log_likelihood(self, output: Any, y: Tensor) -> Tensor:
        """
        Of what was observed given the network's output, in nats; the mean over examples.

        :param output: what the network returned.
        :param y: the targets.
        """
        predicted = prediction(output)
        with full_precision(predicted.device):
            aligned, observed = self.aligned(predicted, y)
            assert observed is not None, "targets"
            # In one operation: in a small network each costs as much as a layer.
            return self.log_likelihood(aligned, observed) * (-1 / len(aligned))


def parameter_groups(elbo: ELBOModule, *, lr: float, noise_lr: float | None = None) -> list[dict[str, Any]]:
    """
    The parameters of a model and its guide in two groups for an optimiser: the noise's have their own learning rate.

    :param elbo: what an ELBO returns for a model and an :class:`AutoTruncatedLogNormal`.
    :param lr: learning rate of the weights, and of all else.
    :param noise_lr: that of the noise; ten times the other by default.
    :return: the groups, the weights first.
    :raises ReductionError: for a guide without noise, and learning rates that are negative or not finite.

    Example::

        >>> from torch import nn
        >>> from pyro_bmrs import pruning
        >>> net = pruning.attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> model = pruning.Classification(net, num_examples=100)
        >>> elbo = pruning.NoiseELBO()(model, pruning.AutoTruncatedLogNormal(model))
        >>> [group["lr"] for group in pruning.parameter_groups(elbo, lr=0.001)]
        [0.001, 0.01]
    """
    for rate in (lr,) if noise_lr is None else (lr, noise_lr):
        check_number(rate, "a learning rate", low=0)
    guide = elbo.guide
    if not isinstance(guide, AutoTruncatedLogNormal) or not guide.noise:
        raise ReductionError(
            "the guide has no noise; give an ELBO of a network with noise and an AutoTruncatedLogNormal"
        )
    noise = guide.noise_parameters
    others = [parameter for parameter in elbo.parameters() if parameter is not noise]
    return [{"params": others, "lr": lr}, {"params": [noise], "lr": 10 * lr if noise_lr is None else noise_lr}]
