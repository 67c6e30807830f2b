# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The log evidence of every reduced model of a joint normal posterior.

Group after group, all models so far are continued without and with the reduction of the next group, whose elements
are conditioned upon one by one. A model keeps only the moments of the elements still to come, so that the 2^n
models of n elements cost about 6 · 2^n multiplications in all, and each is reached by at most n steps of elimination
on a positive definite matrix, which is stable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Numbers in the moments of the models under way: small enough for a processor's cache, large enough to be worth a call.
_BATCH = 2**17


def evidence_of_all(
    covariance: Tensor,
    residual: Tensor,
    constants: Tensor,
    sizes: Sequence[int],
    advance: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """
    The log evidence of all 2^n sets of n groups of observations, relative to no observation.

    :param covariance: of the observations, shape ``(d, d)``, those of a group together, the groups in turn.
    :param residual: observations less their means, shape ``(d,)``.
    :param constants: what each group adds beside its normal density (without 2 pi), shape ``(n,)``.
    :param sizes: number of observations in each group.
    :param advance: called with the number of models done since the last call.
    :return: shape ``(2**n,)``, in nats; bit i of a model's index tells whether group i was observed.

    Example::

        >>> evidence_of_all(torch.eye(2), torch.tensor([0.0, 2.0]), torch.zeros(2), [1, 1])
        tensor([ 0.,  0., -2., -2.])
    """
    start = residual.new_zeros(1)
    return _continue(covariance.unsqueeze(-1), residual.unsqueeze(-1), start, constants, sizes, advance).squeeze(-1)


def _continue(
    covariance: Tensor,
    residual: Tensor,
    total: Tensor,
    constants: Tensor,
    sizes: Sequence[int],
    advance: Callable[[int], object],
) -> Tensor:
    """All continuations of a batch of models, which is the last dimension: shape ``(2**n, batch)``."""
    batch = len(total)
    if not sizes:
        advance(batch)
        return total.unsqueeze(0)
    if batch > 1 and covariance.numel() > _BATCH:
        halves = zip(covariance.chunk(2, -1), residual.chunk(2, -1), total.chunk(2, -1))
        return torch.cat([_continue(*half, constants, sizes, advance) for half in halves], -1)
    size = sizes[0]
    observed = _observe(covariance, residual, total + constants[0], size)
    left_out = covariance[size:, size:], residual[size:], total
    joined = [torch.cat(pair, -1) for pair in zip(left_out, observed)]
    below = _continue(joined[0], joined[1], joined[2], constants[1:], sizes[1:], advance)
    return below.reshape(-1, batch)


def _observe(covariance: Tensor, residual: Tensor, total: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Conditions upon the first ``size`` observations, one after another, and adds up their log densities."""
    for _ in range(size):
        variance, error = covariance[0, 0], residual[0]
        total = total - 0.5 * (variance.log() + error.square() / variance)
        slope = covariance[0, 1:] / variance
        residual = residual[1:] - slope * error
        covariance = covariance[1:, 1:] - covariance[1:, :1] * slope
    return covariance, residual, total
