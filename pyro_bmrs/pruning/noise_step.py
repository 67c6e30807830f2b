# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Draws of truncated log-normals, and their divergence from the log-uniform on the same interval, for a step of training.

In a small network a step costs as much as it has operations, whatever their size. Here are the value and the
derivatives of both, in a few dozen operations that are the same for all parameters, for the units of all layers at
once. The general rules, in :mod:`pyro_bmrs.distributions`, are differentiable in the ends too and exact to rounding,
and take hundreds.

**Draws.** The logarithm is drawn as a quantile. With t the displacement from the mode in scales, :math:`\alpha \ge 0`
how many scales the mode lies from the location, and :math:`\bar\Phi` the upper tail of the normal, the survival
:math:`\bar\Phi(\alpha + t) / \bar\Phi(\alpha)` is inverted in double precision, in which it does not cancel; beyond
:math:`\alpha = 30`, where the hazard is linear to rounding, by a quadratic. The derivatives are those of the implicit
function, dx/dloc = 1 - (1 - u) f(low) / f(x) - u f(high) / f(x), and likewise in the scale (M. Figurnov, S. Mohamed and
A. Mnih (2018), *Implicit reparameterization gradients*, https://arxiv.org/abs/1805.08498).

**Divergence.** It is that of the logarithms, a truncated normal from a uniform. With t and :math:`\alpha` as above, the
density proportional to :math:`e^{-e(t)}`, and M its integral,

.. math:: \mathrm{KL} = \log(\text{width} / \sigma) - \log M - E[e], \qquad e(t) = \alpha |t| + \tfrac12 t^2,

and its derivatives are :math:`-\mathrm{Cov}(t, e) / \sigma` in the location and :math:`-2\,\mathrm{Var}(e)` in the log
of the scale. All of these are expectations under one density, and come from one Gauss-Legendre rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_bmrs.distributions.normal_quadrature import gauss_legendre

__all__ = ["NoiseStep", "noise_step"]

_ROOT_HALF = math.sqrt(0.5)
# From here on the hazard of the normal is linear, as far as a quantile is concerned.
_FAR = 30.0
# How far probabilities are from 0 and 1, by rounding.
_EDGE = 2.0**-53
# Beyond so many e-folds below the mode a density is 0.
_NUM_FOLDS = 40.0
# So many draws are computed at a time that what is computed of them stays in the cache.
_NUM_TOGETHER = 8192


class NoiseStep(NamedTuple):
    """
    Draws of truncated log-normals, and their divergences from the log-uniform on the same interval.

    :param values: by site, each of shape ``(..., units of the site)``.
    :param divergence: of each unit in nats, shape ``(units,)``.
    :param log_normaliser: log of the integral of the density of the logarithm relative to its mode, likewise.
    :param weighted: the sum of divergences times weights, where there are weights.
    """

    values: tuple[Tensor, ...]
    divergence: Tensor
    log_normaliser: Tensor
    weighted: Tensor | None


def noise_step(
    uniform: Tensor,
    loc: Tensor,
    log_scale: Tensor,
    ends: Tensor,
    log_ends: Tensor,
    sites: Sequence[slice],
    weights: Tensor | None = None,
) -> NoiseStep:
    """
    Quantiles of truncated log-normals, and KL(q || p) of them from the log-uniform on the same interval.

    All are differentiable once in ``loc`` and ``log_scale``.

    :param uniform: probabilities in [0, 1), of any precision; shape ``(..., units)``. A 0 stands for what rounds to it.
    :param loc: location of the logarithm, shape ``(units,)``.
    :param log_scale: log of the scale of the logarithm, likewise.
    :param ends: the ends of the variable itself, positive and finite, in double precision; shape ``(2, units)``.
    :param log_ends: their logarithms, likewise.
    :param sites: which units are each site's; together all, in order.
    :param weights: of the divergences, shape ``(units,)``, not differentiated.
    :return: draws of the dtype of ``loc``, divergences, and normalisers.

    Example::

        >>> import torch
        >>> uniform, log_ends = torch.tensor([0.5, 0.5]), torch.tensor([[-20.0, -20.0], [0.0, 0.0]]).double()
        >>> loc, log_scale = torch.tensor([-3.0, 0.0]), torch.tensor([0.0, -5.0])
        >>> step = noise_step(uniform, loc, log_scale, log_ends.exp(), log_ends, [slice(1), slice(1, 2)])
        >>> step.values[0].log()
        tensor([-3.0017])
        >>> step.divergence
        tensor([1.5848, 7.2699])
    """
    *values, divergence, log_normaliser, weighted = _Step.apply(sites, weights, uniform, loc, log_scale, ends, log_ends)
    return NoiseStep(tuple(values), divergence, log_normaliser, weighted)


class _Step(torch.autograd.Function):
    # Between convolutions the caches are cold, and an operation of torch costs ten of NumPy: on the CPU there is none.
    @staticmethod
    def forward(
        ctx: Any, sites: Sequence[slice], weights: Tensor | None, uniform: Tensor, *parameters: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        rule = _rule(parameters[0].dtype, parameters[0].device)
        xp, (probability, *arrays) = _arrays(uniform, *parameters)
        with np.errstate(all="ignore"):
            law = _law(xp, *arrays)
            probability = _cast(probability, law.mode) * (1 - 2 * _EDGE) + _EDGE
            value, *by_value = _quantiles(xp, probability, law, rule)
            divergence, log_normaliser, *by_divergence = _divergence(xp, law, rule)
            ctx.sites, ctx.by_value, ctx.by_divergence, weighted = sites, by_value, by_divergence, None
            if weights is not None:
                (ctx.weights,) = _arrays(weights)[1]
                weighted = torch.as_tensor(divergence @ ctx.weights)
        values = [torch.as_tensor(value[..., site]) for site in sites]
        return *values, torch.as_tensor(divergence), torch.as_tensor(log_normaliser), weighted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        covariance, variance, place, energy = ctx.by_divergence
        xp = torch if isinstance(covariance, Tensor) else np
        *of_values, of_divergence, of_normaliser, of_weighted = (
            None if grad is None else grad.numpy() if xp is np else grad for grad in grads
        )
        by_loc, by_log_scale = xp.zeros_like(covariance), xp.zeros_like(covariance)
        if any(grad is not None for grad in of_values):
            of_units = xp.zeros_like(ctx.by_value[0])
            for site, of_value in zip(ctx.sites, of_values):
                if of_value is not None:
                    of_units[..., site] = of_value
            by_loc, by_log_scale = ((of_units * by).reshape(-1, len(covariance)).sum(0) for by in ctx.by_value)
        if of_weighted is not None:
            of_divergence = of_weighted * ctx.weights + (0 if of_divergence is None else of_divergence)
        # The mode stands still: where it moves with the location, the slope there is 0.
        if of_divergence is not None:
            by_loc, by_log_scale = by_loc - of_divergence * covariance, by_log_scale - 2 * of_divergence * variance
        if of_normaliser is not None:
            by_loc, by_log_scale = by_loc + of_normaliser * place, by_log_scale + 2 * of_normaliser * energy
        return None, None, None, torch.as_tensor(by_loc), torch.as_tensor(by_log_scale), None, None


class _Rule(NamedTuple):
    """A Gauss-Legendre rule."""

    nodes: Any  # on [-1/2, 1/2], symmetric to the last bit
    moments: Any  # the weights of the integral, and of the integral times the node
    reach: Any  # how many scales a normal takes to fall


class _Law(NamedTuple):
    """Truncated normals, as they are seen from their modes; in double precision."""

    mode: Any
    log_scale: Any
    scale: Any
    narrowness: Any  # one over the scale
    offset: Any  # the mode less the location, in scales
    start: Any  # how many scales those two are apart
    lengths: Any  # how many the ends are from the mode, of shape (2, units)
    ends: Any  # of the variable whose logarithm is normal
    width: Any  # from one end of the logarithm to the other


def _arrays(*tensors: Tensor) -> tuple[Any, list[Any]]:
    """
    The tensors as arrays, and the library to compute with.

    Where NumPy sees the same memory it computes: on a few hundred units its operations take a quarter of the time.
    """
    if all(tensor.is_cpu for tensor in tensors):
        return np, [tensor.detach().numpy() for tensor in tensors]
    return torch, list(tensors)


def _special(function: Callable[[Tensor], Tensor], array: Any) -> Any:
    """A special function of an array, of which NumPy has none."""
    return function(array) if isinstance(array, Tensor) else function(torch.from_numpy(array)).numpy()


def _cast(array: Any, like: Any) -> Any:
    """An array in the precision of another."""
    return array.to(like.dtype) if isinstance(array, Tensor) else array.astype(like.dtype, copy=False)


def _law(xp: Any, loc: Any, log_scale: Any, ends: Any, log_ends: Any) -> _Law:
    loc, log_scale = _cast(loc, log_ends), _cast(log_scale, log_ends)
    scale = xp.exp(log_scale)
    narrowness = 1 / scale
    mode = xp.minimum(xp.maximum(loc, log_ends[0]), log_ends[1])
    offset = (mode - loc) * narrowness
    lengths = abs(log_ends - mode) * narrowness
    return _Law(mode, log_scale, scale, narrowness, offset, abs(offset), lengths, ends, log_ends[1] - log_ends[0])


def _quantiles(xp: Any, uniform: Any, law: _Law, rule: _Rule) -> Sequence[Any]:
    """The quantiles, and their derivatives in the location and the log of the scale."""
    start, lengths = law.start, law.lengths
    # Beyond the start, of the half normal: the share of it that each side has.
    tails, whole = (_special(torch.special.erfcx, place * _ROOT_HALF) for place in (start + lengths, start))
    falls = lengths * (start + 0.5 * lengths)
    survival = xp.exp(-falls) * tails / whole
    upper = 0.5 * whole * xp.exp(-0.5 * start * start)

    def quantile(uniform: Any) -> tuple[Any, Any, Any]:
        return tuple(_cast(array, rule.nodes) for array in _quantile(xp, uniform, law, falls, survival, upper))

    rows = max(1, _NUM_TOGETHER // len(start))
    if xp is torch or uniform.ndim < 2 or uniform.size <= rows * len(start):
        return quantile(uniform)
    flat = uniform.reshape(-1, len(start))
    parts = [quantile(flat[row : row + rows]) for row in range(0, len(flat), rows)]
    return [np.concatenate(part).reshape(uniform.shape) for part in zip(*parts)]


def _quantile(xp: Any, uniform: Any, law: _Law, falls: Any, survival: Any, upper: Any) -> tuple[Any, Any, Any]:
    start, (length_below, length_above) = law.start, law.lengths
    below, above = 1 - survival
    total, above_uniform = below + above, 1 - uniform
    signed = uniform * total - below
    # Sums of what is small, not differences of what is not.
    is_below = signed < 0
    left = xp.where(is_below, survival[0], survival[1]) + xp.where(is_below, uniform, above_uniform) * total

    t = -_special(torch.special.ndtri, upper * left) - start
    is_far = start > _FAR
    if is_far.any():
        # The hazard less the start, which as a difference would cancel.
        inverse, depth = 1 / start, -xp.log(left)
        gap = inverse * (1 - inverse * inverse * (2 - 10 * inverse * inverse))
        hazard = start + gap
        quadratic = 2 * depth / (hazard + xp.sqrt(hazard * hazard + 2 * depth * hazard * gap))
        t = xp.where(is_far, quadratic, t)
    t = xp.minimum(xp.where(t > 0, t, 0.0), xp.where(is_below, length_below, length_above))
    t = xp.copysign(t, signed)

    # Densities at the ends, relative to that at the value.
    fall = t * (law.offset + 0.5 * t)
    by_low, by_high = xp.exp(fall - falls[0]) * above_uniform, xp.exp(fall - falls[1]) * uniform
    value, rest = xp.exp(law.mode + law.scale * t), 1 - (by_low + by_high)
    by_scale = t + law.offset * rest + length_below * by_low - length_above * by_high
    # exp(log(low)) may round to less than low.
    inside = xp.minimum(xp.maximum(value, law.ends[0]), law.ends[1])
    return inside, value * rest, value * law.scale * by_scale


def _divergence(xp: Any, law: _Law, rule: _Rule) -> tuple[Any, ...]:
    """The divergence and the log normaliser, and of the density exp(-e(t)): Cov(t, e), Var(e), E[t] and E[e]."""
    offset, start, lengths, narrowness, log_scale, log_width = (
        _cast(array, rule.nodes)
        for array in (law.offset, law.start, law.lengths, law.narrowness, law.log_scale, xp.log(law.width))
    )
    # Where the density has fallen far enough: the root of |offset| t + t²/2 = folds. A mode that is not the location is
    # at an end, and there is nothing beyond.
    below, above = xp.minimum(lengths, 2 * _NUM_FOLDS / (start + xp.hypot(start, rule.reach)))
    width, middle = below + above, 0.5 * (above - below)
    t = width[:, None] * rule.nodes + middle[:, None]
    energies = t * (offset[:, None] + 0.5 * t)
    density = xp.exp(-energies)
    weighted = density * energies
    # The integrals of 1 and of the node, of e and e times the node, and of e².
    (mass, node), (energy, cross), (square, _) = (
        (values @ rule.moments).T for values in (density, weighted, weighted * energies)
    )
    energy, node = energy / mass, node / mass
    log_normaliser = xp.log(mass * width) + log_scale
    covariance, variance = (cross / mass - node * energy) * width * narrowness, square / mass - energy * energy
    place = (width * node + middle) * narrowness
    divergence = log_width - log_normaliser - energy
    return divergence, log_normaliser, covariance, variance, place, energy


@lru_cache
def _rule(dtype: torch.dtype, device: torch.device) -> _Rule:
    """The rule that integrates to rounding in a precision."""
    nodes, weights = torch.tensor(gauss_legendre(26 if torch.finfo(dtype).bits <= 32 else 48), dtype=torch.float64)
    nodes = 0.5 * (nodes - nodes.flip(0))
    tables = nodes, torch.stack([weights, weights * nodes], -1), nodes.new_tensor(math.sqrt(2 * _NUM_FOLDS))
    return _Rule(*_arrays(*(table.to(device, dtype) for table in tables))[1])
