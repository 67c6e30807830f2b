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
    """

    values: tuple[Tensor, ...]
    divergence: Tensor
    log_normaliser: Tensor


def noise_step(
    uniform: Tensor, loc: Tensor, log_scale: Tensor, ends: Tensor, log_ends: Tensor, sizes: Sequence[int]
) -> NoiseStep:
    """
    Quantiles of truncated log-normals, and KL(q || p) of them from the log-uniform on the same interval.

    All are differentiable once in ``loc`` and ``log_scale``.

    :param uniform: probabilities in (0, 1), in double precision; shape ``(..., units)``.
    :param loc: location of the logarithm, shape ``(units,)``.
    :param log_scale: log of the scale of the logarithm, likewise.
    :param ends: the ends of the variable itself, positive and finite, in double precision; shape ``(2, units)``.
    :param log_ends: their logarithms, likewise.
    :param sizes: how many units each site has.
    :return: draws of the dtype of ``loc``, divergences, and normalisers.

    Example::

        >>> import torch
        >>> uniform, log_ends = torch.tensor([0.5, 0.5]).double(), torch.tensor([[-20.0, -20.0], [0.0, 0.0]]).double()
        >>> loc, log_scale = torch.tensor([-3.0, 0.0]), torch.tensor([0.0, -5.0])
        >>> step = noise_step(uniform, loc, log_scale, log_ends.exp(), log_ends, [1, 1])
        >>> step.values[0].log()
        tensor([-3.0017])
        >>> step.divergence
        tensor([1.5848, 7.2699])
    """
    *values, divergence, log_normaliser = _Step.apply(uniform, loc, log_scale, ends, log_ends, tuple(sizes))
    return NoiseStep(tuple(values), divergence, log_normaliser)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        uniform: Tensor,
        loc: Tensor,
        log_scale: Tensor,
        ends: Tensor,
        log_ends: Tensor,
        sizes: tuple[int, ...],
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.sizes = sizes
        xp, arrays = _arrays(uniform, loc.double(), log_scale.double(), ends, log_ends)
        rule = _Rule(*_arrays(*_rule(loc.dtype, loc.device))[1])
        with np.errstate(all="ignore"):
            law = _law(xp, *arrays[1:])
            value, *derivatives = _quantiles(xp, arrays[0], law, rule)
            divergence, log_normaliser, *moments = _divergence(xp, law, rule)
        ctx.save_for_backward(*map(torch.as_tensor, (*derivatives, *moments)))
        values = torch.as_tensor(value).split(sizes, -1)
        return *values, torch.as_tensor(divergence), torch.as_tensor(log_normaliser)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        by_loc, by_log_scale, covariance, variance, place, energy = ctx.saved_tensors
        *by_values, by_divergence, by_normaliser = grads
        loc_grad, log_scale_grad = torch.zeros_like(covariance), torch.zeros_like(covariance)
        # The mode stands still: where it moves with the location, the slope there is 0.
        if by_divergence is not None:
            loc_grad.addcmul_(by_divergence, covariance, value=-1)
            log_scale_grad.addcmul_(by_divergence, variance, value=-2)
        if by_normaliser is not None:
            loc_grad.addcmul_(by_normaliser, place)
            log_scale_grad.addcmul_(by_normaliser, energy, value=2)
        if any(grad is not None for grad in by_values):
            shape = by_loc.shape[:-1]
            pairs = zip(by_values, ctx.sizes)
            grad = torch.cat([by_loc.new_zeros(*shape, size) if one is None else one for one, size in pairs], -1)
            loc_grad.add_((grad * by_loc).sum_to_size(loc_grad.shape))
            log_scale_grad.add_((grad * by_log_scale).sum_to_size(loc_grad.shape))
        return None, loc_grad, log_scale_grad, None, None, None


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
def _rule(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What a rule is made of."""
    nodes, weights = torch.tensor(gauss_legendre(26 if torch.finfo(dtype).bits <= 32 else 48), dtype=torch.float64)
    nodes = 0.5 * (nodes - nodes.flip(0))
    reach = nodes.new_tensor(math.sqrt(2 * _NUM_FOLDS))
    nodes, moments, reach = (
        table.to(device, dtype) for table in (nodes, torch.stack([weights, weights * nodes], -1), reach)
    )
    return nodes, moments, reach
