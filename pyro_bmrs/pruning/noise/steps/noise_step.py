# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Draws of truncated log-normals, and their divergence from the log-uniform on the same interval, for a step of training.

In a small network a step costs as much as it has operations, whatever their size. Here are the value and the
derivatives of both, in a few dozen operations that are the same for all parameters, for the units of all layers at
once. The general rules, in :mod:`pyro_bmrs.distributions`, are differentiable in the ends too and exact to rounding,
and take hundreds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_bmrs.pruning.noise.steps.arrays import library, tensor
from pyro_bmrs.pruning.noise.steps.divergence import find_divergence
from pyro_bmrs.pruning.noise.steps.draws import draw, gradient
from pyro_bmrs.pruning.noise.steps.law import LogUniforms, find_law


class NoiseStep(NamedTuple):
    """
    Draws of truncated log-normals, and their divergences from the log-uniform on the same interval.

    :param values: by site, each of shape ``(..., units of the site)``.
    :param divergence: of each unit in nats, shape ``(units,)``.
    :param log_normaliser: log of the integral of the density of the logarithm relative to its mode, shape ``(units,)``.
    :param weighted: the sum of divergences times weights, where there are weights.
    """

    values: tuple[Tensor, ...]
    divergence: Tensor
    log_normaliser: Tensor
    weighted: Tensor | None


def noise_step(
    uniform: Tensor,
    parameters: Tensor,
    priors: LogUniforms,
    sites: Sequence[slice],
    weights: Tensor | None = None,
) -> NoiseStep:
    """
    Quantiles of truncated log-normals, and KL(q || p) of them from the log-uniform on the same interval.

    All are differentiable once in the parameters.

    :param uniform: probabilities in [0, 1), of any precision; shape ``(..., units)``. A 0 stands for what rounds to it.
    :param parameters: location and log of the scale of the logarithm, shape ``(2, units)``.
    :param priors: the log-uniforms.
    :param sites: which units are each site's; together all, in order.
    :param weights: of the divergences, shape ``(units,)``, not differentiated.
    :return: draws of the dtype of the parameters, divergences, and normalisers.

    Example::

        >>> import torch
        >>> from pyro_bmrs.pruning.noise.steps.law import LogUniforms
        >>> priors = LogUniforms.of(torch.tensor([[-20.0, -20.0], [0.0, 0.0]]).exp(), torch.float32)
        >>> uniform, parameters = torch.tensor([0.5, 0.5]), torch.tensor([[-3.0, 0.0], [0.0, -5.0]])
        >>> step = noise_step(uniform, parameters, priors, [slice(1), slice(1, 2)])
        >>> step.values[0].log()
        tensor([-3.0017])
        >>> step.divergence
        tensor([1.5848, 7.2699])
    """
    apply: Any = _Step.apply
    *values, divergence, log_normaliser, weighted = apply(sites, priors, weights, uniform, parameters)
    return NoiseStep(tuple(values), divergence, log_normaliser, weighted)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sites: Sequence[slice], priors: LogUniforms, weights: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        xp = library(priors.log_ends)
        arrays: Any = (*tensors, weights)
        if xp is not torch:
            arrays = [None if part is None else part.detach().numpy() for part in arrays]
        uniform, parameters, of_weights = arrays
        law = find_law(xp, parameters, priors)
        draws = draw(uniform.reshape(-1, uniform.shape[-1]), law, parameters, priors)
        divergence = find_divergence(law, parameters, priors)
        # Of one draw the derivatives cost less here, where the arithmetic is in the caches.
        ctx.by_value = gradient(draws, law, 1.0, parameters) if len(draws.values) == 1 else None
        ctx.law, ctx.draws, ctx.divergence = law, draws, divergence
        ctx.sites, ctx.weights, ctx.parameters = sites, of_weights, parameters
        values = draws.values.reshape(uniform.shape)
        of_units = tensor(divergence.divergence), tensor(divergence.log_normaliser)
        weighted = None if weights is None else tensor(xp.asarray(divergence.divergence @ of_weights))
        return *(tensor(values[..., site]) for site in sites), *of_units, weighted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        xp, values = library(ctx.parameters), ctx.draws.values
        *of_values, of_divergence, of_normaliser, of_weighted = (
            None if grad is None else grad.numpy() if xp is not torch else grad for grad in grads
        )
        whole: Any = 0
        if any(grad is not None for grad in of_values):
            parts = (
                xp.zeros_like(values[:, site]) if grad is None else grad.reshape(len(values), -1)
                for site, grad in zip(ctx.sites, of_values)
            )
            gathered, by_value = xp.concatenate(tuple(parts), -1), ctx.by_value
            whole = gradient(ctx.draws, ctx.law, gathered, ctx.parameters) if by_value is None else gathered * by_value
        if of_weighted is not None:
            of_divergence = of_weighted * ctx.weights + (0 if of_divergence is None else of_divergence)
        if of_divergence is not None:
            whole = whole + of_divergence * ctx.divergence.by_parameters
        if of_normaliser is not None:
            whole = whole + of_normaliser * ctx.divergence.by_normaliser(ctx.law)
        return None, None, None, None, tensor(whole)
