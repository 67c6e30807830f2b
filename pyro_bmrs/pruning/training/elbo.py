# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The ELBO of a network whose only latent variables are its noise, at little more than what the network costs."""

from __future__ import annotations

import math
from typing import Any, cast

from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.training.batches import run_on_batch, targets_of
from pyro_bmrs.pruning.training.models import Likelihood
from pyro_bmrs.structure.vectorised import TURN


class NoiseELBO(TraceMeanField_ELBO):
    """
    ``TraceMeanField_ELBO`` with a short cut for networks of which nothing but the noise is latent.

    In a small network, Pyro's account of every sample site costs several times what the layers do. For a
    :class:`~pyro_bmrs.pruning.Classification` or :class:`~pyro_bmrs.pruning.Regression` whose guide is an
    :class:`~pyro_bmrs.pruning.AutoTruncatedLogNormal`, the loss is that of the parent class, of the same draws, without
    that account. For any other model, for Bayesian weights beside the noise, under other handlers (as in ``SVI``), and
    with several particles, it is the parent's. Threads that train, or predict, at a time take turns.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro.infer import TraceMeanField_ELBO
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, Classification, NoiseELBO, attach_noise
        >>> x, y = torch.randn(200, 3), torch.randint(2, (200,))
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)))
        >>> model = Classification(net, num_examples=200)
        >>> guide = AutoTruncatedLogNormal(model)
        >>> losses = []
        >>> for elbo in (NoiseELBO(), TraceMeanField_ELBO()):
        ...     _ = torch.manual_seed(0)
        ...     losses.append(elbo(model, guide)(x, y))
        >>> torch.testing.assert_close(*losses)
    """

    # A model met with other latent variables than noise, which the short cut is not for.
    _has_others: Any = None

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The negative ELBO of one draw, to be differentiated."""
        with TURN:
            return self._loss(model, guide, *args, **kwargs)

    def _loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self._takes_short_cut(model, guide, args, kwargs):
            try:
                return self._short_loss(model, guide, *args)
            except _OtherSite:
                self._has_others = model
        parent: Any = super()
        loss: Tensor = parent.differentiable_loss(model, guide, *args, **kwargs)
        return loss

    def _takes_short_cut(self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the loss is a mean negative log likelihood and the divergences of noise, of one draw."""
        # Only of a model that runs the network and observes, and does nothing else, is the likelihood known beforehand.
        is_plain_model = isinstance(model, Likelihood) and type(model).forward is Likelihood.forward
        # Only of this guide are the posteriors known. It gives its noise to the modules of its own model.
        is_plain_guide = (
            isinstance(guide, AutoTruncatedLogNormal)
            and type(guide).get_posterior is AutoTruncatedLogNormal.get_posterior
            and guide.model is model
        )
        # Without targets there is nothing observed, and other arguments are the model's to understand.
        has_targets = len(args) in (1, 2) and not kwargs and targets_of(*args, *[None] * (2 - len(args))) is not None
        # Each particle is a draw, and the parent class averages over them.
        is_one_draw = self.num_particles == 1
        # Handlers outside, as SVI's, are to meet the sample statements that the short cut does without.
        is_alone = not _PYRO_STACK
        has_others = self._has_others is model
        return is_plain_model and is_plain_guide and has_targets and is_one_draw and is_alone and not has_others

    def _short_loss(self, model: Likelihood, guide: AutoTruncatedLogNormal, x: Any, y: Any = None) -> Tensor:
        depth = len(_PYRO_STACK)
        try:
            with guide.given_noise(model.example_weight) as noise, _NothingElse():
                output, targets = run_on_batch(model.net, x), cast(Tensor, targets_of(x, y))
                loss: Tensor = model.negative_log_likelihood(output, targets) + noise.weighted_divergence
        finally:
            # An interrupt may come between a handler's entry and what would see to its exit.
            del _PYRO_STACK[depth:]
        if model.training:
            model.count_step()
        # As a number: on a tensor with a gradient, Pyro would hang a hook that costs as much as a layer.
        number: Any = loss.item()
        if math.isnan(number):
            warn_if_nan(number, "loss")
        return loss


class _OtherSite(Exception):
    """A sample site that is no noise."""


class _NothingElse(Messenger):
    """Sees that no sample statement is met: noise that is given needs none."""

    def _pyro_sample(self, msg: Any) -> None:
        raise _OtherSite
